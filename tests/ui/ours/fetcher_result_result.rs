use daffi::fetcher;

#[fetcher]
trait Peer {
    fn read(path: String) -> std::io::Result<Vec<u8>>;
}

fn main() {}
