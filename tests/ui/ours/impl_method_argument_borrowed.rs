use daffi::callback;

#[callback]
struct Group;

#[callback]
impl Group {
    pub fn greet(&self, name: &str) -> String {
        name.to_owned()
    }
}

fn main() {}
