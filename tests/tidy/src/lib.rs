//! House rules as tests: layers, file and function length, module docs, words that must not be in the tree.
//! The rules live in `tests/`; this crate has no code of its own.
#![forbid(unsafe_code)]
