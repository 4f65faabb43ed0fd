//! What a running callback knows of its call.

/// What a running callback knows of its call. Taken as a parameter of type `&Context`.
#[derive(Debug, Clone)]
pub struct Context {
    _private: (),
}

impl Context {
    /// The context of no call, for tests of callbacks alone.
    #[doc(hidden)]
    pub fn detached() -> Self {
        Self { _private: () }
    }
}
