use daffi::fetcher;

#[fetcher]
trait Peer {
    fn greet(name: impl Into<String>);
}

fn main() {}
