use daffi::fetcher;

#[fetcher]
trait Peer {
    type Item;
}

fn main() {}
