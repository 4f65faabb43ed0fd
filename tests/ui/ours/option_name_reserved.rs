use daffi::callback;

#[callback(name = "daffi.work")]
fn work() {}

fn main() {}
