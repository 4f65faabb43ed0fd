//! A function that other processes call, as the executor sees it.

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

/// What gives a `T` for a call. Most ask nothing about their call, and it costs nothing that they could.
pub enum Function<T> {
    /// With the arguments alone.
    Plain(Arc<dyn Fn(Invocation) -> T + Send + Sync>),
    /// With the context as well.
    WithContext(Arc<dyn Fn(Invocation, Context) -> T + Send + Sync>),
}

/// One call, as its callback gets it.
#[derive(Debug)]
pub struct Invocation {
    /// The arguments, encoded.
    pub body: Bytes,
    /// How they are encoded, and the result is to be.
    pub codec: Codec,
}

/// The encoded result, or why there is none. The fault's `node` is filled in by the executor.
pub type Outcome = Result<Encoded, Box<Fault>>;

/// A future of the executor's.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The singleton whose method a callback is.
#[derive(Clone, Copy)]
pub(crate) struct InstanceState {
    pub(crate) name: &'static str,
    pub(crate) exists: fn() -> bool,
}

impl Callback {
    /// A callback of that name, without options.
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

    /// The same callback, written at `source`: `src/main.rs:12`.
    #[must_use]
    pub fn written_at(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// The same callback with its doc comment.
    #[must_use]
    pub fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    /// The same callback, run on the I/O thread.
    #[must_use]
    pub fn inline(mut self) -> Self {
        self.options.inline = true;
        self
    }

    /// The same callback with a bound on the calls that run at a time. 0 is taken as 1.
    #[must_use]
    pub fn max_concurrency(mut self, limit: usize) -> Self {
        self.options.max_concurrency = Some(NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN));
        self
    }

    /// The same callback as a method of a singleton.
    #[must_use]
    pub fn method_of<T>(mut self, instance: Instance<T>) -> Self {
        self.instance = Some(instance.state());
        self
    }

    /// The name on the wire.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it takes and gives back.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Where it is written, as `src/main.rs:12`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its doc comment, empty if it has none.
    pub fn doc_text(&self) -> &str {
        self.doc
    }

    /// How it wants to run.
    pub fn options(&self) -> CallbackOptions {
        self.options
    }

    /// What runs.
    pub fn handler(&self) -> &Handler {
        &self.handler
    }

    /// The name of the singleton whose method it is, if it is one with a receiver.
    pub fn singleton(&self) -> Option<&'static str> {
        self.instance.map(|instance| instance.name)
    }

    /// Whether it can be called now: a method with a receiver only once its instance is registered.
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
    /// A handler that may block.
    pub fn sync(function: impl Fn(Invocation) -> Outcome + Send + Sync + 'static) -> Self {
        Self::Sync(Function::Plain(Arc::new(function)))
    }

    /// A handler that may block, and asks about its call.
    pub fn sync_with_context(
        function: impl Fn(Invocation, Context) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self::Sync(Function::WithContext(Arc::new(function)))
    }

    /// A handler that waits without blocking.
    pub fn future(function: impl Fn(Invocation) -> BoxFuture<Outcome> + Send + Sync + 'static) -> Self {
        Self::Async(Function::Plain(Arc::new(function)))
    }

    /// A handler that waits without blocking, and asks about its call.
    pub fn future_with_context(
        function: impl Fn(Invocation, Context) -> BoxFuture<Outcome> + Send + Sync + 'static,
    ) -> Self {
        Self::Async(Function::WithContext(Arc::new(function)))
    }
}

impl<T> Function<T> {
    /// Calls it. The context is made only for those that take it.
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
