use daffi::callback;

#[callback]
struct Group;

#[callback]
impl Clone for Group {
    fn clone(&self) -> Self {
        Self
    }
}

fn main() {}
