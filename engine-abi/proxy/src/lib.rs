//! What engines have in common that compute nothing themselves, but speak for an executor of somebody else's.
//!
//! The desk knows who is live and gives each request its one end. The mirror knows what the executor's cache holds,
//! from its own events, under Mainstay's names; the salts say whose a block is; the teller tells it to the lanes. No
//! I/O and no threads: those are the engine's.

#![forbid(unsafe_code)]

pub mod desk;
pub mod event;
pub mod mirror;
pub mod salts;
pub mod teller;

pub use desk::{Command, Desk};
pub use teller::Teller;
