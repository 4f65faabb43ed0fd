//! Calls that lead to further calls, in a circle, as their arguments say.

use std::{collections::VecDeque, fmt};

/// Separates the parts of a ring in a call's arguments.
const BETWEEN: char = '>';

/// How many more calls a call is to lead to, to which callback, and on which nodes: one after the other, over
/// and over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) left: u32,
    pub(crate) callback: String,
    pub(crate) nodes: VecDeque<String>,
}

impl Ring {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(BETWEEN);
        let (left, callback) = (parts.next()?.parse().ok()?, parts.next()?.to_owned());
        Some(Self { left, callback, nodes: parts.map(str::to_owned).collect() })
    }

    /// Returns which node `me` calls, and what is left for that one. A node calls itself only if alone.
    pub(crate) fn next(mut self, me: &str) -> Option<(String, Self)> {
        self.left = self.left.checked_sub(1)?;
        let other = self.nodes.iter().position(|node| node != me).unwrap_or_default();
        self.nodes.rotate_left(other);
        let next = self.nodes.front()?.clone();
        self.nodes.rotate_left(1);
        Some((next, self))
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{BETWEEN}{}", self.left, self.callback)?;
        self.nodes.iter().try_for_each(|node| write!(f, "{BETWEEN}{node}"))
    }
}
