use daffi::fetcher;

#[fetcher]
trait Peer {
    fn add((a, b): (u8, u8)) -> u8;
}

fn main() {}
