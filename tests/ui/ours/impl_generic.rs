use daffi::callback;

struct Group<T>(T);

#[callback]
impl<T> Group<T> {
    pub fn work() {}
}

fn main() {}
