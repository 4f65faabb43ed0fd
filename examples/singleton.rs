//! A struct whose methods other processes call. Each process has one instance of it.

#![allow(unreachable_pub, reason = "`pub` says here which methods are callbacks")]

use std::{sync::Mutex, time::Duration};

use daffi::{FG, Global, callback, fetcher};

/// The shop's till.
#[callback]
struct Till {
    cents: Mutex<u64>,
}

/// Every `pub` method is a callback, unless its name begins with an underscore.
#[callback(prefix = "till.")]
impl Till {
    /// Needs no instance, so it can be called at once.
    pub fn currency() -> String {
        "EUR".to_owned()
    }

    /// Calls come in from many processes at once, so mutable state is behind a lock.
    pub fn pay(&self, cents: u64) -> u64 {
        let mut sum = self.cents.lock().expect("nothing panics while it holds the lock");
        *sum += cents;
        *sum
    }

    fn is_empty(&self) -> bool {
        *self.cents.lock().expect("nothing panics while it holds the lock") == 0
    }
}

/// The same methods, as another process declares them.
#[fetcher(prefix = "till.")]
trait Shop {
    fn currency() -> String;
    fn pay(cents: u64) -> u64;
}

fn main() -> daffi::Result<()> {
    let shop = Global::builder().process_name("shop").init_controller(true).host("localhost").start()?;
    // In the same process only for the example's sake, and so without this program's callbacks.
    let customer = Global::builder()
        .process_name("customer")
        .address(shop.address().clone())
        .link_time_callbacks(false)
        .start()?;

    println!("the currency is {}", (customer.call.currency() & FG)?);
    match customer.call.pay(250) & FG {
        Err(error) => println!("too early: {error}"),
        Ok(sum) => println!("unexpected: {sum}"),
    }

    // From here on there is an instance, and its methods are callable.
    let till = Till { cents: Mutex::new(0) }.register()?;
    customer.wait_function_timeout("till.pay", Duration::from_secs(10))?;
    println!("the till is empty: {}", till.is_empty());
    println!("250 makes {}", (customer.call.pay(250) & FG)?);
    println!("100 makes {}", (customer.call.pay(100) & FG)?);
    println!("the till is empty: {}", till.is_empty());

    // There can be only one instance.
    match (Till { cents: Mutex::new(0) }).register() {
        Err(error) => println!("a second one: {error}"),
        Ok(_) => println!("unexpected"),
    }
    customer.stop()?;
    shop.stop()
}
