//! Items with parsed signatures and with bodies left as tokens, so that a half-typed body still expands.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::{ToTokens, TokenStreamExt, quote};
use syn::{
    Attribute, Generics, Ident, Path, Signature, Token, Type, Visibility, braced,
    parse::{Parse, ParseStream, discouraged::Speculative},
};

/// A function with its body, or with a semicolon instead.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: Body,
}

pub(crate) enum Body {
    Block(Group),
    Semicolon(Token![;]),
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let (vis, sig) = (input.parse()?, input.parse()?);
        let body = if input.peek(Token![;]) {
            Body::Semicolon(input.parse()?)
        } else {
            let group = input.parse::<Group>()?;
            if group.delimiter() != Delimiter::Brace {
                return Err(syn::Error::new(group.span(), "expected the function's body"));
            }
            Body::Block(group)
        };
        Ok(Self { attrs, vis, sig, body })
    }
}

impl ToTokens for Function {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let Self { attrs, vis, sig, body } = self;
        tokens.append_all(attrs);
        vis.to_tokens(tokens);
        sig.to_tokens(tokens);
        match body {
            Body::Block(group) => group.to_tokens(tokens),
            Body::Semicolon(semicolon) => semicolon.to_tokens(tokens),
        }
    }
}

/// A member of an `impl` or a `trait`.
pub(crate) enum Member {
    Function(Box<Function>),
    Other(TokenStream),
}

impl Member {
    fn parse_all<T: Parse + ToTokens>(input: ParseStream<'_>) -> syn::Result<Vec<Self>> {
        let mut members = Vec::new();
        while !input.is_empty() {
            let fork = input.fork();
            members.push(if let Ok(function) = fork.parse() {
                input.advance_to(&fork);
                Self::Function(Box::new(function))
            } else {
                Self::Other(input.parse::<T>()?.into_token_stream())
            });
        }
        Ok(members)
    }
}

impl ToTokens for Member {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Function(function) => function.to_tokens(tokens),
            Self::Other(other) => other.to_tokens(tokens),
        }
    }
}

/// An `impl` block.
pub(crate) struct Impl {
    pub(crate) attrs: Vec<Attribute>,
    head: TokenStream,
    pub(crate) generics: Generics,
    pub(crate) of_trait: Option<Path>,
    pub(crate) self_ty: Type,
    pub(crate) members: Vec<Member>,
}

impl Parse for Impl {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        // Keeps everything before the braces as it was written, because that is what is emitted.
        let fork = input.fork();
        let mut head = TokenStream::new();
        while !fork.peek(syn::token::Brace) && !fork.is_empty() {
            head.append(fork.parse::<TokenTree>()?);
        }
        input.parse::<Option<Token![unsafe]>>()?;
        input.parse::<Token![impl]>()?;
        let generics = if input.peek(Token![<]) && !input.peek2(Token![<]) {
            input.parse()?
        } else {
            Generics::default()
        };
        input.parse::<Option<Token![!]>>()?;
        let first: Type = input.parse()?;
        let (of_trait, self_ty) = if input.parse::<Option<Token![for]>>()?.is_some() {
            let Type::Path(path) = first else {
                return Err(syn::Error::new_spanned(first, "expected a trait"));
            };
            (Some(path.path), input.parse()?)
        } else {
            (None, first)
        };
        input.parse::<Option<syn::WhereClause>>()?;
        let content;
        braced!(content in input);
        let members = Member::parse_all::<syn::ImplItem>(&content)?;
        Ok(Self { attrs, head, generics, of_trait, self_ty, members })
    }
}

impl ToTokens for Impl {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let Self { attrs, head, members, .. } = self;
        tokens.extend(quote!(#(#attrs)* #head { #(#members)* }));
    }
}

/// A `trait`.
pub(crate) struct Trait {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) unsafety: Option<Token![unsafe]>,
    pub(crate) ident: Ident,
    pub(crate) generics: Generics,
    pub(crate) supertraits: TokenStream,
    pub(crate) members: Vec<Member>,
}

impl Parse for Trait {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let (vis, unsafety) = (input.parse()?, input.parse()?);
        input.parse::<Token![trait]>()?;
        let (ident, mut generics): (Ident, Generics) = (input.parse()?, input.parse()?);
        let mut supertraits = TokenStream::new();
        if input.parse::<Option<Token![:]>>()?.is_some() {
            while !input.peek(syn::token::Brace) && !input.peek(Token![where]) {
                supertraits.append(input.parse::<TokenTree>()?);
            }
        }
        generics.where_clause = input.parse()?;
        let content;
        braced!(content in input);
        let members = Member::parse_all::<syn::TraitItem>(&content)?;
        Ok(Self { attrs, vis, unsafety, ident, generics, supertraits, members })
    }
}

/// Returns the attributes that decide whether an item exists at all, and so whether its expansion does.
pub(crate) fn conditions(attrs: &[Attribute]) -> Vec<&Attribute> {
    attrs.iter().filter(|attr| attr.path().is_ident("cfg")).collect()
}

/// Returns the text of an item's doc comment.
pub(crate) fn doc(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs {
        if let syn::Meta::NameValue(doc) = &attr.meta
            && doc.path.is_ident("doc")
            && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &doc.value
        {
            let text = text.value();
            lines.push(text.strip_prefix(' ').unwrap_or(&text).trim_end().to_owned());
        }
    }
    lines.join("\n").trim().to_owned()
}

/// Whether this is one of our attributes, under whatever path it is imported.
pub(crate) fn is_attribute(attr: &Attribute, name: &str) -> bool {
    attr.path().segments.last().is_some_and(|segment| segment.ident == name)
}
