use daffi::callback;

#[callback(max_concurrency = 0)]
fn work() {}

fn main() {}
