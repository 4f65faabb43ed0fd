use daffi::fetcher;

struct Point {
    x: f64,
}

#[fetcher]
trait Peer {
    fn length(times: u8, point: Point) -> f64;
}

fn main() {}
