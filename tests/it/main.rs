//! Nodes that call each other through a controller, all of them in this process.

mod calls;
#[cfg(unix)]
mod cancelling;
mod context;
#[cfg(unix)]
mod drops;
mod errors;
mod modifiers;
mod payloads;
#[cfg(unix)]
mod rogue_caller;
#[cfg(unix)]
mod rogue_controller;
mod singletons;
mod support;
mod together;
