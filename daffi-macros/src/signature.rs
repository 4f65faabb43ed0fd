//! The model of a function's signature: which parts of it travel, and what it must not contain.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{
    FnArg, GenericParam, Pat, PatType, Receiver, ReceiverKind, ReturnType, Safety, Type, ext::IdentExt,
    spanned::Spanned,
};

use crate::{
    diagnose::Mistakes,
    types::{
        first_argument, has_lifetime, has_reference, has_short_lifetime, last_segment, mentions, owned,
        owned_text, text,
    },
};

/// A parameter of a callback or fetcher.
pub(crate) enum Parameter {
    /// `&Context`, supplied by the node that runs the callback.
    Context(Span),
    Wire(Box<Wire>),
}

/// A parameter that travels.
pub(crate) struct Wire {
    /// The name as shown in a signature.
    pub(crate) name: String,
    /// The variable that holds it in the expansion.
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
}

/// The signature of a function that is called from elsewhere, or calls elsewhere.
pub(crate) struct Model {
    pub(crate) ident: Ident,
    pub(crate) is_async: bool,
    pub(crate) parameters: Vec<Parameter>,
    /// `None` for an implicit `()`.
    pub(crate) result: Option<Type>,
}

/// Longer tuples do not implement `Serialize`.
const ARGUMENTS_MAX: usize = 16;

impl Model {
    /// The signature of a callback, without its receiver.
    pub(crate) fn of_callback(sig: &syn::Signature, mistakes: &mut Mistakes) -> Self {
        for parameter in &sig.generics.params {
            if !matches!(parameter, GenericParam::Lifetime(_)) {
                mistakes.at(
                    parameter,
                    "a callback has one signature on the wire: write a concrete type instead of a generic parameter",
                );
            }
        }
        check_qualifiers(sig, "callback", mistakes);
        let mut parameters = Vec::new();
        for input in typed(sig) {
            parameters.push(callback_parameter(input, parameters.len(), mistakes));
        }
        let result = result(sig, "callback", mistakes);
        if let Some(ty) = &result
            && !mentions(ty, "impl")
            && has_short_lifetime(&owned(ty))
        {
            mistakes.at(ty, "results are sent by value: write a type without a lifetime");
        }
        Self::new(sig, parameters, result, mistakes)
    }

    /// The signature of a fetcher.
    pub(crate) fn of_fetcher(sig: &syn::Signature, mistakes: &mut Mistakes) -> Self {
        for parameter in &sig.generics.params {
            mistakes.at(
                parameter,
                match parameter {
                    GenericParam::Lifetime(_) => "arguments are encoded at once: leave the lifetime out, `&str` is enough",
                    _ => {
                        "a callback has one signature on the wire: write a concrete type instead of a generic parameter"
                    }
                },
            );
        }
        check_qualifiers(sig, "fetcher", mistakes);
        if let Some(asyncness) = &sig.asyncness {
            mistakes.at(
                asyncness,
                "leave `async` out: whether to wait is said where the call is made, with `.await` or `& FG`",
            );
        }
        if let Some(receiver) = sig.receiver() {
            mistakes.at(
                receiver,
                "leave `self` out: a fetcher is called on `g.call`, write `fn func1(a: i64) -> i64;`",
            );
        }
        let mut parameters = Vec::new();
        for input in typed(sig) {
            parameters.push(fetcher_parameter(input, parameters.len(), mistakes));
        }
        let result = result(sig, "fetcher", mistakes);
        if let Some(ty) = &result {
            check_fetched(ty, mistakes);
        }
        Self::new(sig, parameters, result, mistakes)
    }

    fn new(
        sig: &syn::Signature,
        parameters: Vec<Parameter>,
        result: Option<Type>,
        mistakes: &mut Mistakes,
    ) -> Self {
        let model = Self { ident: sig.ident.clone(), is_async: sig.asyncness.is_some(), parameters, result };
        if let Some(extra) = model.wires().nth(ARGUMENTS_MAX) {
            mistakes.at(
                &extra.ty,
                format!("at most {ARGUMENTS_MAX} arguments travel: put several into a struct"),
            );
        }
        model
    }

    /// The parameters that travel.
    pub(crate) fn wires(&self) -> impl Iterator<Item = &Wire> {
        self.parameters.iter().filter_map(|parameter| match parameter {
            Parameter::Wire(wire) => Some(&**wire),
            Parameter::Context(_) => None,
        })
    }

