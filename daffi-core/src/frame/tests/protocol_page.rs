//! `docs/PROTOCOL.md` is for readers who have nothing else, so its bytes are checked against the code.
//!
//! Every block of the page that is marked `hex` is one frame: a first line `# ` with its description, in the
//! format of [`golden::describe`], then its bytes, with comments after `#`.

use std::{collections::BTreeSet, fs, path::Path};

use super::*;

/// Returns the page, or nothing if only this crate was unpacked.
fn page() -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md")).ok()
}

fn blocks(page: &str) -> Vec<(&str, &str)> {
    page.split("```hex\n")
        .skip(1)
        .map(|rest| {
            let block = rest.split("```").next().expect("a split gives at least one part");
            let (description, bytes) = block.split_once('\n').expect("a block has two lines at least");
            (description.strip_prefix("# ").expect("a block begins with what it says"), bytes)
        })
        .collect()
}

#[test]
fn the_bytes_on_the_page_are_those_of_the_code() {
    let Some(page) = page() else { return };
    let mut kinds = BTreeSet::new();
    for (description, hex) in blocks(&page) {
        let bytes = unhex(hex);
        let frame = whole(&bytes).unwrap_or_else(|error| panic!("{error}: {description}"));
        assert_eq!(golden::describe(&frame), description);
        assert_eq!(frame.to_bytes(), bytes, "{description}");
        kinds.insert(bytes[4]);
    }
    assert_eq!(kinds, (1..=16).collect(), "every kind has an example");
}
