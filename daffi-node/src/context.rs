//! What a running callback knows of its call.

/// What a running callback knows of its call. Taken as a parameter of type `&Context`.
#[derive(Debug, Clone)]
pub struct Context {
    _private: (),
}
