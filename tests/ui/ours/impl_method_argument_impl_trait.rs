use daffi::callback;

#[callback]
struct Group;

#[callback]
impl Group {
    pub fn greet(&self, name: impl Into<String>) -> String {
        name.into()
    }
}

fn main() {}
