use daffi::fetcher;

#[fetcher]
trait Peer {
    fn work(&self);
}

fn main() {}
