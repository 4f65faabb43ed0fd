use daffi::callback;

#[callback]
struct Group;

#[callback]
impl Group {
    pub fn size<T>(&self, items: Vec<T>) -> usize {
        items.len()
    }
}

fn main() {}
