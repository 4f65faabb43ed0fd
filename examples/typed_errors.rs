//! What can go wrong with a call, and what the caller learns about it.

use std::{fmt, time::Duration};

use daffi::{Error, FG, Global, callback, fetcher};
use serde::{Deserialize, Serialize};

/// The callback's own error. Because it is `Serialize` and `Deserialize`, the caller gets it unchanged.
#[derive(Debug, Serialize, Deserialize)]
enum WithdrawError {
    Poor { balance: u64 },
    Closed,
}

impl fmt::Display for WithdrawError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poor { balance } => write!(f, "there are only {balance} left"),
            Self::Closed => f.write_str("the account is closed"),
        }
    }
}

impl std::error::Error for WithdrawError {}

#[callback]
fn withdraw(amount: u64) -> Result<u64, WithdrawError> {
    match amount {
        0 => Err(WithdrawError::Closed),
        1..=100 => Ok(100 - amount),
        _ => Err(WithdrawError::Poor { balance: 100 }),
    }
}

/// An error that cannot be sent as itself is sent as text, along with its sources.
#[callback]
fn statement() -> std::io::Result<String> {
    std::fs::read_to_string("no/such/file")
}

#[callback]
fn audit() {
    panic!("the books do not add up");
}

#[callback]
async fn wait() {
    std::future::pending::<()>().await;
}

/// For a callback that returns a `Result`, declare the `Ok` type: an `Err` becomes the error of the call.
#[fetcher]
trait Bank {
    fn withdraw(amount: u64) -> u64;
    fn statement() -> String;
    fn audit();
    fn wait();
}

/// The same callback, declared with different types.
#[fetcher(name = "withdraw")]
fn withdraw_text(amount: &str) -> u64;

fn main() -> daffi::Result<()> {
    let bank = Global::builder().process_name("bank").init_controller(true).host("localhost").start()?;
    let customer = Global::builder()
        .process_name("customer")
        .address(bank.address().clone())
        .link_time_callbacks(false)
        .start()?;
    let call = &customer.call;

    println!("withdraw 30: {:?} left", (call.withdraw(30) & FG)?);

    // The callback's own error, typed.
    for amount in [500, 0] {
        let error = (call.withdraw(amount) & FG).expect_err("it is refused");
        println!("withdraw {amount}: {error}");
        match error.downcast::<WithdrawError>() {
            Some(WithdrawError::Poor { balance }) => println!("  so I take {balance}"),
            Some(WithdrawError::Closed) => println!("  so I go elsewhere"),
            None => println!("  unexpected"),
        }
    }

    // Any other error from a callback: its text, and where it ran.
    match call.statement() & FG {
        Err(Error::Remote(error)) => {
            println!("statement: {:?} said: {}", error.node(), error.message());
        }
        other => println!("unexpected: {other:?}"),
    }

    // A panic fails only that call. The process continues.
    match call.audit() & FG {
        Err(Error::Remote(error)) => println!("audit: panicked is {}: {}", error.is_panic(), error.message()),
        other => println!("unexpected: {other:?}"),
    }

    // Calls that did not run at all, and one that may have. `may_have_executed` says whether calling again is
    // safe, `is_retryable` whether it makes sense.
    let nobody = call.by_name::<u64, _>("withdrew", (30u64,)) & FG;
    let nowhere = call.withdraw(30) & FG.on("savings bank");
    let otherwise = call.withdraw_text("30") & FG;
    let late = call.wait() & FG.timeout(Duration::from_millis(100));
    for error in [nobody.err(), nowhere.err(), otherwise.err(), late.err()].into_iter().flatten() {
        println!("{error}");
        println!(
            "  may have run: {}, worth another try: {}",
            error.may_have_executed(),
            error.is_retryable()
        );
    }

    customer.stop()?;
    bank.stop()
}
