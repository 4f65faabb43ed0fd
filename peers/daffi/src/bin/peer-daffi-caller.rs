//! daffi, as its users use it: typed calls of `#[callback]` functions, all options at their defaults.
//!
//! The controller is the program `daffi-controller`, or runs in the callee's or the caller's process. This program offers
//! no callbacks itself.

use std::collections::VecDeque;

use daffi::{BG, BROADCAST, Bytes, Caller, FG};
use harness::{Load, Options, Role, Workload, check, payload, run_async};
use peer_daffi::{embedded, node};

#[path = "../remote.rs"]
mod remote;
use remote::{Body, Kind};

/// Payloads above this size are bytes.
const TEXT_BYTES_MAX: usize = 4096;

fn main() {
    let options = Options::from_args();
    assert!(matches!(options.role, Role::Caller), "that is another program");
    let load = options.load();
    if load.size <= TEXT_BYTES_MAX {
        caller::<String>(&options, &load);
    } else {
        caller::<Bytes>(&options, &load);
    }
}

fn caller<B: Body>(options: &Options, load: &Load) {
    let kind = Kind::from_text(options.text("callback"));
    let builder = node(options, "caller").init_controller(embedded(options, "caller"));
    match options.text("caller") {
        "thread" => {
            let g = builder.start().expect("a node");
            g.wait_process("callee 0").expect("the callee");
            call_from_thread::<B>(load, kind, &g.call);
        }
        "tasks" => run_async(async {
            let g = builder.start_async().await.expect("a node");
            g.wait_process_async("callee 0").await.expect("the callee");
            call_from_tasks::<B>(load, kind, &g.call).await;
        }),
        other => panic!("no such caller: {other}"),
    }
}

/// As in a synchronous program, with what is outstanding in the order of the calls.
fn call_from_thread<B: Body>(load: &Load, kind: Kind, caller: &Caller) {
    let size = load.size;
    let call = |number| B::new(payload(size, number)).echo(kind, caller);
    let outstanding = match load.workload {
        Workload::OneByOne => {
            return load.one_by_one(|number| outcome::<B>(call(number) & FG, size, number));
        }
        Workload::Broadcast(callees) => {
            return load.one_by_one(|number| {
                let gathered =
                    (call(number) & BROADCAST.return_result()).map_err(|error| error.to_string())?;
                all(gathered, callees, size, number)
            });
        }
        Workload::Outstanding(outstanding) => outstanding as u64,
    };
    let mut window = load.window();
    let mut results: VecDeque<_> = (0..outstanding).map(|number| call(number) & BG).collect();
    for number in 0.. {
        let result = results.pop_front().expect("as many as are outstanding");
        outcome::<B>(result.get(), size, number).expect("each call has its reply");
        if !window.completed(1) {
            break;
        }
        results.push_back(call(number + outstanding) & BG);
    }
}

/// As in an asynchronous program.
async fn call_from_tasks<B: Body>(load: &Load, kind: Kind, caller: &Caller) {
    let (size, shared) = (load.size, caller.clone());
    let call = move |number| {
        let call = B::new(payload(size, number)).echo(kind, &shared);
        async move { outcome::<B>(call.await, size, number) }
    };
    match load.workload {
        Workload::OneByOne => load.one_by_one_async(call).await,
        Workload::Outstanding(_) => load.tasks(call).await,
        Workload::Broadcast(callees) => {
            load.one_by_one_async(async |number| {
                let call = B::new(payload(size, number)).echo(kind, caller);
                let gathered = call.broadcast_results_async().await.map_err(|error| error.to_string())?;
                all(gathered, callees, size, number)
            })
            .await;
        }
    }
}

fn outcome<B: Body>(result: daffi::Result<B>, size: usize, number: u64) -> Result<(), String> {
    check(result.map_err(|error| error.to_string())?.as_bytes(), size, number)
}

fn all<B: Body>(
    gathered: impl IntoIterator<Item = (String, daffi::Result<B>)>,
    callees: usize,
    size: usize,
    number: u64,
) -> Result<(), String> {
    let mut answered = 0;
    for (_, result) in gathered {
        outcome(result, size, number)?;
        answered += 1;
    }
    if answered == callees { Ok(()) } else { Err(format!("{answered} of {callees} callees answered")) }
}
