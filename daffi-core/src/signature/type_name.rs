//! Names of types, as caller and callee compare them.
//!
//! The compiler's own text differs between compilers in paths and lifetimes, and between caller and callee if
//! one borrows what the other owns. So it is parsed and rewritten.

use std::any;

/// Crates with types that are encoded like a `Vec<u8>`.
const BYTES_CRATES: [&str; 3] = ["daffi_core", "bytes", "serde_bytes"];

/// Returns the name of a type without paths, lifetimes and indirection.
///
/// Types that serde encodes alike, and that a caller may borrow where a callee owns, have the same name:
/// `&T`, `Box<T>`, `Arc<T>` and `Cow<T>` are `T`, `&str` is `String`, and `&[T]` is `Vec<T>`. The `Bytes` of
/// daffi, bytes and serde_bytes is `Vec<u8>`.
///
/// ```
/// use daffi_core::signature::type_name;
///
/// assert_eq!(type_name::<Option<&[std::borrow::Cow<'_, str>]>>(), "Option<Vec<String>>");
/// ```
pub fn type_name<T: ?Sized>() -> String {
    normalised(any::type_name::<T>())
}

/// Returns the names of a tuple's elements; for any other type, just its own name.
pub(super) fn elements<T: ?Sized>() -> Vec<String> {
    let text = any::type_name::<T>();
    let mut parser = Parser { rest: text, depth: 0 };
    let tuple = parser.eat("(").then(|| parser.list(")")).flatten();
    match tuple {
        Some(elements) if parser.rest.is_empty() => elements,
        _ => vec![normalised(text)],
    }
}

fn normalised(text: &str) -> String {
    let mut parser = Parser { rest: text, depth: 0 };
    match parser.parse_type() {
        Some(name) if parser.rest.is_empty() => name,
        // The compiler wrote something that this parser does not know. Even unchanged, it distinguishes
        // types.
        _ => text.to_owned(),
    }
}

