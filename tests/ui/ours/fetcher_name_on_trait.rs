use daffi::fetcher;

#[fetcher(name = "peer")]
trait Peer {
    fn work();
}

fn main() {}
