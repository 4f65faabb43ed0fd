use daffi::callback;

struct Point {
    x: f64,
}

#[callback]
fn origin() -> Result<Point, String> {
    Ok(Point { x: 0.0 })
}

fn main() {}
