use daffi::fetcher;

#[fetcher]
trait Peer {
    fn work() -> u8 {
        1
    }
}

fn main() {}
