use daffi::callback;

struct Group;

#[callback]
impl Group {
    fn work() {}
}

fn main() {}
