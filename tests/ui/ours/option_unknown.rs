use daffi::callback;

#[callback(nmae = "add")]
fn work() {}

fn main() {}
