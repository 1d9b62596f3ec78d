//! A member of the control plane: the replicated log of [`mainstay_raft`] behind the `Control` service.
//!
//! [`start`] opens the data directory, serves `Control` and `Raft` on one listener, and founds, joins or resumes
//! a group. The member that leads also keeps the workers' leases and moves cluster time on. Any member answers
//! `Watch` and `Status`; whatever needs the leader is refused elsewhere with the leader's address.
//!
//! Layout: [`config`] says how a member is started, `service` answers calls, `watch` feeds replicas, `duties` is
//! what a leader does unasked, `keeper` how it makes pins whole again, `cuts` what it says of the index, `freshness` how old a member's state may be, `leases` who was heard when, `founding` how a group
//! comes to be, `identities` which data directories its members have, `versions` what its log may say.
#![forbid(unsafe_code)]

mod access;
mod by_caller;
pub mod config;
mod cuts;
mod duties;
mod error;
mod founding;
mod freshness;
mod handle;
mod identities;
mod keeper;
mod leases;
mod service;
mod time_text;
mod versions;
mod watch;

pub use config::{ControlConfig, Origin};
pub use error::ControlError;
pub use handle::{ControlHandle, start};
pub use mainstay_raft::{Group, GroupError, Settings, StoreError};
