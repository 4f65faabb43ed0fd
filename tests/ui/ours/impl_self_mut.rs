use daffi::callback;

#[callback]
struct Group(u8);

#[callback]
impl Group {
    pub fn change(&mut self) {
        self.0 += 1;
    }
}

fn main() {}
