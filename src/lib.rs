#![doc = include_str!("../README.md")]

pub use daffi_core::{
    Address, AddressError, Error, Limits, RemoteError, Result,
    answer::{CallbackInfo, Process},
    controller::Strategy,
    payload::Bytes,
};
pub use daffi_node::{
    AsyncResult, BG, BROADCAST, Call, CallFuture, Caller, Closure, Context, FG, Global, GlobalBuilder,
    Multicast, NO_RETURN, PERIOD, ResultFuture, ScheduledTask, TaskState, TaskStatus, Unicast, modifier,
};

/// The controller that `init_controller(true)` starts, unless a different one is linked.
#[cfg(feature = "controller")]
pub use daffi_controller as controller;

/// Offers a function, or the methods of a struct, to other processes.
///
/// # Functions
///
/// ```
/// use daffi::callback;
///
/// /// Add 2 numbers and return sum
/// #[callback]
/// fn add(a: i64, b: i64) -> i64 {
///     a + b
/// }
///
/// #[callback]
/// async fn subtract(a: i64, b: i64) -> i64 {
///     a - b
/// }
/// ```
///
/// Every node of the process offers the function under its name, unless the node is built without link-time
/// callbacks. It remains an ordinary function, too. A `fn` may block. An `async fn` shares its thread with
/// others and must not.
///
/// A callback that has repeatedly proved quick runs on the thread that receives its calls, which saves two
/// wake-ups per call; all others run on separate threads. If a quick callback does block, another thread
/// takes over the work that it holds up, within two milliseconds.
///
/// **Arguments** can be of any type that implements `serde::Deserialize`, up to 16 of them, and are owned:
/// `String`, not `&str`. **Results** can be of any type that implements `serde::Serialize`. For large data
/// use [`Bytes`], which is not copied.
///
/// A `&Context` parameter, anywhere in the list, is supplied by daffi and not sent: it is the [`Context`] of
/// the call. The attribute recognises it by its name, so do not rename it on import.
///
/// ```
/// use daffi::{Context, callback};
///
/// #[callback]
/// fn count(context: &Context, limit: u64) -> u64 {
///     let _ = context; // whether the caller still waits, calls onwards, …
///     limit
/// }
/// ```
///
/// # Errors
///
/// A callback that returns `Result<T, E>`, under any alias, sends its `T`. The caller sees an `Err` as
/// [`Error::Remote`], with its `Display` text and its chain of sources. If `E` is `Serialize`, the error
/// itself is sent as well, and [`Error::downcast`] returns it.
///
/// ```
/// use daffi::callback;
///
/// #[callback]
/// fn read(path: String) -> std::io::Result<Vec<u8>> {
///     std::fs::read(path)
/// }
/// ```
///
/// # Singletons
///
/// `#[callback]` on a struct declares that a process has one instance of it. On an `impl` block, it makes
/// every `pub` method a callback, unless the method's name begins with an underscore.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use daffi::callback;
///
/// #[callback]
/// struct Counter {
///     count: AtomicU64,
/// }
///
/// #[callback]
/// impl Counter {
///     /// Callable once there is an instance.
///     pub fn increment(&self) -> u64 {
///         self.count.fetch_add(1, Ordering::Relaxed) + 1
///     }
///
///     /// Callable at once.
///     pub fn unit() -> String {
///         "pieces".to_owned()
///     }
///
///     fn not_a_callback(&mut self) {}
/// }
///
/// assert!(Counter::instance().is_none());
/// let counter = Counter { count: AtomicU64::new(0) }.register()?;
/// assert_eq!(counter.increment(), 1);
/// assert_eq!(Counter::instance().unwrap().increment(), 2);
/// // There is one already.
/// assert!(Counter { count: AtomicU64::new(0) }.register().is_err());
/// # Ok::<(), daffi::Error>(())
/// ```
///
/// The attribute gives the struct `register` and `instance`, with the struct's own visibility. `register`
/// makes a value *the* instance and tells the controller that methods with a receiver can be called; until
/// then, calls to them fail with [`Error::NoInstance`]. Methods take `&self` or `self: Arc<Self>`, and may be
/// `async`. Several calls may run at the same time, so keep mutable state in a `Mutex` or an atomic. A
/// constructor belongs in a separate `impl` block without the attribute. A struct may have several blocks,
/// with or without it.
///
/// # Options
///
/// | | on | |
/// |---|---|---|
/// | `name = "…"` | a function | the name under which it is offered |
/// | `prefix = "…"` | an `impl` | put in front of the methods' names, verbatim |
/// | `inline` | both | always runs an `fn`, or the first poll of an `async fn`, on the thread that receives its call, starting with the first call and however long it takes; it must not wait for calls it makes itself |
/// | `max_concurrency = n` | both | at most `n` calls of each function or method run at a time; 1 preserves their order |
/// | `crate = path` | all | the path of daffi, if not `::daffi` |
///
/// ```
/// use daffi::callback;
///
/// #[callback(name = "math.double", inline)]
/// fn double(a: i64) -> i64 {
///     2 * a
/// }
/// ```
///
/// # Callbacks in other crates
///
/// A crate that is never named is not linked, so its callbacks are missing. Name it once:
///
/// ```ignore
/// use my_callbacks as _;
/// ```
///
/// In the unit tests of a crate named `daffi` there is no `::daffi`: write `extern crate self as daffi;`.
pub use daffi_macros::callback;

