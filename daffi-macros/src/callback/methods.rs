//! `#[callback]` on an `impl` block.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::{Visibility, ext::IdentExt, spanned::Spanned};

use super::{Entry, Expansion, allowed};
use crate::{
    args::{Args, Place, wire_name},
    diagnose::Mistakes,
    item::{Function, Impl, Member, conditions, is_attribute},
    signature::{Model, at, receiver},
    types::mentions,
};

pub(super) fn expand(args: TokenStream, mut block: Impl, mistakes: &mut Mistakes) -> Expansion {
    let args = Args::parse(args, Place::CallbackImpl, mistakes);
    let import = args.import();
    remove_attributes(&mut block, mistakes);
    if !block.generics.params.is_empty() {
        mistakes.at(
            &block.generics.params,
            "there is one instance of one type: write concrete types instead of generic parameters and lifetimes",
        );
    }
    if let Some(of_trait) = &block.of_trait {
        mistakes.at(
            of_trait,
            "callbacks are a struct's own `pub` methods: write them in an `impl` block without a trait",
        );
        return (block.into_token_stream(), TokenStream::new());
    }

    let mut entries = TokenStream::new();
    let mut with_receiver = false;
    for function in callbacks(&block) {
        let entry = entry(function, &args, mistakes);
        let conditions = conditions(&function.attrs);
        entries.extend(quote!(#(#conditions)* #entry));
        with_receiver |= function.sig.receiver().is_some();
    }
    if entries.is_empty() && mistakes.is_empty() {
        mistakes.at_span(
            block.self_ty.span(),
            "no callbacks here: write `pub` in front of the methods that other processes may call",
        );
    }

    let self_ty = &block.self_ty;
    // The only place that requires a singleton, so that a struct that is not one gives one error.
    let group = with_receiver.then(|| {
        let of = quote_spanned!(at(self_ty.span())=> __daffi::instance::<#self_ty>());
        quote_spanned!(Span::mixed_site()=> let group = #of;)
    });
    let (conditions, allowed) = (conditions(&block.attrs), allowed());
    let expansion = quote_spanned! {Span::mixed_site()=>
        #(#conditions)*
        #allowed
        const _: () = {
            #import

            // A trait, so that `Self` in the methods' types keeps its meaning.
            trait __DaffiCallbacks {
                fn fill(table: &mut __daffi::Vec<__daffi::Callback>);
            }

            impl __DaffiCallbacks for #self_ty {
                fn fill(table: &mut __daffi::Vec<__daffi::Callback>) {
                    #group
                    #entries
                }
            }

            __daffi::inventory::submit! { __daffi::Registration::new(<#self_ty as __DaffiCallbacks>::fill) }
        };
    };
    (block.into_token_stream(), expansion)
}

/// Returns the methods that other processes may call.
fn callbacks(block: &Impl) -> impl Iterator<Item = &Function> {
    block.members.iter().filter_map(|member| match member {
        Member::Function(function)
            if matches!(function.vis, Visibility::Public(_))
                && !function.sig.ident.unraw().to_string().starts_with('_') =>
        {
            Some(&**function)
        }
        _ => None,
    })
}

fn entry(function: &Function, args: &Args, mistakes: &mut Mistakes) -> TokenStream {
    let sig = &function.sig;
    let ident = &sig.ident;
    let model = Model::of_callback(sig, mistakes);
    if sig.receiver().is_none()
        && let Some(result) = &model.result
        && mentions(result, "Self")
    {
        mistakes.at(
            result,
            "a constructor is no callback: move it to an `impl` block without `#[callback]`, or write it without `pub`",
        );
    }
    Entry {
        args,
        attrs: &function.attrs,
        name: wire_name(ident, args, args.prefix.as_ref()),
        model: &model,
        path: quote!(Self::#ident),
        receiver: sig.receiver().map(|found| receiver(found, mistakes)),
    }
    .expand()
}

/// Removes our attributes from the methods, where their own expansion would report them a second time.
fn remove_attributes(block: &mut Impl, mistakes: &mut Mistakes) {
    for member in &mut block.members {
        let Member::Function(function) = member else { continue };
        function.attrs.retain(|attr| {
            let ours = is_attribute(attr, "callback");
            if ours {
                mistakes.at(
                    attr,
                    "leave this out: `#[callback]` on the block registers every `pub` method whose name has no leading \
                     underscore",
                );
            }
            !ours
        });
    }
}
