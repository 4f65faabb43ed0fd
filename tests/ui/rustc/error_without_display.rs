use daffi::callback;

struct Wrong;

#[callback]
fn origin() -> Result<f64, Wrong> {
    Err(Wrong)
}

fn main() {}
