use daffi::callback;

#[callback]
struct Group;

#[callback]
impl Group {
    #[callback(inline)]
    pub fn work(&self) {}
}

fn main() {}