/// Declares what other processes offer, so that it can be called like a local function.
///
/// A trait declares the functions of one peer. Its name is arbitrary; it becomes an extension trait of
/// [`Caller`], so it must be in scope where the calls are made. Each function returns a [`Call`], which is
/// sent once it gets a modifier.
///
/// ```
/// use daffi::{Call, Caller, fetcher};
///
/// /// What the process `proc2` offers.
/// #[fetcher]
/// trait Proc2 {
///     /// Subtracts 2 numbers and return delta
///     fn func1(a: i64, b: i64) -> i64;
///     fn func2();
///     fn find(name: &str, tags: &[&str]) -> Option<u64>;
/// }
///
/// fn calls(call: &Caller) {
///     let delta: Call<i64> = call.func1(10, 3);
///     let found: Call<Option<u64>> = call.find("a name", &[]);
/// }
/// ```
///
/// A single function does not need a trait:
///
/// ```
/// mod peers {
///     use daffi::fetcher;
///
///     #[fetcher]
///     pub fn func1(a: i64, b: i64) -> i64;
/// }
///
/// // The trait that it turns into has the function's name, and so it is imported.
/// use peers::func1;
///
/// fn calls(call: &daffi::Caller) {
///     let delta = call.func1(10, 3);
/// }
/// ```
///
/// **Arguments** are encoded when the function is called, so they may be borrowed where the callback takes
/// them owned: `&str` for `String`, `&[T]` for `Vec<T>`, `&T` for `T`; each must implement
/// `serde::Serialize`. Leave out a callback's `&Context`. **Results** are owned and implement
/// `serde::Deserialize`. For a callback that returns `Result<T, E>`, write `-> T`: its `Err` becomes the
/// error of the call.
///
/// A fetcher and its callback must agree on the types. This is checked on the first call, before anything is
/// decoded: two structs of the same name with different fields give [`Error::SignatureMismatch`]. Parameter
/// names may differ.
///
/// # Options
///
/// | | on | |
/// |---|---|---|
/// | `name = "…"` | a function, alone or in a trait | the callback's name, if it differs from the function's |
/// | `prefix = "…"` | a trait | put in front of the functions' names, verbatim, but not in front of a `name` |
/// | `crate = path` | a trait, a function alone | the path of daffi, if not `::daffi` |
///
/// ```
/// # use daffi::fetcher;
/// #[fetcher(prefix = "math.")]
/// trait Math {
///     /// Calls `math.double`.
///     fn double(a: i64) -> i64;
///     /// Calls `triple`.
///     #[fetcher(name = "triple")]
///     fn three_times(a: i64) -> i64;
/// }
/// ```
///
/// # Several peers
///
/// If two traits in scope have a function of the same name, the call is ambiguous and the compiler says so.
/// Write one trait per peer, import it where it is used, or name the one you mean:
/// `Proc2::func1(&g.call, 10, 3)`.
pub use daffi_macros::fetcher;

#[doc(hidden)]
pub mod __private {
    //! What macro expansions name. Not public API.
    pub use daffi_node::private::*;
}
