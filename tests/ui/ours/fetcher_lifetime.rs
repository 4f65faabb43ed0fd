use daffi::fetcher;

#[fetcher]
trait Peer {
    fn greet<'a>(name: &'a str);
}

fn main() {}
