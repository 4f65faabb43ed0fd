use daffi::fetcher;

#[fetcher]
trait One {
    fn work();
}

#[fetcher]
trait Other {
    fn work();
}

fn calls(call: &daffi::Caller) {
    let _ = call.work();
}

fn main() {}
