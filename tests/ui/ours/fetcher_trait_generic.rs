use daffi::fetcher;

#[fetcher]
trait Peer<T> {
    fn work();
}

fn main() {}
