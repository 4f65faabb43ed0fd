use daffi::fetcher;

#[fetcher]
trait Peer {
    async fn work();
}

fn main() {}
