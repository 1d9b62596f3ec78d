//! What the server's cache holds, as its own events tell it over ZeroMQ.
//!
//! Two pure parts (bytes to events, numbers of batches to decisions) and two with sockets. What the events mean is the
//! mirror's business (`mainstay-engine-proxy`). Nothing here knows of requests.

pub(crate) mod decode;
pub(crate) mod listen;
pub(crate) mod msgpack;
pub(crate) mod order;
pub(crate) mod zmtp;
