use daffi::fetcher;

#[fetcher]
fn work() -> u8 {
    1
}

fn main() {}
