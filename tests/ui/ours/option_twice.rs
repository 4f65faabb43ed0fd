use daffi::callback;

#[callback(name = "a", name = "b")]
fn work() {}

fn main() {}
