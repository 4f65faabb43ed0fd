use daffi::fetcher;

#[fetcher]
trait Peer {
    fn work(context: &daffi::Context);
}

fn main() {}
