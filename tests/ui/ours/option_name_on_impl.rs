use daffi::callback;

#[callback]
struct Group;

#[callback(name = "group")]
impl Group {
    pub fn work(&self) {}
}

fn main() {}
