//! A program that uses this controller: it links `own_controller` and uses daffi without its default
//! features, so that `init_controller(true)` finds no other.

use daffi::{FG, Global, callback};
// Nothing else names the crate, and a crate that is never named is not linked.
use own_controller as _;

/// Adds two numbers.
#[callback]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

/// What this program calls.
mod calculator {
    use daffi::fetcher;

    /// The callback above, as its callers see it.
    #[fetcher]
    pub trait Calculator {
        fn add(a: i64, b: i64) -> i64;
    }
}

fn main() -> daffi::Result<()> {
    use calculator::Calculator as _;

    let socket = std::env::temp_dir().join(format!("own-controller-{}.sock", std::process::id()));
    let server =
        Global::builder().process_name("server").init_controller(true).unix_sock_path(&socket).start()?;
    // A node never calls itself, so a second one makes the calls.
    let client = Global::builder()
        .process_name("client")
        .link_time_callbacks(false)
        .unix_sock_path(&socket)
        .start()?;
    println!("2 + 3 = {}", (client.call.add(2, 3) & FG)?);
    client.stop()?;
    server.stop()
}
