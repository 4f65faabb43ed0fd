use daffi::fetcher;

#[fetcher]
trait Peer {
    fn name() -> &'static str;
}

fn main() {}
