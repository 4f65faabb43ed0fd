//! What can be called, and how the payloads of a comparison do it.

use daffi::{Bytes, Call, Caller, fetcher};

#[fetcher]
trait Echo {
    fn async_text(text: String) -> String;
    fn sync_text(text: String) -> String;
    fn inline_text(text: String) -> String;
    fn async_bytes(bytes: Bytes) -> Bytes;
    fn sync_bytes(bytes: Bytes) -> Bytes;
    fn inline_bytes(bytes: Bytes) -> Bytes;
}

/// Which kind of callback is called.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Async,
    Sync,
    Inline,
}

impl Kind {
    /// As the comparison calls it.
    ///
    /// # Panics
    /// If it does not.
    pub fn from_text(text: &str) -> Self {
        match text {
            "async" => Self::Async,
            "fn" => Self::Sync,
            "inline" => Self::Inline,
            other => panic!("no such kind of callback: {other}"),
        }
    }
}

/// What a call takes and gives back.
pub trait Body: serde::de::DeserializeOwned + Send + 'static {
    fn new(payload: Vec<u8>) -> Self;
    fn echo(self, kind: Kind, caller: &Caller) -> Call<Self>;
    fn as_bytes(&self) -> &[u8];
}

impl Body for String {
    fn new(payload: Vec<u8>) -> Self {
        Self::from_utf8(payload).expect("payloads are printable")
    }

    fn echo(self, kind: Kind, caller: &Caller) -> Call<Self> {
        match kind {
            Kind::Async => caller.async_text(self),
            Kind::Sync => caller.sync_text(self),
            Kind::Inline => caller.inline_text(self),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Body for Bytes {
    fn new(payload: Vec<u8>) -> Self {
        payload.into()
    }

    fn echo(self, kind: Kind, caller: &Caller) -> Call<Self> {
        match kind {
            Kind::Async => caller.async_bytes(self),
            Kind::Sync => caller.sync_bytes(self),
            Kind::Inline => caller.inline_bytes(self),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self
    }
}
