use daffi::callback;

#[callback]
fn work(context: &mut daffi::Context) {
    let _ = context;
}

fn main() {}
