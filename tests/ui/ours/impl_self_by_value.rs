use daffi::callback;

#[callback]
struct Group(u8);

#[callback]
impl Group {
    pub fn consume(self) -> u8 {
        self.0
    }
}

fn main() {}
