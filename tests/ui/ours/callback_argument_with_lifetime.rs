use daffi::callback;

#[callback]
fn greet(name: std::borrow::Cow<'_, str>) -> usize {
    name.len()
}

fn main() {}
