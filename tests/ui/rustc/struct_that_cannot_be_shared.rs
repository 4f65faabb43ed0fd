use daffi::callback;

#[callback]
struct Group {
    count: std::cell::Cell<u8>,
}

fn main() {}
