//! JSON with a depth limit. serde_json limits the depth only when it reads arrays and objects: not when it
//! writes, and not for options and newtypes, which add no text.

mod decode;
pub(super) use decode::decode;

mod encode;
pub(super) use encode::append;
