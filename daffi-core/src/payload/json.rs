//! JSON, with a limit on the depth. serde_json has one for reading arrays and objects, and none for writing, nor for
//! options and newtypes, which take no text.

mod decode;
pub(super) use decode::decode;

mod encode;
pub(super) use encode::append;
