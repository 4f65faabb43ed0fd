//! Functions that other processes call, as the executor sees them.

use std::{borrow::Cow, fmt, future::Future, num::NonZeroUsize, pin::Pin, sync::Arc};

use bytes::Bytes;
use daffi_core::{
    fault::Fault,
    payload::{Codec, Encoded},
    signature::Signature,
};

use crate::{Context, singleton::Instance};

/// A function that other processes call: its name, its types, and how it runs.
#[derive(Clone)]
pub struct Callback {
    pub(crate) name: Cow<'static, str>,
    pub(crate) signature: Signature,
    pub(crate) source: String,
    pub(crate) doc: &'static str,
    pub(crate) options: CallbackOptions,
    pub(crate) handler: Handler,
    pub(crate) instance: Option<InstanceState>,
}

/// How a callback wants to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallbackOptions {
    /// On the I/O thread, where its call arrives.
    pub inline: bool,
    /// How many calls may run at a time; `None` for any number.
    pub max_concurrency: Option<NonZeroUsize>,
}

/// The function itself, behind the codec.
#[derive(Clone)]
pub enum Handler {
    /// May block.
    Sync(Function<Outcome>),
    /// Does not block, except in its first poll if it decodes much.
    Async(Function<BoxFuture<Outcome>>),
}

/// Produces a `T` for a call. Most callbacks ask nothing about their call, and pay nothing for the
/// possibility.
pub enum Function<T> {
    /// Takes the arguments only.
    Plain(Arc<dyn Fn(Invocation) -> T + Send + Sync>),
    /// Takes the context as well.
    WithContext(Arc<dyn Fn(Invocation, Context) -> T + Send + Sync>),
}

/// One call, as its callback receives it.
#[derive(Debug)]
pub struct Invocation {
    /// The arguments, encoded.
    pub body: Bytes,
    /// The encoding of the arguments, and of the result.
    pub codec: Codec,
}

/// The encoded result, or why there is none. The executor fills in the fault's `node`.
pub type Outcome = Result<Encoded, Box<Fault>>;

/// A future run by the executor.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The singleton that a callback is a method of.
#[derive(Clone, Copy)]
pub(crate) struct InstanceState {
    pub(crate) name: &'static str,
    pub(crate) exists: fn() -> bool,
}

impl Callback {
    /// Returns a callback with this name, without options.
    pub fn new(name: impl Into<Cow<'static, str>>, signature: Signature, handler: Handler) -> Self {
        Self {
            name: name.into(),
            signature,
            source: String::new(),
            doc: "",
            options: CallbackOptions::default(),
            handler,
            instance: None,
        }
    }

    /// Sets where the callback is written, as in `src/main.rs:12`.
    #[must_use]
    pub fn written_at(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// Sets the callback's doc comment.
    #[must_use]
    pub fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    /// Makes the callback run on the I/O thread.
    #[must_use]
    pub fn inline(mut self) -> Self {
        self.options.inline = true;
        self
    }

    /// Limits how many calls run at a time. 0 is taken as 1.
    #[must_use]
    pub fn max_concurrency(mut self, limit: usize) -> Self {
        self.options.max_concurrency = Some(NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN));
        self
    }

    /// Makes the callback a method of a singleton.
    #[must_use]
    pub fn method_of<T>(mut self, instance: Instance<T>) -> Self {
        self.instance = Some(instance.state());
        self
    }

    /// Returns the name on the wire.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what it takes and returns.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Returns where it is written, as in `src/main.rs:12`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns its doc comment, empty if it has none.
    pub fn doc_text(&self) -> &str {
        self.doc
    }

    /// Returns how it wants to run.
    pub fn options(&self) -> CallbackOptions {
        self.options
    }

    /// Returns the function that runs.
    pub fn handler(&self) -> &Handler {
        &self.handler
    }

    /// Returns the name of its singleton, if it is a method with a receiver.
    pub fn singleton(&self) -> Option<&'static str> {
        self.instance.map(|instance| instance.name)
    }

    /// Returns whether it can be called now: a method with a receiver only once its instance is registered.
    pub fn is_callable(&self) -> bool {
        self.instance.is_none_or(|instance| (instance.exists)())
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback")
            .field("name", &self.name)
            .field("signature", &self.signature.text())
            .field("source", &self.source)
            .field("options", &self.options)
            .field("handler", &self.handler)
            .field("singleton", &self.singleton())
            .finish_non_exhaustive()
    }
}

impl Handler {
    /// Returns a handler that may block.
    pub fn sync(function: impl Fn(Invocation) -> Outcome + Send + Sync + 'static) -> Self {
        Self::Sync(Function::Plain(Arc::new(function)))
    }

    /// Returns a handler that may block and takes the context.
    pub fn sync_with_context(
        function: impl Fn(Invocation, Context) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self::Sync(Function::WithContext(Arc::new(function)))
    }

    /// Returns a handler that waits without blocking.
    pub fn future(function: impl Fn(Invocation) -> BoxFuture<Outcome> + Send + Sync + 'static) -> Self {
        Self::Async(Function::Plain(Arc::new(function)))
    }

    /// Returns a handler that waits without blocking and takes the context.
    pub fn future_with_context(
        function: impl Fn(Invocation, Context) -> BoxFuture<Outcome> + Send + Sync + 'static,
    ) -> Self {
        Self::Async(Function::WithContext(Arc::new(function)))
    }
}

impl<T> Function<T> {
    /// Calls the function. The context is created only for functions that take it.
    pub fn call(&self, invocation: Invocation, context: impl FnOnce() -> Context) -> T {
        match self {
            Self::Plain(function) => function(invocation),
            Self::WithContext(function) => function(invocation, context()),
        }
    }
}

impl<T> Clone for Function<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Plain(function) => Self::Plain(function.clone()),
            Self::WithContext(function) => Self::WithContext(function.clone()),
        }
    }
}

impl<T> fmt::Debug for Function<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::WithContext(_) => "WithContext",
        })
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync(_) => "Sync",
            Self::Async(_) => "Async",
        })
    }
}
