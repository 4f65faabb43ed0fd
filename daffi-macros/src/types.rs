//! Questions about types as written.

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::Type;

/// Returns the last segment of a path type: its name and generic arguments.
pub(crate) fn last_segment(ty: &Type) -> Option<&syn::PathSegment> {
    match ty {
        Type::Path(path) => path.path.segments.last(),
        Type::Group(group) => last_segment(&group.elem),
        Type::Paren(paren) => last_segment(&paren.elem),
        _ => None,
    }
}

/// Returns the first type argument of a generic type such as `Result<T, E>`.
pub(crate) fn first_argument(segment: &syn::PathSegment) -> Option<&Type> {
    let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        syn::GenericArgument::Type(ty) => Some(ty),
        _ => None,
    })
}

/// Whether the keyword or name occurs anywhere in the type.
pub(crate) fn mentions(ty: &impl ToTokens, word: &str) -> bool {
    any(ty.to_token_stream(), &mut |tree| matches!(tree, TokenTree::Ident(ident) if ident == word))
}

/// Whether the type is or contains a reference.
pub(crate) fn has_reference(ty: &impl ToTokens) -> bool {
    any(ty.to_token_stream(), &mut |tree| matches!(tree, TokenTree::Punct(punct) if punct.as_char() == '&'))
}

/// Whether any lifetime is written in the type, including `'static`.
pub(crate) fn has_lifetime(ty: &impl ToTokens) -> bool {
    any(ty.to_token_stream(), &mut |tree| matches!(tree, TokenTree::Punct(punct) if punct.as_char() == '\''))
}

/// Whether the type contains a lifetime other than `'static`.
pub(crate) fn has_short_lifetime(ty: &impl ToTokens) -> bool {
    let mut quote = false;
    any(ty.to_token_stream(), &mut |tree| {
        let short = quote && !matches!(tree, TokenTree::Ident(ident) if ident == "static");
        quote = matches!(tree, TokenTree::Punct(punct) if punct.as_char() == '\'');
        short
    })
}

fn any(tokens: TokenStream, test: &mut impl FnMut(&TokenTree) -> bool) -> bool {
    tokens.into_iter().any(|tree| {
        test(&tree)
            || match tree {
                TokenTree::Group(group) => any(group.stream(), test),
                _ => false,
            }
    })
}

/// Turns everything borrowed in a type into its owned form: `String` for `&str`, `Vec<T>` for `&[T]`, `T` for
/// `&T`. The result is for use inside an expansion's block.
pub(crate) fn owned(ty: impl ToTokens) -> TokenStream {
    own(ty.to_token_stream(), &|name| {
        let name = Ident::new(name, Span::call_site());
        quote!(__daffi::#name)
    })
}

/// Returns the owned type as a person would write it.
pub(crate) fn owned_text(ty: impl ToTokens) -> String {
    text(own(ty.to_token_stream(), &|name| Ident::new(name, Span::call_site()).into_token_stream()))
}

fn own(tokens: TokenStream, name: &dyn Fn(&str) -> TokenStream) -> TokenStream {
    let mut trees = tokens.into_iter().peekable();
    let mut out = TokenStream::new();
    while let Some(tree) = trees.next() {
        match tree {
            TokenTree::Punct(punct) if punct.as_char() == '&' => {
                if trees
                    .next_if(|tree| matches!(tree, TokenTree::Punct(punct) if punct.as_char() == '\''))
                    .is_some()
                {
                    trees.next();
                }
                trees.next_if(|tree| matches!(tree, TokenTree::Ident(ident) if ident == "mut"));
                match trees.peek() {
                    Some(TokenTree::Ident(ident)) if ident == "str" => {
                        trees.next();
                        out.extend(name("String"));
                    }
                    Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
                        let array = group
                            .stream()
                            .into_iter()
                            .any(|tree| matches!(tree, TokenTree::Punct(punct) if punct.as_char() == ';'));
                        if !array {
                            let (element, vec) = (own(group.stream(), name), name("Vec"));
                            out.extend(quote!(#vec<#element>));
                            trees.next();
                        }
                    }
                    _ => {}
                }
            }
            TokenTree::Group(group) => {
                let mut inner = proc_macro2::Group::new(group.delimiter(), own(group.stream(), name));
                inner.set_span(group.span());
                out.extend([TokenTree::Group(inner)]);
            }
            tree => out.extend([tree]),
        }
    }
    out
}

/// Formats tokens as a person would write them.
pub(crate) fn text(tokens: impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (spaced, tight) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" <", "<"),
        (" >", ">"),
        (" ,", ","),
        ("& ", "&"),
        ("[ ", "["),
        (" ]", "]"),
        (" ;", ";"),
    ] {
        text = text.replace(spaced, tight);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_borrowed_becomes_owned() {
        for (borrowed, expected) in [
            ("&str", "String"),
            ("&'a str", "String"),
            ("&mut i64", "i64"),
            ("&[u8]", "Vec<u8>"),
            ("&[u8; 4]", "[u8; 4]"),
            ("Option<&'static str>", "Option<String>"),
            ("&[(u8, &str)]", "Vec<(u8, String)>"),
            ("&std::path::Path", "std::path::Path"),
            ("Vec<String>", "Vec<String>"),
        ] {
            let ty: Type = syn::parse_str(borrowed).unwrap();
            assert_eq!(owned_text(&ty), expected, "{borrowed}");
        }
    }

    #[test]
    fn lifetimes_are_found_however_deep() {
        let short = |text: &str| has_short_lifetime(&syn::parse_str::<Type>(text).unwrap());
        assert!(short("Option<(u8, Cow<'_, str>)>"));
        assert!(short("Lent<'static, 'a>"));
        assert!(!short("Cow<'static, str>"));
        assert!(!short("Vec<u8>"));
    }
}
