//! The global block index: which worker holds how much of a prefix, and in which tier.
//!
//! Every control member and every gateway keeps one, fed by the same numbered event streams, so it gives the same
//! answer everywhere and for holes too: a worker's overlap with a prompt is the count of *leading* blocks that it
//! holds, even where a chain was cut in the middle.
//!
//! Blocks are kept as **runs**: stretches of one chain that the same workers hold. A lookup touches one head per run
//! and not one entry per block, takes no lock and never waits for the writer. Exactness is promised for chained
//! hashes, where a block's key determines everything before it.
//!
//! Layout: [`BlockIndex`] is the writer (`store`, `coverage` and `shape` are its moves, `runs` its tables),
//! [`IndexReader`] looks up (`lookup` is the walk), `head` and `head_table` are what the two share,
//! `block_map` is the writer's own map, `segments` and `holders` say who holds what of a run, `budget` bounds memory,
//! [`ShardedIndex`] serves many writers, [`model`] is the literal reference for tests.
#![deny(missing_docs)]

mod arena;
mod batch;
mod block_index;
mod block_map;
mod budget;
#[doc(hidden)]
pub mod churn;
mod coverage;
mod digest;
mod hasher;
mod head;
mod head_table;
mod holders;
mod key;
mod lookup;
mod marks;
#[doc(hidden)]
pub mod model;
mod namespaces;
mod plain_edit;
mod reader;
mod region;
mod runs;
mod segments;
mod shape;
mod sharded;
mod shared;
mod snapshot;
mod store;
mod sync;
mod tiers;
mod unpack;
mod workers;

pub use batch::EventRef;
pub use block_index::{Applied, BlockIndex, IndexLimits, UnknownBlock};
pub use budget::{Memory, Stats};
pub use digest::{entry_digest, stretch_digest};
pub use holders::Holder;
pub use key::{BlockKey, BlockName};
pub use marks::{MARKS_MAX, Mark};
pub use reader::{Group, IndexReader, Overlap, TierOverlap};
pub use sharded::{SHARDS_MAX, ShardedIndex, ShardedReader};
pub use snapshot::{HeldStretch, RestoreError, RunSnapshot};
pub use tiers::TierSet;
