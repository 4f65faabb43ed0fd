use daffi::callback;

#[callback]
fn later() -> impl Future<Output = u8> {
    async { 1 }
}

fn main() {}
