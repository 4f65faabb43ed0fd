//! Structs with one instance per process, whose methods are callbacks.

use std::{
    any::{Any, type_name},
    fmt,
    sync::{Arc, OnceLock, Weak},
};

use daffi_core::{
    Error,
    fault::{Fault, FaultKind},
};
use parking_lot::Mutex;

use crate::callback::InstanceState;

/// A struct with `#[callback]`, of which a process has at most one instance.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not declared as a singleton",
    label = "no `#[callback]` on this struct",
    note = "write `#[callback]` on the struct too: its methods with `&self` are called on its one instance"
)]
pub trait Singleton: Any + Send + Sync {
    /// Returns where the instance is kept.
    fn cell() -> &'static Cell;
}

/// The place of one singleton's instance.
#[derive(Debug)]
pub struct Cell {
    name: &'static str,
    // Type-erased, so that a struct that cannot be shared is refused once, where it says `#[callback]`.
    instance: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Cell {
    /// Returns the empty place of the struct `name`.
    pub const fn new(name: &'static str) -> Self {
        Self { name, instance: OnceLock::new() }
    }

    /// Makes `instance` the instance, and notifies the running nodes.
    ///
    /// # Errors
    /// [`Error::SingletonExists`] if there is one already.
    pub fn register<T: Singleton>(&self, instance: T) -> Result<Arc<T>, Error> {
        let instance = Arc::new(instance);
        self.instance
            .set(instance.clone())
            .map_err(|_| Error::SingletonExists { name: self.name.to_owned() })?;
        notify();
        Ok(instance)
    }

    /// Returns the instance, if it is registered.
    pub fn instance<T: Singleton>(&self) -> Option<Arc<T>> {
        self.instance.get()?.clone().downcast().ok()
    }
}

/// A singleton's instance, registered or not yet, as its methods' handlers access it.
pub struct Instance<T> {
    cell: fn() -> &'static Cell,
    get: fn() -> Option<Arc<T>>,
    exists: fn() -> bool,
}

/// Returns the instance of `T`, registered or not yet.
// The only place that requires `Singleton`, so that a struct without `#[callback]` causes one error, not one
// per method.
pub fn instance<T: Singleton>() -> Instance<T> {
    Instance { cell: T::cell, get: || T::cell().instance(), exists: || T::cell().instance.get().is_some() }
}

impl<T> Instance<T> {
    /// Returns the instance.
    ///
    /// # Errors
    /// [`FaultKind::NoInstance`] if there is none yet.
    pub fn get(self) -> Result<Arc<T>, Box<Fault>> {
        (self.get)().ok_or_else(|| {
            let name = (self.cell)().name;
            Fault::new(FaultKind::NoInstance, format!("{name} has no instance yet")).into()
        })
    }

    pub(crate) fn state(self) -> InstanceState {
        InstanceState { name: (self.cell)().name, exists: self.exists }
    }
}

impl<T> Clone for Instance<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Instance<T> {}

impl<T> fmt::Debug for Instance<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instance<{}>", type_name::<T>())
    }
}

/// A function that is called when an instance is registered.
pub(crate) type Listener = dyn Fn() + Send + Sync;

/// Calls `listener` after each registration of an instance, as long as it is alive.
///
/// First listen, and then look which callbacks are callable: an instance registered in between is notified,
/// or seen, or both. A listener is called on the registering thread, with no lock held.
pub(crate) fn on_register(listener: Weak<Listener>) {
    let mut listeners = LISTENERS.lock();
    listeners.retain(|listener| listener.strong_count() > 0);
    listeners.push(listener);
}

fn notify() {
    let listeners: Vec<_> = LISTENERS.lock().iter().filter_map(Weak::upgrade).collect();
    for listener in listeners {
        listener();
    }
}

/// The listeners of all nodes of the process. Bounded by their number, since dead ones are removed when
/// another is added.
static LISTENERS: Mutex<Vec<Weak<Listener>>> = Mutex::new(Vec::new());

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    struct Group(&'static str);

    static CELL: Cell = Cell::new("Group");

    impl Singleton for Group {
        fn cell() -> &'static Cell {
            &CELL
        }
    }

    #[test]
    fn an_instance_is_registered_once_and_told_to_who_listens() {
        let told = Arc::new(AtomicUsize::new(0));
        let counter = told.clone();
        let listener: Arc<Listener> = Arc::new(move || {
            counter.fetch_add(1, Relaxed);
        });
        on_register(Arc::downgrade(&listener));

        let group = instance::<Group>();
        assert!(!(group.state().exists)());
        assert_eq!(group.get().map(|_| ()).unwrap_err().kind, FaultKind::NoInstance);
        assert_eq!(CELL.register(Group("first")).unwrap().0, "first");
        assert_eq!(told.load(Relaxed), 1);
        assert!((group.state().exists)());

        let error = CELL.register(Group("second")).map(|_| ()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Group is a singleton and already has an instance: use Group::instance() instead of registering another"
        );
        assert_eq!(CELL.instance::<Group>().unwrap().0, "first");
        assert_eq!(told.load(Relaxed), 1);
    }
}
