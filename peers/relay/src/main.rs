//! What the machine can do at best: a relay that does nothing but pass frames on, and two ends that do nothing but send
//! and receive them. A ceiling, not a way to call functions: there are no names, types, errors or deadlines, and the
//! caller keeps a window of bytes full instead of making calls.

mod callee;
mod caller;
mod frame;
mod relay;
mod socket;

use harness::{Options, Role, idle_nodes};

fn main() {
    let options = Options::from_args();
    match options.role {
        Role::Router => relay::run(&options),
        Role::Callee => callee::run(&options),
        Role::Caller => caller::run(&options),
        Role::Nodes => idle_nodes(&options, |_| callee::join(&options)),
    }
}
