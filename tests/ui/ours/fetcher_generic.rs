use daffi::fetcher;

#[fetcher]
trait Peer {
    fn first<T>(items: Vec<T>) -> T;
}

fn main() {}
