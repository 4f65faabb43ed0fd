use daffi::callback;

#[callback]
fn greet(name: &str) -> String {
    name.to_owned()
}

fn main() {}
