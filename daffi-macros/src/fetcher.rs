//! `#[fetcher]` on a trait, or on a function without a body.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::{Attribute, Generics, Ident, LitStr, Visibility, spanned::Spanned};

use crate::{
    args::{Args, Place, wire_name},
    diagnose::Mistakes,
    item::{Body, Function, Member, Trait, conditions, is_attribute},
    signature::{Model, Wire, at},
    types::mentions,
};

pub(crate) fn expand(args: TokenStream, item: TokenStream) -> TokenStream {
    let mut mistakes = Mistakes::default();
    let expansion = if let Ok(item) = syn::parse2::<Trait>(item.clone()) {
        of_trait(args, item, &mut mistakes)
    } else {
        match syn::parse2::<Function>(item.clone()) {
            Ok(function) => of_function(args, function, &mut mistakes),
            Err(_) => {
                mistakes.at_span(
                    item.clone().into_iter().next().map_or_else(Span::call_site, |first| first.span()),
                    "`#[fetcher]` goes on a trait, or on a function without a body: `fn func1(a: i64) -> i64;`",
                );
                item
            }
        }
    };
    let mistakes = mistakes.into_tokens();
    quote!(#expansion #mistakes)
}

fn of_trait(args: TokenStream, item: Trait, mistakes: &mut Mistakes) -> TokenStream {
    let args = Args::parse(args, Place::FetcherTrait, mistakes);
    let Trait { attrs, vis, unsafety, ident, generics, supertraits, members } = item;
    if let Some(unsafety) = unsafety {
        mistakes.at(unsafety, "leave `unsafe` out: nothing here asks for it");
    }
    if !generics.params.is_empty() {
        mistakes.at(
            &generics.params,
            "a callback has one signature on the wire: write concrete types in the functions",
        );
    }
    if !supertraits.is_empty() {
        mistakes.at(supertraits, "a fetcher trait stands alone: leave the supertraits out");
    }
    let mut methods = Vec::new();
    for member in members {
        match member {
            Member::Function(function) => methods.push(Method::of(*function, &args, mistakes)),
            Member::Other(other) => {
                mistakes.at(other, "a fetcher trait has functions alone: move this out of the trait");
            }
        }
    }
    let extension = Extension { args: &args, attrs: &attrs, vis: &vis, ident: &ident, methods: &methods };
    if mistakes.is_empty() { extension.expand() } else { extension.expand_broken(&generics) }
}

fn of_function(args: TokenStream, mut function: Function, mistakes: &mut Mistakes) -> TokenStream {
    let args = Args::parse(args, Place::FetcherFunction, mistakes);
    if function.sig.receiver().is_none()
        && let Body::Block(block) = &function.body
    {
        mistakes.at_span(block.span_open(), NO_BODY);
        // A function with a body is valid as it stands, so it is left alone.
        return function.into_token_stream();
    }
    let vis = std::mem::replace(&mut function.vis, Visibility::Inherited);
    let (attrs, ident) = (function.attrs.clone(), function.sig.ident.clone());
    let name = wire_name(&ident, &args, None);
    let method = Method { name, model: Model::of_fetcher(&function.sig, mistakes), function };
    // A trait and a function of the same name do not conflict, so the trait gets the function's name and is
    // imported by it.
    let extension = Extension { args: &args, attrs: &attrs, vis: &vis, ident: &ident, methods: &[method] };
    if mistakes.is_empty() { extension.expand() } else { extension.expand_broken(&Generics::default()) }
}

const NO_BODY: &str = "what a fetcher does is written at its callback: end it with `;` instead of a body";

/// One function of an extension trait.
struct Method {
    name: LitStr,
    model: Model,
    function: Function,
}

impl Method {
    fn of(mut function: Function, args: &Args, mistakes: &mut Mistakes) -> Self {
        let mut own = Args::default();
        function.attrs.retain(|attr| {
            let ours = is_attribute(attr, "fetcher");
            if ours {
                let tokens = match &attr.meta {
                    syn::Meta::List(list) => list.tokens.clone(),
                    _ => TokenStream::new(),
                };
                own = Args::parse(tokens, Place::FetcherMethod, mistakes);
            }
            !ours
        });
        if let Body::Block(block) = &function.body {
            mistakes.at_span(block.span_open(), NO_BODY);
        }
        let name = wire_name(&function.sig.ident, &own, args.prefix.as_ref());
        Self { name, model: Model::of_fetcher(&function.sig, mistakes), function }
    }

    /// `fn func1(&self, a: i64) -> Call<i64>`, with the parameter names that the user wrote.
    fn head(&self, private: &TokenStream) -> TokenStream {
        let Self { model, .. } = self;
        let ident = &model.ident;
        let result = model.result_type();
        let inputs = model.wires().map(|wire| {
            let name = if wire.name == "_" {
                wire.ident.clone()
            } else {
                // Some names are raw, like `r#type`, and lost their `r#` for display.
                syn::parse_str(&wire.name)
                    .map(|ident: Ident| Ident::new(&ident.to_string(), wire.ty.span()))
                    .unwrap_or_else(|_| Ident::new_raw(&wire.name, wire.ty.span()))
            };
            let ty = &wire.ty;
            quote!(#name: #ty)
        });
        quote!(fn #ident(&self, #(#inputs),*) -> #private::Call<#result>)
    }

    /// The function that makes the call.
    fn implementation(&self) -> TokenStream {
        let Self { name, model, function } = self;
        let ident = &model.ident;
        let result = model.result_type();
        let traced = quote_spanned!(model.result_span()=> __daffi::result::<#result>());
        let signature = model.signature(&traced);
        let inputs = model.wires().map(|Wire { ident, ty, .. }| quote!(#ident: #ty));
        // A type that cannot be sent is reported where the user wrote it.
        let arguments = model.wires().map(|wire| {
            let mut ident = wire.ident.clone();
            ident.set_span(at(wire.ty.span()));
            ident
        });
        let conditions = conditions(&function.attrs);
        quote_spanned! {Span::mixed_site()=>
            #(#conditions)*
            fn #ident(&self, #(#inputs),*) -> __daffi::Call<#result> {
                static __DAFFI_SIGNATURE: __daffi::OnceLock<__daffi::Signature> = __daffi::OnceLock::new();
                let signature = __DAFFI_SIGNATURE.get_or_init(|| #signature);
                __daffi::Caller::__daffi_call(self, #name, signature, (#(#arguments,)*))
            }
        }
    }
}

/// An extension trait, and its one implementation.
struct Extension<'a> {
    args: &'a Args,
    attrs: &'a [Attribute],
    vis: &'a Visibility,
    ident: &'a Ident,
    methods: &'a [Method],
}

impl Extension<'_> {
    fn expand(&self) -> TokenStream {
        let Self { args, attrs, vis, ident, methods } = self;
        let private = args.private();
        let declarations = methods.iter().map(|method| {
            let (attrs, head) = (&method.function.attrs, method.head(&private));
            let note = format!(" Calls the callback `{}` of another process.", method.name.value());
            // The user's own docs are kept; without any, this is better than nothing.
            let documented = attrs.iter().any(|attr| attr.path().is_ident("doc"));
            let note = (!documented).then(|| quote!(#[doc = #note]));
            quote!(#note #(#attrs)* #head;)
        });
        let implementations = methods.iter().map(Method::implementation);
        let (conditions, import) = (conditions(attrs), args.import());
        quote! {
            #(#attrs)*
            #[allow(non_camel_case_types)]
            #vis trait #ident {
                #(#declarations)*
            }

            #(#conditions)*
            #[allow(clippy::all, clippy::pedantic, deprecated, unused_qualifications)]
            const _: () = {
                #import

                impl #ident for __daffi::Caller {
                    #(#implementations)*
                }
            };
        }
    }

    /// The expansion if there are mistakes: what is used elsewhere exists, and is not checked further.
    fn expand_broken(&self, generics: &Generics) -> TokenStream {
        let Self { args, attrs, vis, ident, methods } = self;
        let private = args.private();
        let methods = methods.iter().map(|Method { model, function, .. }| {
            let (ident, generics) = (&model.ident, &function.sig.generics);
            let (_, _, condition) = generics.split_for_impl();
            let inputs = model.wires().map(|Wire { ident, ty, .. }| quote!(#ident: #ty));
            let result = match &model.result {
                Some(ty) if !mentions(ty, "impl") => ty.to_token_stream(),
                _ => quote!(()),
            };
            let conditions = conditions(&function.attrs);
            quote! {
                #(#conditions)*
                fn #ident #generics (&self, #(#inputs),*) -> #private::Call<#result> #condition {
                    #private::unreachable!()
                }
            }
        });
        let conditions = conditions(attrs);
        let (parameters, names, condition) = generics.split_for_impl();
        quote! {
            #(#conditions)*
            #[allow(unused, non_camel_case_types)]
            #vis trait #ident #generics #condition {
                #(#methods)*
            }

            #(#conditions)*
            impl #parameters #ident #names for #private::Caller #condition {}
        }
    }
}