    /// The result as written, or `()`.
    pub(crate) fn result_type(&self) -> TokenStream {
        self.result.as_ref().map_or_else(|| quote!(()), ToTokens::to_token_stream)
    }

    /// The span of the result, with names resolved as in an expansion.
    pub(crate) fn result_span(&self) -> Span {
        at(self.result.as_ref().map_or_else(|| self.ident.span(), Spanned::span))
    }

    /// Returns an expression for the signature, with `result` as the result's `WireType`.
    pub(crate) fn signature(&self, result: &TokenStream) -> TokenStream {
        let parameters = self.wires().map(|Wire { name, ty, .. }| {
            let owned = if has_reference(ty) { owned(ty) } else { ty.to_token_stream() };
            // A type with a lifetime must not be probed for `Deserialize`: the answer ignores lifetimes.
            let wire_type = if has_lifetime(&owned) {
                quote!(__daffi::WireType::named::<#ty>())
            } else {
                quote!((&__daffi::Probe::<#owned>::new()).wire_type())
            };
            quote!((#name, #wire_type))
        });
        quote! {{
            #[allow(unused_imports)]
            use __daffi::{NamedResultTypeOf as _, ResultTypeOf as _, WireTypeOf as _};
            __daffi::Signature::new([#(#parameters),*], #result)
        }}
    }

    /// Returns an expression for the `WireType` of a callback's result.
    pub(crate) fn callback_result(&self) -> TokenStream {
        let ty = self.result_type();
        let owned = if has_reference(&ty) { owned(&ty) } else { ty };
        if has_lifetime(&owned) {
            quote!((&__daffi::Probe::<#owned>::new()).named_result_type())
        } else {
            quote!((&&&&__daffi::Probe::<#owned>::new()).result_type())
        }
    }
}

/// Turns a span of the user's code into one for generated tokens: errors point there, but names do not clash.
pub(crate) fn at(span: Span) -> Span {
    span.resolved_at(Span::mixed_site())
}

fn typed(sig: &syn::Signature) -> impl Iterator<Item = &PatType> {
    sig.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(typed) => Some(typed),
        FnArg::Receiver(_) => None,
    })
}

fn check_qualifiers(sig: &syn::Signature, what: &str, mistakes: &mut Mistakes) {
    if let Safety::Unsafe(unsafety) = &sig.safety {
        mistakes.at(
            unsafety,
            format!(
                "a {what} is safe: another process cannot answer for what `unsafe` asks; leave `unsafe` out"
            ),
        );
    }
    if let Some(variadic) = &sig.variadic {
        mistakes.at(variadic, "the number of arguments is fixed: write a `Vec` for a list");
    }
}

fn result(sig: &syn::Signature, what: &str, mistakes: &mut Mistakes) -> Option<Type> {
    let ReturnType::Type(_, ty) = &sig.output else { return None };
    if mentions(ty, "impl") {
        let remedy = if what == "callback" && mentions(ty, "Future") {
            "write `async fn` instead of `impl Future`"
        } else {
            "write the concrete type instead of `impl`: the caller has to name it too"
        };
        mistakes.at(ty, remedy);
    } else if let Type::Never(never) = &**ty {
        mistakes
            .at(never, format!("a {what} answers its caller: write `()` instead of `!`, or leave it out"));
    }
    Some((**ty).clone())
}

fn callback_parameter(input: &PatType, at: usize, mistakes: &mut Mistakes) -> Parameter {
    let ty = &*input.ty;
    check_conditions(input, mistakes);
    if let Type::Reference(reference) = ty
        && is_context(&reference.elem)
    {
        if let Some(mutability) = &reference.mutability {
            mistakes.at(mutability, "the context is shared: write `&Context`");
        }
        return Parameter::Context(ty.span());
    }
    if mentions(ty, "impl") {
        mistakes.at(
            ty,
            "write a concrete type instead of `impl`: the bytes of a call do not say which one they are",
        );
    } else if has_reference(ty) {
        let (borrowed, owned) = (text(ty), owned_text(ty));
        mistakes.at(ty, format!("arguments arrive by value: write `{owned}` instead of `{borrowed}`"));
    } else if has_short_lifetime(ty) {
        mistakes.at(ty, "arguments arrive by value: write an owned type, without a lifetime");
    }
    Parameter::Wire(wire(input, at))
}

fn fetcher_parameter(input: &PatType, at: usize, mistakes: &mut Mistakes) -> Parameter {
    let ty = &*input.ty;
    check_conditions(input, mistakes);
    if !matches!(&*input.pat, Pat::Ident(pat) if pat.by_ref.is_none() && pat.mutability.is_none() && pat.subpat.is_none())
        && !matches!(&*input.pat, Pat::Wild(_))
    {
        mistakes.at(&input.pat, "a fetcher has no body to take an argument apart: write a name, `a: i64`");
    }
    if let Type::Reference(reference) = ty
        && is_context(&reference.elem)
    {
        mistakes.at(
            ty,
            "the context is given by the node that runs the callback, and not sent: leave it out here",
        );
    } else if mentions(ty, "impl") {
        mistakes
            .at(ty, "write a concrete type instead of `impl`: the callback has one signature on the wire");
    } else if has_reference(ty) && mentions(ty, "mut") {
        mistakes.at(ty, "arguments are sent, and never changed by the callback: write `&` without `mut`");
    }
    Parameter::Wire(wire(input, at))
}

fn check_conditions(input: &PatType, mistakes: &mut Mistakes) {
    for attr in crate::item::conditions(&input.attrs) {
        mistakes
            .at(attr, "an argument is there or not on both sides: write `#[cfg]` on two functions instead");
    }
}

fn check_fetched(ty: &Type, mistakes: &mut Mistakes) {
    if let Some(segment) = last_segment(ty)
        && segment.ident == "Result"
    {
        let value = first_argument(segment).map_or_else(|| "T".to_owned(), text);
        mistakes.at(
            ty,
            format!(
                "write `-> {value}`: an `Err` of the callback comes back as the `Error` of the call, and \
                 `error.downcast::<E>()` has its value"
            ),
        );
    } else if has_reference(ty) {
        let (borrowed, owned) = (text(ty), owned_text(ty));
        mistakes.at(ty, format!("results arrive by value: write `{owned}` instead of `{borrowed}`"));
    } else if has_short_lifetime(ty) {
        mistakes.at(ty, "results arrive by value: write an owned type, without a lifetime");
    }
}

fn wire(input: &PatType, at: usize) -> Box<Wire> {
    let ident = format_ident!("argument_{at}", span = Span::mixed_site());
    let name = match &*input.pat {
        Pat::Ident(pat) => pat.ident.unraw().to_string(),
        _ => "_".to_owned(),
    };
    Box::new(Wire { name, ident, ty: (*input.ty).clone() })
}

/// Whether this is `Context`, `daffi::Context` or the like. A macro sees only names.
fn is_context(ty: &Type) -> bool {
    last_segment(ty).is_some_and(|segment| segment.ident == "Context" && segment.arguments.is_none())
}

/// Returns what a method is called on, given an `instance: Arc<Self>`.
pub(crate) fn receiver(receiver: &Receiver, mistakes: &mut Mistakes) -> TokenStream {
    let instance = quote_spanned!(Span::mixed_site()=> instance);
    match &receiver.kind {
        ReceiverKind::Reference(_, _, None) => return quote!(&*#instance),
        ReceiverKind::Reference(_, _, Some(mutability)) => {
            let message = "several calls run at a time on the one instance: write `&self`, and a `Mutex` or an atomic \
                           around what changes";
            mistakes.at_span(mutability.span, message);
            return quote!(&*#instance);
        }
        ReceiverKind::Typed(_, ty) => {
            let by_arc = |ty: &Type| {
                last_segment(ty).is_some_and(|segment| {
                    segment.ident == "Arc" && first_argument(segment).is_some_and(is_self)
                })
            };
            match &**ty {
                Type::Reference(reference) if reference.mutability.is_none() => {
                    if is_self(&reference.elem) {
                        return quote!(&*#instance);
                    } else if by_arc(&reference.elem) {
                        return quote!(&#instance);
                    }
                }
                ty if by_arc(ty) => return quote!(#instance.clone()),
                _ => {}
            }
        }
        _ => {}
    }
    mistakes.at(receiver, "the instance is shared by all calls: write `&self` or `self: Arc<Self>`");
    quote!(&*#instance)
}

fn is_self(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("Self"))
}
