//! Where a controller listens.

use std::{fmt, path::PathBuf, str::FromStr};

/// The address of a controller: TCP, or a UNIX socket.
///
/// As text: `tcp://localhost:8888` or `unix:///run/app/daffi.sock`.
///
/// ```
/// # use daffi_core as daffi;
/// use daffi::Address;
///
/// let address: Address = "tcp://localhost:8888".parse()?;
/// assert_eq!(address, Address::Tcp { host: "localhost".into(), port: 8888 });
/// assert_eq!(address.to_string(), "tcp://localhost:8888");
/// # Ok::<(), daffi::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host name or IP address, and a port. If a controller listens on port 0, it gets a free one.
    Tcp {
        /// The host, without the brackets of an IPv6 address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The path of a socket file.
    Unix(PathBuf),
}

impl Address {
    /// Returns the UNIX socket used by default: `<temp dir>/daffi/.sock`.
    pub fn default_unix() -> Self {
        Self::Unix(std::env::temp_dir().join("daffi").join(".sock"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address: write tcp://HOST:PORT or unix:///PATH")]
pub struct AddressError {
    text: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).ok_or_else(|| AddressError { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Address> {
    if let Some(path) = text.strip_prefix("unix://") {
        return (!path.is_empty()).then(|| Address::Unix(path.into()));
    }
    let (host, port) = text.strip_prefix("tcp://")?.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port = port.parse().ok()?;
    (!host.is_empty()).then(|| Address::Tcp { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_address_are_the_same_thing() {
        for text in ["tcp://localhost:8888", "tcp://[::1]:1", "unix:///a/b.sock", "unix://relative"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "localhost:1",
            "tcp://:1",
            "tcp://a",
            "tcp://a:b",
            "tcp://a:70000",
            "tcp://::1:5",
            "unix://",
            "http://a:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
