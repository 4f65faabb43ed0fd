//! `g.call`: where calls are made.

use std::{borrow::Cow, marker::PhantomData, sync::Arc, time::Instant};

use daffi_core::{Error, Result, limits::HOPS_MAX, payload::Codec, signature::Signature};
use serde::{Serialize, de::DeserializeOwned};

use crate::{call::Call, context::current_hops, node::Node};

/// Makes calls: the field `call` of a `Global`, and `ctx.call` in a callback.
///
/// Typed calls come from `#[fetcher]`; anything can be called with [`by_name`](Self::by_name). A `Caller` is
/// cheap to clone, and can be used from any thread.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `None` for a controller without a node.
    node: Option<Arc<Node>>,
    /// The callback that makes nested calls through this.
    parent: Option<Parent>,
}

/// What a nested call inherits.
#[derive(Debug, Clone, Copy)]
struct Parent {
    hops: u8,
    deadline: Option<Instant>,
}

impl Caller {
    pub(crate) fn new(node: Option<Arc<Node>>) -> Self {
        Self { node, parent: None }
    }

    pub(crate) fn nested(node: Arc<Node>, hops: u8, deadline: Option<Instant>) -> Self {
        Self { node: Some(node), parent: Some(Parent { hops, deadline }) }
    }

    /// Returns a caller without a node.
    pub(crate) fn detached() -> Self {
        Self::new(None)
    }

    /// Calls a callback by name, with a tuple of arguments: `()` for none, `(x,)` for one.
    ///
    /// The result type is inferred, or given as the first type parameter. The types of both sides are compared
    /// before anything runs: arguments by the names of their types alone, whereas a fetcher compares fields too.
    ///
    /// ```no_run
    /// # use daffi_node as daffi;
    /// # fn main() -> daffi::Result<()> {
    /// use daffi::{FG, Global};
    ///
    /// let g = Global::builder().start()?;
    /// let delta: i64 = (g.call.by_name("func1", (10i64, 3i64)) & FG)?;
    /// let same = (g.call.by_name::<i64, _>("func1", (10i64, 3i64)) & FG)?;
    /// # Ok(()) }
    /// ```
    pub fn by_name<R: DeserializeOwned + 'static, A: Serialize>(
        &self,
        callback: impl Into<Cow<'static, str>>,
        arguments: A,
    ) -> Call<R> {
        self.make(callback.into(), Signature::of_call::<A, R>(), &arguments)
    }

    /// The call made by an expansion of `#[fetcher]`. No callback has this name, which would hide the fetcher
    /// for it.
    #[doc(hidden)]
    pub fn __daffi_call<R, A: Serialize>(
        &self,
        callback: &'static str,
        signature: &'static Signature,
        arguments: A,
    ) -> Call<R> {
        self.make(Cow::Borrowed(callback), signature, &arguments)
    }

    fn make<R>(
        &self,
        callback: Cow<'static, str>,
        signature: &'static Signature,
        arguments: &impl Serialize,
    ) -> Call<R> {
        let arguments = Codec::Bincode.encode_apart(arguments).map_err(|error| {
            let reason = error.to_string();
            Box::new(Error::Encode { what: "arguments", callback: callback.to_string(), reason })
        });
        Call {
            caller: self.clone(),
            callback,
            signature,
            arguments,
            timeout: None,
            eta: None,
            target: Default::default(),
            result: PhantomData,
        }
    }

    /// Returns the calling node.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn node(&self) -> Result<&Arc<Node>> {
        self.node.as_ref().ok_or_else(Self::no_node)
    }

    /// Like [`node`](Self::node), by value.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn into_node(self) -> Result<Arc<Node>> {
        self.node.ok_or_else(Self::no_node)
    }

    fn no_node() -> Error {
        Error::Configuration {
            problem: "this Global runs a controller alone and cannot call: leave out init_node(false)"
                .to_owned(),
        }
    }

    /// Returns the nesting depth of a call made now.
    ///
    /// # Errors
    /// If that is too deep.
    pub(crate) fn hops(&self, callback: &str) -> Result<u8> {
        let parent = self.parent.map_or(0, |parent| parent.hops).max(current_hops());
        if parent < HOPS_MAX {
            Ok(parent + 1)
        } else {
            Err(Error::HopLimit { callback: callback.to_owned(), limit: HOPS_MAX })
        }
    }

    /// Returns when the callback that makes nested calls has to be done itself.
    pub(crate) fn parent_deadline(&self) -> Option<Instant> {
        self.parent.and_then(|parent| parent.deadline)
    }
}
