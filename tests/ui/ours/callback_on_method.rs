use daffi::callback;

struct Group;

impl Group {
    #[callback]
    pub fn work(&self) {}
}

fn main() {}
