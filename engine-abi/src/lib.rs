//! The engine boundary: a Rust mirror of `mainstay_engine.h` and an SDK for engines written in Rust.
//!
//! The C header is normative, because vendors' engines are C and C++; [`raw`] repeats it field for
//! field, [`layout`] proves that it does (at compile time where it can, against gcc in the tests).
//! [`sdk`] is what a Rust engine implements instead of touching pointers: one trait, bounded lanes,
//! and shims that check every word that crosses. The host's side is `mainstay-engine-host`.

pub mod layout;
pub mod limits;
pub mod raw;
pub mod read;
pub mod sdk;
