//! The lives of blocks in one pool of memory: who uses them, how much each is worth, which goes
//! next and why.
//!
//! An engine's memory, host memory and a disk are such pools. None of their bytes are here: a pool
//! is numbers of blocks and their sequence hashes, so that one set of rules, held against one
//! reference, stands behind every tier. It is pure: no clock, no locks, no randomness that an
//! answer depends on; time comes in as `now_ms` and never has to be right, only not to go back.
//!
//! Layout: [`BlockManager`] is the pool; [`Stage`] are the stations of a block's life and the moves
//! between them; [`LeaseTerms`] say what somebody wants kept, and claims of many merge to their
//! maximum; pins forbid eviction; [`Class`] and [`Cause`] name what is kept and why it went;
//! [`Change`] is what others are told; [`Figures`] what people are told. [`Retention`] turns the
//! changes of sessions into leases and orders, by the rules of [`Policy`] and with what [`Durations`]
//! has learnt about their tools.
//!
//! Every map has a named limit. What is beyond one is refused with a [`BlockError`], never dropped
//! in silence; a wrong block number or table is an error too, and leaves the pool whole.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod block;
mod changes;
#[cfg(test)]
mod chaos;
mod class;
mod durations;
mod error;
mod figures;
mod idle;
mod leases;
mod levels;
mod lifetime;
mod manager;
mod pins;
mod policy;
mod queue;
#[cfg(test)]
mod reference;
mod retain;
#[cfg(test)]
mod scenarios;
mod stage;
mod tenants;
#[cfg(test)]
mod tests;

pub use changes::Change;
pub use class::{Cause, Class, Defaults, End};
pub use durations::{Durations, Sketch, TOOL_NAME_BYTES_MAX, TOOLS_MAX, TOOLS_PER_TENANT_MAX};
pub use error::BlockError;
pub use figures::{Ages, Figures, Worths};
pub use leases::{Amendment, LeaseId, LeaseTerms, SpanTerms, SpanView};
pub use manager::{BlockManager, Counts, Evicted, Limits};
pub use policy::{Next, Pause, Policy, PolicySettings, Pressure, SessionTerms, Stakes};
pub use retain::{Ending, Event, Order, Retention, SESSIONS_MAX, SessionId, Turn};
pub use stage::Stage;
pub use tenants::TenantSlot;

/// A block in its pool, as somebody came to know it: its number, and what it was then.
///
/// A number comes back with another content, and a block that nobody uses any more gets other users. Whoever kept a
/// name from before is refused, so that a table that is released twice takes nothing away from those who came after.
/// Among those who use a block at one time a second release can't be told from another's first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId {
    index: u32,
    generation: u16,
    uses: u16,
}

impl BlockId {
    /// The number, below that of the pool's blocks: where its bytes lie.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    fn at(self) -> usize {
        self.index as usize
    }
}

/// No block: the parent of the first one of a chain.
const NONE: u32 = u32::MAX;

/// The most blocks of a pool.
pub const BLOCKS_MAX: u32 = 1 << 28;
/// The most tenants that a pool tells apart.
pub const TENANTS_MAX: u32 = 1 << 16;
/// The most leases of a pool, unless its [`Limits`] say less. Of these, of the claims of all leases, of pins and of
/// their hashes a tenant may have as many as are left for others.
pub const LEASES_MAX: usize = 1 << 16;
/// The most different claims on a block, unless the pool's [`Limits`] say less.
pub const CLAIM_KINDS_MAX: usize = 16;
/// The most spans of a lease.
pub const SPANS_MAX: usize = 1024;
/// How often the spans of a lease may name each block of their table, on average.
pub const OVERLAP_MAX: usize = 4;
/// The most claims of all leases together, for each block of a pool: a block that a thousand
/// sessions share has a thousand claims, most have few.
pub const CLAIMS_PER_BLOCK_MAX: usize = 64;
/// The same for small pools.
pub const CLAIMS_LEAST_MAX: usize = 1 << 16;
/// The most pins of a pool.
pub const PINS_MAX: usize = 1 << 16;
/// The most blocks that are named by changes that nobody has taken yet.
pub const CHANGED_BLOCKS_MAX: usize = 1 << 22;

/// The priority of a block about which nobody said anything.
pub const PRIORITY_DEFAULT: u8 = 35;
/// The highest priority.
pub const PRIORITY_MAX: u8 = 100;
/// A time that never comes.
pub const NEVER_MS: u64 = u64::MAX;
