//! The words that every part of Mainstay shares: ids, sequence hashes, tiers, pins, commands, error codes.
//!
//! No serialisation, no async, no clock: wire forms live in `mainstay-proto`, time comes in as a value.
//! Layout: [`hash`] names blocks, [`id`] names everything else, [`block`] says what workers hold,
//! [`pin`] what was promised, [`kept`] what it takes to keep that when all holders are lost, [`region`] what is near,
//! [`tenant`] who may use what, [`response`] what was answered, [`command`] what the Raft log carries, [`error_code`] what can go wrong.
// Denied, not forbidden: `hash/hardware.rs` alone calls functions for instruction sets that were detected.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod block;
pub mod command;
pub mod error_code;
pub mod hash;
pub mod id;
pub mod kept;
pub mod pin;
pub mod region;
pub mod response;
pub mod tenant;
pub mod time;

pub use block::{BlockEvent, CutSource, EventFrame, EventView, StreamMark, Tier};
pub use command::{Command, FenceCause, ModelSpec, Proposal};
pub use error_code::ErrorCode;
pub use hash::{BlockHashKey, BlockHasher, HashKey, NamespaceId, SequenceHash};
pub use id::{
    Epoch, EventSequence, KeyId, LogIndex, NodeId, PinId, ResponseId, SessionId, TenantId, Term,
    WorkerId,
};
pub use kept::KeptTokens;
pub use pin::{PinRequest, PinScope, PinState};
pub use region::Region;
pub use response::{Payload, ResponseRecord, ResponseState};
pub use tenant::{JoinRequest, JoinRole, JoinTokenRequest, Quota, SecretHash};
pub use time::{ClusterTime, Stamp, Tenure};
