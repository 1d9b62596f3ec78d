//! The replicated state machine: workers and their epochs, pins, tenants, cluster time, the hash key, the block index.
//!
//! Every member of the control plane and every gateway feeds the same log into one [`Machine`], so everything
//! here is a pure function of that log: no clock (time comes in stamps), no randomness, and no order of a hash
//! table reaches an outcome, a digest or an image. Hostile commands are refused with an error code; hostile
//! images are errors; neither can make it panic or grow past its [`Limits`].
//!
//! Layout: [`Machine`] takes commands, [`Freshness`] says how old a replica of it may be, `workers`, `pins`, `tenants`
//! and `join_tokens` hold the rules, `responses` what was answered, `version` says which of them hold already, `keeper` decides what makes pins whole again, `image` is the form on disk and on wires, [`Streams`] the index as workers' frames and the log's cuts make it, [`Limits`] says how big everything may get.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod freshness;
mod image;
mod join_tokens;
mod keeper;
mod limits;
mod machine;
mod outcome;
mod pins;
mod responses;
mod streams;
mod tenants;
#[cfg(test)]
mod testing;
mod version;
mod workers;

pub use freshness::Freshness;
pub use image::{ImageError, IndexLoader};
pub use join_tokens::{JoinToken, JoinTokenUse};
pub use keeper::{KeeperOrder, LOOK_ORDERS_MAX, SETTLE_MS, WORKER_ORDERS_MAX, decide};
pub use limits::Limits;
pub use machine::Machine;
pub use outcome::Outcome;
pub use pins::{
    ENDED_BLOCKS_MAX, ENDED_PINS_MAX, Keeping, MissingCopies, ORDER_MS, OWNER_PINS_MAX, Order,
    PIN_ORDERS_MAX, Pin,
};
pub use responses::{RESPONSE_BYTES, Response};
pub use streams::{CutCheck, MARKS_MAX, Position, Streams, Taken};
pub use tenants::{Tenant, TenantKey};
pub use version::{NewerCommand, TENANTS_AND_REGIONS, VERSION_NEWEST, VERSION_OLDEST, fit};
pub use workers::{Worker, WorkerState};
