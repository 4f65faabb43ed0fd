use daffi::callback;

#[callback]
enum Group {
    A,
}

fn main() {}
