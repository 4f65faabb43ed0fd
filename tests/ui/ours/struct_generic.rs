use daffi::callback;

#[callback]
struct Group<T> {
    item: T,
}

fn main() {}
