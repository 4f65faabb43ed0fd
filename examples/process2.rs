//! The second of the seed's two processes: asynchronous. Start `process1` beside it, in either order; `demo` does both.

use daffi::{BG, Global, callback, fetcher};
use std::time::Duration;

/// Returns the difference.
#[callback]
async fn func1(a: i64, b: i64) -> i64 {
    a - b
}

#[callback]
fn func2() {
    println!("Func2 has been triggered!")
}

#[fetcher]
trait Proc1 {
    fn func3(a: i64, b: i64) -> i64;
}

#[tokio::main]
async fn main() -> daffi::Result<()> {
    let g = Global::builder().process_name("proc2").host("localhost").port(8888).start_async().await?;
    for _ in 0..5 {
        let future = g.call.func3(4, 6) & BG; // AsyncResult<i64>
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!("Calculated sum is {}", future.get_async().await?);
    }
    g.join_async().await
}
