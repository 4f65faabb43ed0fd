//! Callbacks that `#[callback]` leaves in the program, wherever they are written.

use crate::callback::Callback;

/// What one `#[callback]` leaves: a function that makes its callbacks, one for a function, several for an `impl`.
#[derive(Debug)]
pub struct Registration {
    fill: fn(&mut Vec<Callback>),
}

impl Registration {
    /// A registration of what `fill` appends.
    pub const fn new(fill: fn(&mut Vec<Callback>)) -> Self {
        Self { fill }
    }
}

inventory::collect!(Registration);

/// All callbacks of the program, in no fixed order.
///
/// Each use makes them anew, with their signatures: use it once for each `Global`.
pub fn linked() -> impl Iterator<Item = Callback> {
    let mut callbacks = Vec::new();
    for registration in inventory::iter::<Registration> {
        (registration.fill)(&mut callbacks);
    }
    callbacks.into_iter()
}
