use daffi::fetcher;

#[fetcher]
trait Peer {
    fn change(items: &mut Vec<u8>);
}

fn main() {}
