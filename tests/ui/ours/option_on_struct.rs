use daffi::callback;

#[callback(inline)]
struct Group;

fn main() {}
