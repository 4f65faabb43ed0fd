use daffi::callback;

#[callback]
mod group {}

fn main() {}
