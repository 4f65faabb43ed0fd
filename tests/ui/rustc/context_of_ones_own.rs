use daffi::callback;

struct Context;

#[callback]
fn work(context: &Context) {
    let _ = context;
}

fn main() {}
