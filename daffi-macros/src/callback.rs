//! `#[callback]` on a function, a struct or an `impl` block.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::{Attribute, LitStr, parse::Parse, spanned::Spanned};

mod function;
mod methods;
mod singleton;

use crate::{
    args::Args,
    diagnose::Mistakes,
    item::doc,
    signature::{Model, Parameter, Wire, at},
};

pub(crate) fn expand(args: TokenStream, item: TokenStream) -> TokenStream {
    let mut mistakes = Mistakes::default();
    let (item, expansion) = match keyword(&item) {
        Some(word) if word == "fn" => {
            parsed(item, &mut mistakes, |item, mistakes| function::expand(args, item, mistakes))
        }
        Some(word) if word == "impl" => {
            parsed(item, &mut mistakes, |item, mistakes| methods::expand(args, item, mistakes))
        }
        Some(word) if word == "struct" => {
            parsed(item, &mut mistakes, |item, mistakes| singleton::expand(args, item, mistakes))
        }
        word => {
            let remedy = match word.as_ref().map(ToString::to_string).as_deref() {
                Some("enum" | "union") => "a singleton is a struct: write `struct`, with the enum as a field",
                Some("trait") => {
                    "callbacks have bodies: write `#[callback]` on an `impl` block, or `#[fetcher]` to call others"
                }
                Some("mod") => "write `#[callback]` on the functions in the module",
                _ => "`#[callback]` goes on a function, a struct, or an `impl` block",
            };
            mistakes.at_span(word.map_or_else(Span::call_site, |word| word.span()), remedy);
            (item, TokenStream::new())
        }
    };
    let mistakes = mistakes.into_tokens();
    quote!(#item #expansion #mistakes)
}

/// The item, possibly changed, and its expansion, which is empty if there are mistakes.
type Expansion = (TokenStream, TokenStream);

fn parsed<T: Parse>(
    tokens: TokenStream,
    mistakes: &mut Mistakes,
    expand: impl FnOnce(T, &mut Mistakes) -> Expansion,
) -> Expansion {
    match syn::parse2(tokens.clone()) {
        Ok(item) => {
            let (item, expansion) = expand(item, mistakes);
            if mistakes.is_empty() { (item, expansion) } else { (item, TokenStream::new()) }
        }
        Err(error) => {
            mistakes.push(error);
            (tokens, TokenStream::new())
        }
    }
}

/// Returns the keyword that says what an item is, after its attributes, visibility and qualifiers.
fn keyword(item: &TokenStream) -> Option<proc_macro2::Ident> {
    item.clone().into_iter().find_map(|tree| match tree {
        TokenTree::Ident(word)
            if !["pub", "async", "unsafe", "extern", "default", "crate"]
                .iter()
                .any(|qualifier| word == qualifier)
                && word != "const" =>
        {
            Some(word)
        }
        _ => None,
    })
}

/// A statement that adds a callback to `table: &mut Vec<Callback>`.
struct Entry<'a> {
    args: &'a Args,
    attrs: &'a [Attribute],
    name: LitStr,
    model: &'a Model,
    /// What to call: `func1` or `Self::method`.
    path: TokenStream,
    /// The receiver of a method: an expression that uses `instance`.
    receiver: Option<TokenStream>,
}

impl Entry<'_> {
    fn expand(&self) -> TokenStream {
        let Self { args, attrs, name, model, receiver, .. } = self;
        let signature = model.signature(&model.callback_result());
        let handler = self.handler();
        // At the user's span, with the user's hygiene: otherwise `line!` would be the line of the attribute.
        let place = quote_spanned! {model.ident.span()=>
            __daffi::concat!(__daffi::file!(), ":", __daffi::line!())
        };
        let mut options = TokenStream::new();
        let doc = doc(attrs);
        if !doc.is_empty() {
            options.extend(quote!(.doc(#doc)));
        }
        if args.inline {
            options.extend(quote!(.inline()));
        }
        if let Some(limit) = &args.max_concurrency {
            options.extend(quote!(.max_concurrency(#limit)));
        }
        if receiver.is_some() {
            options.extend(quote_spanned!(Span::mixed_site()=> .method_of(group)));
        }
        quote_spanned! {Span::mixed_site()=>
            __daffi::Vec::push(table, __daffi::Callback::new(#name, #signature, #handler).written_at(#place)#options);
        }
    }

    /// The handler, which decodes the arguments, calls the function and encodes the result.
    fn handler(&self) -> TokenStream {
        let Self { model, path, receiver, .. } = self;
        let hygienic = Span::mixed_site();
        let idents: Vec<_> = model.wires().map(|wire| &wire.ident).collect();
        let arguments = model.parameters.iter().map(|parameter| match parameter {
            Parameter::Wire(wire) => {
                let ident = &wire.ident;
                quote!(#ident)
            }
            Parameter::Context(span) => quote_spanned!(at(*span)=> &context),
        });
        // The code that decodes and encodes has the spans of the user's types, so that errors about
        // unsuitable types point there.
        let wants =
            model.wires().map(|Wire { ty, .. }| quote_spanned!(at(ty.span())=> __daffi::want::<#ty>()));
        let decode = if idents.is_empty() {
            quote_spanned!(hygienic=> let __daffi::NoArguments = __daffi::decode(&invocation, ())?;)
        } else {
            quote_spanned!(hygienic=> let (#(#idents,)*) = __daffi::decode(&invocation, (#(#wants,)*))?;)
        };
        let get_instance = receiver.as_ref().map(|_| quote_spanned!(hygienic=> let instance = group.get()?;));
        let receiver = receiver.as_ref().map(|receiver| quote!(#receiver,));
        let wait = model.is_async.then(|| quote!(.await));
        let encode = quote_spanned!(model.result_span()=> __daffi::encode(invocation.codec, &value));
        let failed = quote_spanned! {model.result_span()=>
            __daffi::failed(
                &error,
                (&&&&__daffi::Probe::of(&error)).sources(&error),
                (&__daffi::Probe::of(&error)).payload(&error),
            )
        };
        let body = quote_spanned! {hygienic=>
            #get_instance
            #decode
            let returned = #path(#receiver #(#arguments),*)#wait;
            #[allow(unused_imports)]
            use __daffi::{PayloadOf as _, SourcesOf as _, Split as _};
            match (&__daffi::Probe::of(&returned)).split(returned) {
                __daffi::Ok(value) => #encode,
                __daffi::Err(error) => __daffi::Err(#failed),
            }
        };
        // A context is only made for functions that take one.
        let takes_context =
            model.parameters.iter().any(|parameter| matches!(parameter, Parameter::Context(_)));
        let context = takes_context.then(|| quote_spanned!(hygienic=> , context: __daffi::Context));
        let make = match (model.is_async, takes_context) {
            (true, true) => quote!(future_with_context),
            (true, false) => quote!(future),
            (false, true) => quote!(sync_with_context),
            (false, false) => quote!(sync),
        };
        if model.is_async {
            // A future that is not `Send` is reported at the function's name.
            let future = quote_spanned!(at(model.ident.span())=> async move { #body });
            quote_spanned! {hygienic=>
                __daffi::Handler::#make(move |invocation: __daffi::Invocation #context| __daffi::boxed(#future))
            }
        } else {
            quote_spanned! {hygienic=>
                __daffi::Handler::#make(
                    move |invocation: __daffi::Invocation #context| -> __daffi::Outcome { #body }
                )
            }
        }
    }
}

/// Allows what expansions may contain but a user's lints may forbid.
fn allowed() -> TokenStream {
    quote!(#[allow(clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction, deprecated, unused_qualifications, unreachable_code)])
}
