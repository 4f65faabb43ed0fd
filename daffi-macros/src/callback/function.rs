//! `#[callback]` on a function.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};

use super::{Entry, Expansion, allowed};
use crate::{
    args::{Args, Place, wire_name},
    diagnose::Mistakes,
    item::{Body, Function, conditions},
    signature::Model,
};

pub(super) fn expand(args: TokenStream, function: Function, mistakes: &mut Mistakes) -> Expansion {
    let args = Args::parse(args, Place::CallbackFunction, mistakes);
    let Function { attrs, sig, body, .. } = &function;
    if let Some(receiver) = sig.receiver() {
        mistakes.at(
            receiver,
            "a method is registered with its block: write `#[callback]` on the `impl` block, not on the method",
        );
        return (function.into_token_stream(), TokenStream::new());
    }
    if let Body::Semicolon(semicolon) = body {
        mistakes.at(
            semicolon,
            "a callback has a body: write it here, or `#[fetcher]` to call the callback of another process",
        );
        // Without its body the item is not valid Rust, and would be reported a second time.
        return (TokenStream::new(), TokenStream::new());
    }
    let model = Model::of_callback(sig, mistakes);
    let import = args.import();
    let entry = Entry {
        args: &args,
        attrs,
        name: wire_name(&sig.ident, &args, None),
        model: &model,
        path: sig.ident.to_token_stream(),
        receiver: None,
    }
    .expand();
    let (conditions, allowed) = (conditions(attrs), allowed());
    let expansion = quote_spanned! {Span::mixed_site()=>
        #(#conditions)*
        #allowed
        const _: () = {
            #import

            // A closure, because the name of an item would shadow that of the user's function.
            __daffi::inventory::submit! {
                __daffi::Registration::new(|table: &mut __daffi::Vec<__daffi::Callback>| {
                    #entry
                })
            }
        };
    };
    (quote!(#function), expansion)
}
