use daffi::callback;

#[callback]
trait Group {
    fn work();
}

fn main() {}
