use daffi::callback;

const NAME: &str = "a";

#[callback(name = NAME)]
fn work() {}

fn main() {}
