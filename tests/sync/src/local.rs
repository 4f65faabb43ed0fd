//! Shuttle's thread locals with the methods that std has for `LocalKey<Cell<T>>`.

use std::{cell::Cell, fmt};

use shuttle::thread::LocalKey;

/// As `std::thread::LocalKey<Cell<T>>`.
pub struct LocalCell<T: 'static>(&'static LocalKey<Cell<T>>);

impl<T: Copy> LocalCell<T> {
    #[doc(hidden)]
    pub const fn new(key: &'static LocalKey<Cell<T>>) -> Self {
        Self(key)
    }

    /// This thread's value.
    pub fn get(&'static self) -> T {
        self.0.with(Cell::get)
    }

    /// Sets this thread's value; gives the one before.
    pub fn replace(&'static self, value: T) -> T {
        self.0.with(|cell| cell.replace(value))
    }

    /// Sets this thread's value.
    pub fn set(&'static self, value: T) {
        self.0.with(|cell| cell.set(value));
    }
}

impl<T> fmt::Debug for LocalCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCell").finish_non_exhaustive()
    }
}

/// As `std::thread_local`, for cells alone.
#[macro_export]
macro_rules! thread_local {
    ($($(#[$attribute:meta])* static $name:ident: Cell<$value:ty> = const { $first:expr };)*) => {$(
        $(#[$attribute])*
        static $name: $crate::LocalCell<$value> = {
            $crate::shuttle::thread_local! { static KEY: Cell<$value> = const { $first } }
            $crate::LocalCell::new(&KEY)
        };
    )*};
}
