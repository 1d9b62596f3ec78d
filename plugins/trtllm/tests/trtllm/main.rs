//! The TensorRT-LLM engine over its double: the vendor's kit, the faults, the child process, and the symbols.
//!
//! The child processes are this very program: started with the word of [`library`], [`child_program`] serves the
//! library instead of testing.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod faults;
mod kit;
mod library;
mod rig;
mod symbols;

use std::process::exit;

/// The program of every child in these tests; does nothing when it is run as a test.
#[test]
fn child_program() {
    if std::env::args().any(|arg| arg == library::CHILD_WORD) {
        exit(i32::from(mainstay_engine_host::child::run().is_err()));
    }
}
