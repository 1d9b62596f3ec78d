//! The shell of an engine that manages its cache itself: a door that any thread may knock at, and the one thread that
//! does the work.
//!
//! Callers only queue commands under a lock that is never held over work. The thread drains them, lets the work take a
//! step and reports through the lanes; where the host does not keep up it waits instead of piling up. Should the
//! thread die, every live request still gets its final output and the engine says that it is broken. What a step is,
//! and which request is in it, is the engine's: its [`Work`].

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cache;
mod door;
pub mod roster;
mod sequence;
mod thread;
mod work;

pub use cache::{Cache, Grid, pinned_full};
pub use door::{Ask, Door};
pub use sequence::{Place, Queue, Sequence};
pub use thread::Shell;
pub use work::{Wake, Work};
