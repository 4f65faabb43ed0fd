use daffi::callback;

#[callback]
fn greet(names: Option<Vec<&'static str>>, bytes: &[u8]) -> usize {
    names.map_or(0, |names| names.len()) + bytes.len()
}

fn main() {}
