//! What a user reads when a callback or fetcher is wrong: one mistake per file, and one message for it.
//!
//! The messages in `ui/ours` are ours and hold on every compiler. Those in `ui/rustc` are the compiler's, about types
//! that cannot travel: what matters there is that they point at the user's type and are not said twice. They change
//! with the compiler, which never touches ours. `TRYBUILD=overwrite` writes both anew.

#[test]
fn mistakes_that_the_macros_see() {
    trybuild::TestCases::new().compile_fail("tests/ui/ours/*.rs");
}

#[test]
fn mistakes_that_the_compiler_sees() {
    trybuild::TestCases::new().compile_fail("tests/ui/rustc/*.rs");
}
