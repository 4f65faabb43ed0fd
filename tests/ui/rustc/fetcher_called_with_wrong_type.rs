use daffi::fetcher;

#[fetcher]
trait Peer {
    fn add(a: i64, b: i64) -> i64;
}

fn calls(call: &daffi::Caller) {
    let _ = call.add(1, "2");
}

fn main() {}
