use daffi::callback;

#[callback(nmae = "add")]
fn work<T>(a: &str, b: &[T]) -> usize {
    a.len() + b.len()
}

fn uses() {
    // The function itself is there in spite of its mistakes, and is not reported as missing.
    work::<u8>("", &[]);
}

fn main() {}
