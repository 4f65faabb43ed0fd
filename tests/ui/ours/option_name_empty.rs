use daffi::callback;

#[callback(name = "")]
fn work() {}

fn main() {}
