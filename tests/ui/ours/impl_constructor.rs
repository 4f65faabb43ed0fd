use daffi::callback;

#[callback]
struct Group;

#[callback]
impl Group {
    pub fn new() -> Self {
        Self
    }
}

fn main() {}
