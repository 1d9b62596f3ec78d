//! The remote engine over doubles of the servers that it knows, and over a real one where there is one.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod doubles;
mod faults;
mod kit;
mod real_server;
