use daffi::callback;

struct Point {
    x: f64,
}

#[callback]
fn length(times: u8, point: Point) -> f64 {
    point.x * f64::from(times)
}

fn main() {}
