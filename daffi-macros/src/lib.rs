//! The attributes `#[callback]` and `#[fetcher]` of [daffi](https://docs.rs/daffi), which documents them.
//!
//! Each goes through the same steps: the options (`args`), the item with its bodies left as tokens (`item`),
//! the parts of its signature that travel (`signature`), and the expansion. Mistakes found on the way are
//! collected (`diagnose`) and reported next to the user's item, which is always emitted, so that one mistake
//! gives one message.

use proc_macro::TokenStream;

mod args;
mod callback;
mod diagnose;
mod fetcher;
mod item;
mod signature;
mod types;

/// Offers a function, or the methods of a struct, to other processes. Documented at `daffi::callback`.
#[proc_macro_attribute]
pub fn callback(args: TokenStream, item: TokenStream) -> TokenStream {
    callback::expand(args.into(), item.into()).into()
}

/// Declares what other processes offer. Documented at `daffi::fetcher`.
#[proc_macro_attribute]
pub fn fetcher(args: TokenStream, item: TokenStream) -> TokenStream {
    fetcher::expand(args.into(), item.into()).into()
}
