//! What the server's cache holds, as its own events tell it over ZeroMQ.
//!
//! Three pure parts (bytes to events, numbers of batches to decisions, the server's names to ours) and two with
//! sockets. Nothing here knows of requests, but for the first blocks of prompts, by which events of servers that
//! do not tell their salts find their namespace.

pub(crate) mod decode;
pub(crate) mod listen;
pub(crate) mod mirror;
pub(crate) mod msgpack;
pub(crate) mod order;
pub(crate) mod salts;
pub(crate) mod zmtp;
