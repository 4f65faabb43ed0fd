use daffi::callback;

struct Point {
    x: f64,
}

#[callback]
fn origin() -> Point {
    Point { x: 0.0 }
}

fn main() {}