/// Reads a type from the front of `rest`. `None` always means that the text is not a type that it knows.
struct Parser<'a> {
    rest: &'a str,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn parse_type(&mut self) -> Option<String> {
        // Nobody writes types that are nested more deeply than this.
        if self.depth == 100 {
            return None;
        }
        self.depth += 1;
        let name = self.parse_inner();
        self.depth -= 1;
        name
    }

    fn parse_inner(&mut self) -> Option<String> {
        if self.eat("&") {
            self.lifetime();
            self.eat("mut ");
            return self.parse_type();
        }
        if self.eat("(") {
            let elements = self.list(")")?;
            let comma = if elements.len() == 1 { "," } else { "" };
            return Some(format!("({}{comma})", elements.join(", ")));
        }
        if self.eat("[") {
            let element = self.parse_type()?;
            if self.eat("; ") {
                let length = self.until("]")?;
                return Some(format!("[{element}; {length}]"));
            }
            // A slice is always behind a pointer, which is omitted.
            return self.eat("]").then(|| format!("Vec<{element}>"));
        }
        for pointer in ["*const ", "*mut "] {
            if self.eat(pointer) {
                return Some(format!("{pointer}{}", self.parse_type()?));
            }
        }
        if self.eat("dyn ") {
            let mut bounds = vec![self.bound()?];
            while self.eat(" + ") {
                bounds.push(self.bound()?);
            }
            return Some(format!("dyn {}", bounds.join(" + ")));
        }
        if self.eat("!") {
            return Some("!".to_owned());
        }
        self.binder()?;
        for qualifier in ["unsafe ", "extern \"C\" ", "extern \"system\" "] {
            self.eat(qualifier);
        }
        if self.eat("fn(") {
            return Some(format!("fn{}", self.function()?));
        }
        self.path()
    }

    /// Reads a trait of a `dyn`, or a lifetime, whose name is omitted.
    fn bound(&mut self) -> Option<String> {
        if self.lifetime() {
            return Some("'_".to_owned());
        }
        self.binder()?;
        self.eat("?");
        self.path()
    }

    /// Skips the `for<'a>` before a function pointer or a trait.
    fn binder(&mut self) -> Option<()> {
        if self.eat("for<") {
            self.until("> ")?;
        }
        Some(())
    }

    /// Reads what follows the opening parenthesis of `fn(` or `Fn(`.
    fn function(&mut self) -> Option<String> {
        let arguments = self.list(")")?.join(", ");
        if self.eat(" -> ") {
            Some(format!("({arguments}) -> {}", self.parse_type()?))
        } else {
            Some(format!("({arguments})"))
        }
    }

    /// Reads a path and keeps its last segment.
    fn path(&mut self) -> Option<String> {
        let root = self.segment()?;
        let (mut last, mut arguments) = (root, self.arguments()?);
        let mut standard = false;
        while self.eat("::") {
            // `a::f::{{closure}}`, or a type declared in a generic function, `a::f<i32>::Local`.
            standard = ["alloc", "core", "std"].contains(&root);
            (last, arguments) = (self.segment()?, self.arguments()?);
        }
        if self.rest.starts_with('(') {
            self.eat("(");
            return Some(format!("{last}{}", self.function()?));
        }
        let mut arguments = arguments.unwrap_or_default();
        match (last, standard) {
            ("str", false) => return Some("String".to_owned()),
            ("Path", true) => return Some("PathBuf".to_owned()),
            ("OsStr", true) => return Some("OsString".to_owned()),
            ("CStr", true) => return Some("CString".to_owned()),
            ("Bytes" | "BytesMut" | "ByteBuf", _) if BYTES_CRATES.contains(&root) => {
                return Some("Vec<u8>".to_owned());
            }
            ("Box" | "Rc" | "Arc" | "Cow", true) if !arguments.is_empty() => {
                return Some(arguments.swap_remove(0));
            }
            // The hasher only matters to the owner.
            ("HashMap", true) => arguments.truncate(2),
            ("HashSet", true) => arguments.truncate(1),
            _ => {}
        }
        if arguments.is_empty() {
            Some(last.to_owned())
        } else {
            Some(format!("{last}<{}>", arguments.join(", ")))
        }
    }

    /// Reads a segment: an identifier, or what the compiler writes in braces for things without a name.
    fn segment(&mut self) -> Option<&'a str> {
        if self.rest.starts_with('{') {
            let mut open = 0;
            let end = self.rest.char_indices().find_map(|(at, char)| {
                match char {
                    '{' => open += 1,
                    '}' => open -= 1,
                    _ => {}
                }
                (open == 0).then_some(at + 1)
            })?;
            return Some(self.take(end));
        }
        self.eat("r#");
        let end =
            self.rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(self.rest.len());
        (end > 0).then(|| self.take(end))
    }

    /// Reads generic arguments, if there are any. Lifetimes are omitted.
    fn arguments(&mut self) -> Option<Option<Vec<String>>> {
        if self.eat("<") || self.eat("::<") { self.list(">").map(Some) } else { Some(None) }
    }

    /// Reads types, constants and bindings up to and including `close`.
    fn list(&mut self, close: &str) -> Option<Vec<String>> {
        let mut items = Vec::new();
        while !self.eat(close) {
            if !self.lifetime() {
                items.push(self.item()?);
            }
            if !self.eat(", ") && !self.eat(",") && !self.rest.starts_with(close) {
                return None;
            }
        }
        Some(items)
    }

    fn item(&mut self) -> Option<String> {
        // A constant: a number or a character; `true` and `false` are read like a path.
        if self.rest.starts_with(|char: char| char.is_ascii_digit() || char == '-') {
            let end = self.rest.find([',', '>', ')'])?;
            return Some(self.take(end).to_owned());
        }
        if let Some(char) = self.character() {
            return Some(char.to_owned());
        }
        // A binding, as in `dyn Iterator<Item = u8>`.
        if let Some((name, _)) = self.rest.split_once(" = ")
            && name.chars().all(|char| char.is_alphanumeric() || char == '_')
        {
            self.take(name.len() + " = ".len());
            return Some(format!("{name} = {}", self.parse_type()?));
        }
        self.parse_type()
    }

    /// Reads a character constant such as `'x'` or `'\n'`.
    fn character(&mut self) -> Option<&'a str> {
        let inner = self.rest.strip_prefix('\'')?;
        let skip = inner.chars().next()?.len_utf8() + usize::from(inner.starts_with('\\'));
        let end = skip + inner.get(skip..)?.find('\'')? + 2;
        // `'a, 'b` has a second quote too, but a character ends right away, unless it is escaped.
        (inner.starts_with('\\') || end == skip + 2).then(|| self.take(end))
    }

    /// Reads a lifetime, and the space that follows it in a reference.
    fn lifetime(&mut self) -> bool {
        let Some(name) = self.rest.strip_prefix('\'') else {
            return false;
        };
        let end = name.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(name.len());
        if end == 0 || name[end..].starts_with('\'') {
            return false; // a character
        }
        self.take(1 + end);
        self.eat(" ");
        true
    }

    fn until(&mut self, end: &str) -> Option<&'a str> {
        let (text, rest) = self.rest.split_once(end)?;
        self.rest = rest;
        Some(text)
    }

    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{
        borrow::Cow,
        collections::{BTreeMap, HashMap, HashSet},
        fmt::Debug,
        path::Path,
        rc::Rc,
        sync::Arc,
    };

    use super::*;

    #[test]
    fn paths_are_left_out() {
        assert_eq!(type_name::<i64>(), "i64");
        assert_eq!(type_name::<String>(), "String");
        assert_eq!(type_name::<Option<Vec<String>>>(), "Option<Vec<String>>");
        assert_eq!(type_name::<Result<(), std::io::Error>>(), "Result<(), Error>");
        assert_eq!(type_name::<BTreeMap<u8, (i32,)>>(), "BTreeMap<u8, (i32,)>");
        assert_eq!(type_name::<[(u8, char); 4]>(), "[(u8, char); 4]");
        assert_eq!(type_name::<()>(), "()");
    }

    #[test]
    fn what_serde_encodes_alike_has_one_name() {
        assert_eq!(type_name::<&str>(), "String");
        assert_eq!(type_name::<Box<str>>(), "String");
        assert_eq!(type_name::<Cow<'static, str>>(), "String");
        assert_eq!(type_name::<&&mut i64>(), "i64");
        assert_eq!(type_name::<&[&[u8]]>(), "Vec<Vec<u8>>");
        assert_eq!(type_name::<Rc<[Arc<u8>]>>(), "Vec<u8>");
        assert_eq!(type_name::<Cow<'static, [u8]>>(), "Vec<u8>");
        assert_eq!(type_name::<Option<bytes::Bytes>>(), "Option<Vec<u8>>");
        assert_eq!(type_name::<&crate::payload::Bytes>(), "Vec<u8>");
        assert_eq!(normalised("serde_bytes::bytebuf::ByteBuf"), "Vec<u8>");
        assert_eq!(type_name::<&Path>(), "PathBuf");
        assert_eq!(type_name::<Box<Box<u8>>>(), "u8");
        assert_eq!(type_name::<HashMap<&str, i32>>(), "HashMap<String, i32>");
        assert_eq!(type_name::<HashMap<u8, i32, foldhash::fast::RandomState>>(), "HashMap<u8, i32>");
        assert_eq!(type_name::<HashSet<u8, foldhash::fast::RandomState>>(), "HashSet<u8>");
    }

    #[test]
    fn types_of_ones_own_keep_their_names() {
        struct Box<T>(T);
        struct Lent<'a, T>(&'a T);
        let _ = (Box(1).0, Lent(&1).0);
        assert_eq!(normalised("my_crate::bytes::Bytes"), "Bytes");
        assert_eq!(type_name::<Box<i32>>(), "Box<i32>");
        assert_eq!(type_name::<Lent<'static, i32>>(), "Lent<i32>");
    }

    #[test]
    fn odd_types_have_names_too() {
        assert_eq!(type_name::<dyn Debug + Send>(), "dyn Debug + Send");
        assert_eq!(type_name::<Box<dyn Fn(&str) -> i64>>(), "dyn Fn(String) -> i64");
        assert_eq!(type_name::<dyn Iterator<Item = String>>(), "dyn Iterator<Item = String>");
        assert_eq!(type_name::<fn(i32, &str)>(), "fn(i32, String)");
        assert_eq!(type_name::<for<'a> fn(&'a i32) -> &'a i32>(), "fn(i32) -> i32");
        assert_eq!(type_name::<*const u8>(), "*const u8");
    }

    #[test]
    fn texts_of_any_compiler_are_read() {
        for (text, expected) in [
            ("a::f::{{closure}}", "{{closure}}"),
            ("a::{impl#0}::f::Local", "Local"),
            ("a::f<i32>::Local<'_, u8>", "Local<u8>"),
            ("a::Matrix<3, -1, true, 'x', '\\n'>", "Matrix<3, -1, true, 'x', '\\n'>"),
            ("a::Lent<'a, 'b, a::T>", "Lent<T>"),
            ("&'a mut a::T", "T"),
            ("a::r#type", "type"),
            ("dyn for<'a> a::T<'a> + 'static", "dyn T + '_"),
            ("alloc::borrow::Cow<'_, str>", "String"),
            ("für::Größe", "Größe"),
        ] {
            assert_eq!(normalised(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_is() {
        let deep = format!("{}u8{}", "(".repeat(10_000), ",)".repeat(10_000));
        for text in [
            "",
            "a::",
            "<a::T as b::U>::V",
            "(a::b",
            "[u8",
            "a<b",
            "a b",
            "'",
            "'é",
            "{",
            "&",
            "dyn ",
            "-",
            "a<'",
            "a<'\\",
            &deep,
        ] {
            assert_eq!(normalised(text), text);
        }
    }

    #[test]
    fn a_tuple_has_elements() {
        assert_eq!(elements::<()>(), Vec::<String>::new());
        assert_eq!(elements::<(i64,)>(), ["i64"]);
        assert_eq!(elements::<(i64, (u8, &str))>(), ["i64", "(u8, String)"]);
        assert_eq!(elements::<Option<i64>>(), ["Option<i64>"]);
    }
}
