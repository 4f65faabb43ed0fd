use daffi::callback;

#[callback(inline = true)]
fn work() {}

fn main() {}
