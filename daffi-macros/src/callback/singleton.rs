//! `#[callback]` on a struct.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use syn::{
    Attribute, Generics, Ident, Token, Visibility,
    ext::IdentExt,
    parse::{Parse, ParseStream},
};

use super::{Expansion, allowed};
use crate::{
    args::{Args, Place},
    diagnose::Mistakes,
    item::conditions,
    signature::at,
};

/// A struct parsed up to its fields, and all its tokens.
pub(super) struct Struct {
    attrs: Vec<Attribute>,
    vis: Visibility,
    ident: Ident,
    generics: Generics,
    tokens: TokenStream,
}

impl Parse for Struct {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let tokens = input.fork().parse()?;
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        input.parse::<Token![struct]>()?;
        let (ident, generics) = (input.parse()?, input.parse()?);
        input.parse::<TokenStream>()?;
        Ok(Self { attrs, vis, ident, generics, tokens })
    }
}

pub(super) fn expand(args: TokenStream, item: Struct, mistakes: &mut Mistakes) -> Expansion {
    let args = Args::parse(args, Place::CallbackStruct, mistakes);
    let Struct { attrs, vis, ident, generics, tokens } = item;
    if !generics.params.is_empty() {
        mistakes.at(
            &generics.params,
            "there is one instance of one type: write concrete types instead of generic parameters and lifetimes",
        );
    }
    let import = args.import();
    let name = ident.unraw().to_string();
    let (conditions, allowed) = (conditions(&attrs), allowed());
    let register_doc = format!(
        " Makes this the one instance of [`{name}`] in the process: its methods with `&self` can be called from now on.\n\n \
         # Errors\n `Error::SingletonExists` if there is an instance already."
    );
    let instance_doc = format!(" The one instance of [`{name}`], if it is registered.");
    // Errors about a struct that cannot be shared point at the struct.
    let implement = quote_spanned!(at(ident.span())=> impl __daffi::Singleton for #ident);
    let expansion = quote_spanned! {Span::mixed_site()=>
        #(#conditions)*
        #allowed
        const _: () = {
            #import

            static __DAFFI_CELL: __daffi::Cell = __daffi::Cell::new(#name);

            #implement {
                fn cell() -> &'static __daffi::Cell {
                    &__DAFFI_CELL
                }
            }

            impl #ident {
                #[doc = #register_doc]
                #[allow(dead_code)]
                #vis fn register(self) -> __daffi::Result<__daffi::Arc<Self>, __daffi::DaffiError> {
                    __DAFFI_CELL.register(self)
                }

                #[doc = #instance_doc]
                #[allow(dead_code)]
                #vis fn instance() -> __daffi::Option<__daffi::Arc<Self>> {
                    __DAFFI_CELL.instance()
                }
            }
        };
    };
    (tokens.into_token_stream(), expansion)
}
