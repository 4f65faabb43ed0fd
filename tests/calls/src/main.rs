//! A controller, a callee and a caller, each a process of its own: `.ci/syscalls` counts what calls cost.

use std::{collections::VecDeque, env, error::Error, process::ExitCode};

use daffi::{Address, AsyncResult, BG, Global, callback, fetcher};

#[fetcher]
trait Callee {
    fn echo(text: String) -> String;
}

#[callback]
async fn echo(text: String) -> String {
    text
}

const TEXT: &str = "thirty-two bytes of text as such";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["controller", address] => controller(address),
        ["callee", address] => callee(address),
        ["caller", address, outstanding, calls] => call_from_tasks(address, outstanding, calls),
        ["thread", address, outstanding, calls] => call_from_thread(address, outstanding, calls),
        _ => {
            eprintln!("controller ADDRESS\ncallee ADDRESS\n{{caller|thread}} ADDRESS OUTSTANDING CALLS");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = done {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Only routes.
fn controller(address: &str) -> Result<(), Box<dyn Error>> {
    let builder = Global::builder().init_controller(true).init_node(false);
    let g = builder.address(address.parse::<Address>()?).start()?;
    println!("ready");
    Ok(g.join()?)
}

/// Only serves.
fn callee(address: &str) -> Result<(), Box<dyn Error>> {
    let g = Global::builder().process_name("callee").address(address.parse::<Address>()?).start()?;
    println!("ready");
    Ok(g.join()?)
}

/// Makes so many calls, so many of them at a time, each in a task.
#[tokio::main(flavor = "current_thread")]
async fn call_from_tasks(address: &str, outstanding: &str, calls: &str) -> Result<(), Box<dyn Error>> {
    let address = address.parse::<Address>()?;
    let builder = Global::builder().process_name("caller").address(address).link_time_callbacks(false);
    let g = builder.start_async().await?;
    let outstanding: usize = outstanding.parse()?;
    let each = calls.parse::<usize>()? / outstanding;
    g.wait_function_async("echo").await?;
    let tasks: Vec<_> = (0..outstanding)
        .map(|_| {
            let g = g.clone();
            tokio::spawn(async move {
                for _ in 0..each {
                    let echoed = g.call.echo(TEXT.to_owned()).await?;
                    assert_eq!(echoed, TEXT);
                }
                Ok::<_, daffi::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    println!("{} calls", each * outstanding);
    Ok(g.stop_async().await?)
}

/// The same from one thread, which waits for the results in the order of the calls.
fn call_from_thread(address: &str, outstanding: &str, calls: &str) -> Result<(), Box<dyn Error>> {
    let address = address.parse::<Address>()?;
    let builder = Global::builder().process_name("caller").address(address).link_time_callbacks(false);
    let g = builder.start()?;
    let (outstanding, calls): (usize, usize) = (outstanding.parse()?, calls.parse()?);
    g.wait_function("echo")?;
    let mut results = VecDeque::with_capacity(outstanding);
    for _ in 0..calls {
        if results.len() == outstanding {
            results.pop_front().map(check).transpose()?;
        }
        results.push_back(g.call.echo(TEXT.to_owned()) & BG);
    }
    results.into_iter().try_for_each(check)?;
    println!("{calls} calls");
    Ok(g.stop()?)
}

fn check(result: AsyncResult<String>) -> daffi::Result<()> {
    assert_eq!(result.get()?, TEXT);
    Ok(())
}
