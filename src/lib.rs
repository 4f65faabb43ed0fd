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

/// The controller that `init_controller(true)` starts, unless another one is linked instead.
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
/// Every node of the process offers them under their names, unless it is built without link-time callbacks. They stay
/// ordinary functions, too. A `fn` may block. An `async fn` shares its thread with others and must not.
///
/// One that has shown to be quick, time after time, runs where its calls arrive, which spares each call two wake-ups;
/// all others have threads of their own. Should a quick one block after all, another thread goes on with what it holds
/// up within two milliseconds.
///
/// **Arguments** are of any type with `serde::Deserialize`, up to 16 of them, and owned: `String`, not `&str`. **Results** are
/// of any type with `serde::Serialize`. For large data there is [`Bytes`], which is not copied.
///
/// A `&Context` parameter, anywhere in the list, is supplied by daffi and not sent: it is the [`Context`] of the call. The attribute
/// recognises it by its name, so do not rename it on import.
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
/// A callback that returns `Result<T, E>`, under whatever alias, sends its `T`. The caller sees an `Err` as
/// [`Error::Remote`], with what its `Display` says and the chain of its sources. Where `E` is `Serialize` it travels as
/// well, and [`Error::downcast`] has it.
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
/// `#[callback]` on a struct says that a process has one instance of it, and on an `impl` block that every `pub` method in it
/// is a callback, unless its name begins with an underscore.
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
/// The attribute gives the struct `register` and `instance`, as visible as the struct is. `register` makes an instance *the*
/// instance and tells the controller that the methods can be called; before that, a call is answered with
/// [`Error::NoInstance`]. Methods take `&self` or `self: Arc<Self>`, and may be `async`. Several calls may run at a time,
/// so what changes goes into a `Mutex` or an atomic. A constructor belongs in another `impl` block, without the
/// attribute. There may be several blocks, with it and without.
///
/// # Options
///
/// | | on | |
/// |---|---|---|
/// | `name = "…"` | a function | the name to offer it under |
/// | `prefix = "…"` | an `impl` | stands in front of the methods' names, as it is |
/// | `inline` | both | runs an `fn`, or the first poll of an `async fn`, where its call arrives from the first call on, however long it takes; it must not wait for calls of its own |
/// | `max_concurrency = n` | both | at most `n` calls run at a time, of each method; 1 keeps their order |
/// | `crate = path` | all | where daffi is, if not at `::daffi` |
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
/// A crate that nothing names is not linked, and its callbacks are not there. Name it once:
///
/// ```ignore
/// use my_callbacks as _;
/// ```
///
/// In the unit tests of a crate named `daffi` there is no `::daffi`: write `extern crate self as daffi;`.
pub use daffi_macros::callback;

/// Declares what other processes offer, so that it can be called as if it were here.
///
/// A trait has the functions of one peer. Its name is free; it turns into an extension trait of [`Caller`], so it has to be
/// in scope where the calls are made. Each function returns a [`Call`], which is sent once it gets a modifier.
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
/// One function does not need a trait:
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
/// **Arguments** are encoded when the function is called, so they may be lent where the callback wants them owned: `&str`
/// for `String`, `&[T]` for `Vec<T>`, `&T` for `T`; each has to be `serde::Serialize`. A `&Context` of the callback is left out.
/// **Results** are owned and `serde::Deserialize`. For a callback that returns `Result<T, E>`, write `-> T`: its `Err` comes as the
/// error of the call.
///
/// A fetcher and its callback must agree on the types, which is checked at the first call, before anything is decoded: two
/// structs of one name with different fields are [`Error::SignatureMismatch`]. Parameters may have other names.
///
/// # Options
///
/// | | on | |
/// |---|---|---|
/// | `name = "…"` | a function, alone or in a trait | the callback's name, if the function has another |
/// | `prefix = "…"` | a trait | stands in front of the functions' names, as it is; not of a `name` |
/// | `crate = path` | a trait, a function alone | where daffi is, if not at `::daffi` |
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
/// Two traits in scope with a function of one name are ambiguous, and the compiler says so. Write one trait for each
/// peer, import it where it is used, or say which one is meant: `Proc2::func1(&g.call, 10, 3)`.
pub use daffi_macros::fetcher;

#[doc(hidden)]
pub mod __private {
    //! What expansions name. No public API.
    pub use daffi_node::private::*;
}
