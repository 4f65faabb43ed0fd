use daffi::callback;

struct Group;

#[callback]
impl Group {
    pub fn first(&self) {}

    pub fn second(&self) {}
}

fn main() {}
