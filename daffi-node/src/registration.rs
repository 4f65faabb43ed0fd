//! The callbacks that `#[callback]` registers in the program, wherever they are written.

use crate::callback::Callback;

/// What one `#[callback]` registers: a function that makes its callbacks, one for a function, several for an
/// `impl`.
#[derive(Debug)]
pub struct Registration {
    fill: fn(&mut Vec<Callback>),
}

impl Registration {
    /// Returns a registration of the callbacks that `fill` appends.
    pub const fn new(fill: fn(&mut Vec<Callback>)) -> Self {
        Self { fill }
    }
}

inventory::collect!(Registration);

/// Returns all callbacks registered in the program, in no fixed order.
///
/// Each call makes them anew, with their signatures: call it once per `Global`.
pub fn linked() -> impl Iterator<Item = Callback> {
    let mut callbacks = Vec::new();
    for registration in inventory::iter::<Registration> {
        (registration.fill)(&mut callbacks);
    }
    callbacks.into_iter()
}
