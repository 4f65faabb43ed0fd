//! A controller in its own process and nodes in others: when a node ends, the others lose nothing.
//!
//! The controller here is a `Global` without a node. The program `daffi-controller` does the same and takes
//! options: `cargo run -p daffi-controller -- --listen tcp://localhost:8888`.

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use daffi::{Address, FG, Global, fetcher};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[fetcher]
trait Worker {
    fn double(a: i64) -> i64;
}

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "controller"] => controller(),
        [_, "worker", name, address] => worker(name, address.parse()?),
        _ => caller(),
    }
}

/// Only routes.
fn controller() -> Result<()> {
    let g = Global::builder().init_controller(true).init_node(false).host("localhost").start()?;
    println!("{}", g.address());
    Ok(g.join()?)
}

/// Only serves.
fn worker(name: &str, address: Address) -> Result<()> {
    let g =
        Global::builder().process_name(name).address(address).callback("double", |a: i64| 2 * a).start()?;
    Ok(g.join()?)
}

/// Starts the others and calls them.
fn caller() -> Result<()> {
    let mut controller = start(&["controller"])?;
    let mut address = String::new();
    let output = controller.0.stdout.take().ok_or("its output is a pipe")?;
    BufReader::new(output).read_line(&mut address)?;
    let address: Address = address.trim().parse()?;

    let g = Global::builder().process_name("caller").address(address.clone()).start()?;
    let first = start(&["worker", "first", &address.to_string()])?;
    g.wait_process("first")?;
    println!("first: 2 * 21 = {}", (g.call.double(21) & FG.on("first"))?);

    let _second = start(&["worker", "second", &address.to_string()])?;
    g.wait_process("second")?;
    for process in g.processes()? {
        println!("{} offers {:?}", process.name, process.callbacks);
    }
    for callback in g.callbacks()? {
        println!("{}{} on {:?}", callback.name, callback.signature, callback.nodes);
    }

    // One worker is killed. Calls go to the other one from then on.
    drop(first);
    while g.processes()?.iter().any(|process| process.name == "first") {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("first is gone: 2 * 22 = {}", (g.call.double(22) & FG)?);
    match g.call.double(23) & FG.on("first") {
        Err(error) => println!("{error}"),
        Ok(_) => println!("unexpected"),
    }
    g.stop()?;
    Ok(())
}

/// A process that ends with this one.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Result<Process> {
    let child = Command::new(env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    Ok(Process(child))
}
