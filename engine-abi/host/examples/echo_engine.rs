//! The tests' echo engine as a library of its own: what `export_engine!` makes of a Rust engine.
//!
//! `cargo test` builds it with the other examples; the tests load it as they load the C engines.

#[path = "../tests/engines/echo.rs"]
mod echo;

mainstay_engine_abi::export_engine!(echo::Echo);
