//! The arguments in an attribute's parentheses.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{
    Ident, LitInt, LitStr, Path, Token,
    ext::IdentExt,
    parse::{ParseStream, Parser},
};

use crate::diagnose::Mistakes;

/// The options given to an attribute.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) name: Option<LitStr>,
    pub(crate) prefix: Option<LitStr>,
    pub(crate) inline: bool,
    pub(crate) max_concurrency: Option<LitInt>,
    krate: Option<Path>,
}

/// What an attribute is on, which decides which options it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    CallbackFunction,
    CallbackStruct,
    CallbackImpl,
    FetcherFunction,
    FetcherTrait,
    /// A method of a `#[fetcher] trait`.
    FetcherMethod,
}

impl Args {
    /// Reads the options that `place` takes; any others are mistakes.
    pub(crate) fn parse(tokens: TokenStream, place: Place, mistakes: &mut Mistakes) -> Self {
        let mut args = Self::default();
        let result = (|input: ParseStream<'_>| {
            let mut seen = Vec::new();
            while !input.is_empty() {
                args.option(input, place, &mut seen, mistakes)?;
                if !input.is_empty() {
                    input.parse::<Token![,]>()?;
                }
            }
            Ok(())
        })
        .parse2(tokens);
        mistakes.take(result);
        args
    }

    fn option(
        &mut self,
        input: ParseStream<'_>,
        place: Place,
        seen: &mut Vec<String>,
        mistakes: &mut Mistakes,
    ) -> syn::Result<()> {
        let option = input.call(Ident::parse_any).map_err(|error| {
            syn::Error::new(error.span(), format!("write an option's name here: {}", place.options()))
        })?;
        let text = option.to_string();
        if seen.contains(&text) {
            mistakes.at(&option, format!("`{text}` is given twice: keep one"));
        }
        if let Some(problem) = place.refuses(&text) {
            mistakes.at(&option, problem);
            return skip(input);
        }
        match text.as_str() {
            "name" => self.name = value(input, "name = \"add\"")?.map(|name| checked(name, mistakes)),
            "prefix" => {
                self.prefix = value(input, "prefix = \"group_\"")?.map(|prefix| checked(prefix, mistakes))
            }
            "max_concurrency" => {
                self.max_concurrency = value::<LitInt>(input, "max_concurrency = 4")?;
                if let Some(number) = &self.max_concurrency {
                    match number.base10_parse::<usize>() {
                        Ok(0) => mistakes
                            .at(number, "0 would never run: write 1 or more, or leave `max_concurrency` out"),
                        Ok(_) => {}
                        Err(_) => mistakes.at(number, "write a number such as `max_concurrency = 4`"),
                    }
                }
            }
            "crate" => {
                let example = "write the path of the daffi crate: `crate = my_daffi`";
                input.parse::<Token![=]>().map_err(|error| syn::Error::new(error.span(), example))?;
                let path = Path::parse_mod_style(input);
                self.krate = Some(path.map_err(|error| syn::Error::new(error.span(), example))?);
            }
            _ => {
                self.inline = true;
                if input.peek(Token![=]) {
                    mistakes.at(&option, "`inline` takes no value: write `inline` alone");
                    return skip(input);
                }
            }
        }
        seen.push(text);
        Ok(())
    }

    /// The path of the daffi crate's support for expansions.
    pub(crate) fn private(&self) -> TokenStream {
        match &self.krate {
            Some(path) => quote!(#path::__private),
            None => quote!(::daffi::__private),
        }
    }

    /// Returns the `use` that every expansion begins with, inside its block.
    ///
    /// It gives the support module a one-word name. Such a name can be given any span, and errors are
    /// reported at the span of a token; a path that the user wrote keeps its own spans.
    pub(crate) fn import(&self) -> TokenStream {
        let private = self.private();
        quote!(use #private as __daffi;)
    }
}

impl Place {
    fn takes(self) -> &'static [&'static str] {
        match self {
            Self::CallbackFunction => &["name", "inline", "max_concurrency", "crate"],
            Self::CallbackStruct => &["crate"],
            Self::CallbackImpl => &["prefix", "inline", "max_concurrency", "crate"],
            Self::FetcherFunction => &["name", "crate"],
            Self::FetcherTrait => &["prefix", "crate"],
            Self::FetcherMethod => &["name"],
        }
    }

    fn options(self) -> String {
        let mut options = String::new();
        for (at, option) in self.takes().iter().enumerate() {
            options.push_str(match at {
                0 => "",
                at if at + 1 == self.takes().len() => " or ",
                _ => ", ",
            });
            options.push('`');
            options.push_str(option);
            options.push('`');
        }
        options
    }

    /// Returns why an option is not accepted here, or `None` if it is.
    fn refuses(self, option: &str) -> Option<String> {
        if self.takes().contains(&option) {
            return None;
        }
        Some(match (self, option) {
            (Self::CallbackImpl, "name") => {
                "an `impl` block has many callbacks: write `prefix = \"…\"` to put something in front of their names".to_owned()
            }
            (Self::FetcherTrait, "name") => {
                "a trait has many fetchers: write `#[fetcher(name = \"…\")]` on the method, or `prefix = \"…\"` here".to_owned()
            }
            (Self::CallbackFunction | Self::FetcherFunction, "prefix") => {
                "one function has one name: write `name = \"…\"`".to_owned()
            }
            (Self::FetcherMethod, "prefix" | "crate") => format!("write `{option}` on the trait"),
            (Self::CallbackStruct, "name" | "prefix" | "inline" | "max_concurrency") => {
                format!("the callbacks are the methods: write `{option}` on the `#[callback] impl` block")
            }
            (Self::FetcherFunction | Self::FetcherTrait | Self::FetcherMethod, "inline" | "max_concurrency") => {
                format!("how a callback runs is its owner's business: write `{option}` at the `#[callback]`")
            }
            _ => format!("there is no option `{option}` here: write {}", self.options()),
        })
    }
}

/// Parses the `=` of an option and the value after it.
fn value<T: syn::parse::Parse>(input: ParseStream<'_>, example: &str) -> syn::Result<Option<T>> {
    let explain = |error: syn::Error| syn::Error::new(error.span(), format!("write a literal: `{example}`"));
    input.parse::<Token![=]>().map_err(explain)?;
    input.parse().map(Some).map_err(explain)
}

/// Checks that the wire can carry a name.
fn checked(name: LitStr, mistakes: &mut Mistakes) -> LitStr {
    let text = name.value();
    if text.is_empty() {
        mistakes.at(&name, "this is empty: write at least one character, or leave the option out");
    } else if text.len() > 255 {
        mistakes.at(&name, "names have at most 255 bytes: write a shorter one");
    } else if text.contains(char::is_control) {
        mistakes.at(&name, "names have no control characters: write `_` or `.` instead");
    } else if text.starts_with("daffi.") {
        mistakes.at(&name, "names that begin with `daffi.` are reserved: write another prefix");
    }
    name
}

/// Skips to the next option.
fn skip(input: ParseStream<'_>) -> syn::Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<proc_macro2::TokenTree>()?;
    }
    Ok(())
}

/// Returns the identifier's name on the wire: `type` for `r#type`.
pub(crate) fn wire_name(ident: &Ident, args: &Args, prefix: Option<&LitStr>) -> LitStr {
    if let Some(name) = &args.name {
        return name.clone();
    }
    let name = ident.unraw();
    let prefix = prefix.map(LitStr::value).unwrap_or_default();
    LitStr::new(&format!("{prefix}{name}"), Span::call_site())
}
