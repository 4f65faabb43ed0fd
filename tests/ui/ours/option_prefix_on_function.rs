use daffi::callback;

#[callback(prefix = "my_")]
fn work() {}

fn main() {}
