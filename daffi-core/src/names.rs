//! What a process or callback may be called: the same rule on both sides of the wire.

/// The longest name in bytes; a name's length travels in one byte.
pub const NAME_BYTES_MAX: usize = 255;

/// Names with this prefix are reserved for daffi itself.
pub const RESERVED_PREFIX: &str = "daffi.";

/// Checks a process or callback name: it must be 1 to 255 bytes of UTF-8 text without control characters, and
/// must not begin with `daffi.`.
///
/// # Errors
/// The rule that the name breaks, as a phrase.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("it is empty")
    } else if name.len() > NAME_BYTES_MAX {
        Err(TOO_LONG)
    } else if name.chars().any(char::is_control) {
        Err("it has control characters")
    } else if name.starts_with(RESERVED_PREFIX) {
        Err(RESERVED)
    } else {
        Ok(())
    }
}

/// Checks whether a call can name this process: like [`check_name`], but allows reserved names, which no
/// process has.
///
/// # Errors
/// The rule that the name breaks, as a phrase.
pub fn check_target(name: &str) -> Result<(), &'static str> {
    match check_name(name) {
        Err(RESERVED) => Ok(()),
        checked => checked,
    }
}

/// Checks whether a name fits into a frame, which is all that a caller needs to know before asking for a name
/// that another process may or may not have.
///
/// # Errors
/// The rule that the name breaks, as a phrase.
pub fn check_length(name: &str) -> Result<(), &'static str> {
    if name.len() > NAME_BYTES_MAX { Err(TOO_LONG) } else { Ok(()) }
}

const RESERVED: &str = "names that begin with `daffi.` are reserved";
const TOO_LONG: &str = "it is longer than 255 bytes";

#[cfg(test)]
mod tests {
    use super::{check_length, check_name};

    #[test]
    fn names_are_short_printable_and_not_ours() {
        for good in ["a", "func1", "größe", "node 7", "a.b:c/d-e", &"x".repeat(255)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a\nb", "\0", "daffi.stats", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_character_but_those_that_control_may_be_in_a_name() {
        for character in '\0'..=char::MAX {
            // As Unicode defines them: a line feed or an escape sequence could forge lines in a log.
            let controls = matches!(character, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}');
            for name in [String::from(character), format!("a{character}"), format!("{character}a")] {
                assert_eq!(check_name(&name).is_err(), controls, "{name:?}");
            }
        }
    }

    #[test]
    fn the_length_of_a_name_is_that_of_its_bytes() {
        for character in ['a', 'ß', '€', '🦀'] {
            for count in 1..=300 {
                let name = String::from(character).repeat(count);
                let fits = name.len() <= 255;
                assert_eq!(
                    (check_name(&name).is_ok(), check_length(&name).is_ok()),
                    (fits, fits),
                    "{name:?}"
                );
            }
        }
    }
}
