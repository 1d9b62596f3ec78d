//! Engines in every way a host can have them: C and Rust, in this process and in a child.
//!
//! The C engines are compiled with gcc when the tests run. The child processes are this very program:
//! started with the word `engine-child`, [`child_program`] serves an engine instead of testing.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod back_pressure;
mod crash;
mod echo;
mod load;
mod same_behaviour;
mod support;
mod transfer;

use std::process::exit;

/// The program of every child in these tests; does nothing when it is run as a test.
#[test]
fn child_program() {
    let is = |word: &str| std::env::args().any(|arg| arg == word);
    if is(support::CHILD_WORD) {
        let served = mainstay_engine_host::child::run_linked(support::rust_echo());
        exit(i32::from(served.is_err()));
    }
    if is(support::MIDDLE_WORD) {
        crash::middle();
    }
}
