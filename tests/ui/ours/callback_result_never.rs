use daffi::callback;

#[callback]
fn exit() -> ! {
    std::process::exit(1)
}

fn main() {}
