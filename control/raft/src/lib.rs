//! The replicated log of the control plane: openraft behind a facade, its log in RocksDB, its network over gRPC.
//!
//! Nothing outside this crate sees openraft, so that an upgrade of it is a change of this crate alone. A fault
//! of the disk ends the [`Group`] with a reason; the process is expected to exit and be started again.
//!
//! Layout: [`Group`] is the facade; `store` keeps log and vote, `snapshot` the state's image, `machine` applies
//! entries, `feed` hands them to watchers, `streams` has the block index beside the log, `network` talks to peers,
//! `codec` is the one encoding of all of it, `offline` works on data directories of members that are down.
#![forbid(unsafe_code)]

mod codec;
mod error;
mod feed;
mod group;
mod machine;
mod network;
mod offline;
#[cfg(feature = "simulation")]
pub mod simulation;
mod snapshot;
mod store;
mod streams;
mod types;

pub use error::{GroupError, MemberError, OfflineError, ProposeError, StoreError};
pub use feed::{Applied, Read};
pub use group::{
    Founder, Group, GroupConfig, GroupStatus, Leadership, MEMBERS_MAX, MemberStatus,
    PROPOSAL_BYTES_MAX, Role, Settings, Steps, WallClock,
};
pub use network::Connector;
pub use offline::{
    BackedUp, Inspection, LogSeen, MemberSeen, Position, RestoreTo, Restored, SnapshotSeen,
    VoteSeen, backup, inspect, restore,
};
pub use streams::{IndexImage, ItemsRead, StreamHub, StreamItem};
