//! The first of the seed's two processes: synchronous, and it carries the controller. Start `process2` beside it, in
//! either order; `demo` does both.

use daffi::{FG, Global, NO_RETURN, callback, fetcher};
use std::{thread, time::Duration};

/// Returns the sum.
#[callback]
fn func3(a: i64, b: i64) -> i64 {
    thread::sleep(Duration::from_secs(3)); // a long job
    a + b
}

/// What this process calls on others.
#[fetcher]
trait Proc2 {
    fn func1(a: i64, b: i64) -> i64;
    fn func2();
}

fn main() -> daffi::Result<()> {
    let g =
        Global::builder().process_name("proc1").init_controller(true).host("localhost").port(8888).start()?;
    g.wait_process("proc2")?;
    for _ in 0..10 {
        let delta = (g.call.func1(10, 3) & FG)?;
        println!("Calculated delta = {delta}");
        (g.call.func2() & NO_RETURN)?;
        thread::sleep(Duration::from_secs(5));
    }
    g.stop()
}
