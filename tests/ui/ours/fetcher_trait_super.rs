use daffi::fetcher;

#[fetcher]
trait Peer: Clone {
    fn work();
}

fn main() {}
