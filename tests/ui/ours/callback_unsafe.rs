use daffi::callback;

#[callback]
unsafe fn work() {}

fn main() {}
