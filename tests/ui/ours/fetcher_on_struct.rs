use daffi::fetcher;

#[fetcher]
struct Peer;

fn main() {}
