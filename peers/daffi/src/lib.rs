//! What the programs of both ends have in common.

use daffi::{Address, Global, GlobalBuilder};
use harness::Options;

/// A node named `name`.
///
/// # Panics
/// If there is no address among the options.
pub fn node(options: &Options, name: &str) -> GlobalBuilder {
    let address: Address = options.address().parse().expect("an address");
    Global::builder().process_name(name).address(address)
}

/// Whether the process of this role has the controller.
pub fn embedded(options: &Options, role: &str) -> bool {
    options.text("controller") == role
}
