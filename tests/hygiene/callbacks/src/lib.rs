//! Callbacks that nothing names, with daffi renamed, no prelude, and no word of `unsafe`.
#![no_implicit_prelude]
#![forbid(unsafe_code)]
#![deny(missing_docs, unused, unreachable_pub, missing_debug_implementations)]

use ::my_daffi::{Context, callback, fetcher};

/// Names that an expansion might use, as other things.
mod shadows {
    #![allow(dead_code)]
    pub(super) struct Vec;
    pub(super) struct Option;
    pub(super) struct Result;
    pub(super) struct String;
    pub(super) trait Send {}
    pub(super) mod std {}
    pub(super) mod core {}
    pub(super) mod daffi {}
    pub(super) mod inventory {}
}
#[allow(unused_imports)]
use shadows::*;

#[callback(crate = ::my_daffi)]
fn r#type(r#fn: u8) -> u8 {
    r#fn
}

#[callback(crate = ::my_daffi)]
async fn invocation(argument_0: u8, value: u8, context: &Context, returned: u8) -> u8 {
    let _ = context;
    argument_0 + value + returned
}

#[callback(crate = ::my_daffi)]
fn table(error: bool) -> ::std::result::Result<(), ::std::string::String> {
    if error {
        ::std::result::Result::Err(::std::string::String::new())
    } else {
        ::std::result::Result::Ok(())
    }
}

#[callback(crate = ::my_daffi)]
fn fill() {}

/// A singleton.
#[callback(crate = ::my_daffi)]
#[derive(Debug)]
pub struct Group;

#[callback(crate = ::my_daffi, prefix = "group.")]
impl Group {
    /// A method.
    pub fn group(&self, instance: u8) -> u8 {
        instance
    }

    /// A method with a raw name.
    pub fn r#move() {}
}

/// Makes calls.
#[fetcher(crate = ::my_daffi, prefix = "group.")]
pub trait Peer {
    /// A fetcher with raw names.
    fn r#type(r#fn: u8, signature: &str, caller: &[u8]) -> u8;
}

#[fetcher(crate = ::my_daffi)]
/// A fetcher alone.
pub fn r#loop();

/// Callbacks of a block.
pub fn register_nothing() {
    #[callback(crate = ::my_daffi)]
    fn in_a_block(number: Local) -> Local {
        number
    }

    type Local = u8;
}
