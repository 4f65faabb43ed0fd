use daffi::fetcher;

struct Point {
    x: f64,
}

#[fetcher]
trait Peer {
    fn origin() -> Point;
}

fn main() {}
