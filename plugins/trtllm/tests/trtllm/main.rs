//! The TensorRT-LLM engine over its double: the vendor's kit, the faults, the child process, and the symbols.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod faults;
mod kit;
mod library;
mod rig;
mod symbols;
