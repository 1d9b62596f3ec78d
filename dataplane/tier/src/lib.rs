//! The tiers below an engine's memory: bytes of blocks under their hashes, in host memory, on NVMe and in a
//! store of objects.
//!
//! A block that left the engine's memory is computed again unless its bytes are somewhere. Here they are kept, each
//! with who it belongs to, what comes before it, how long it is wanted and a checksum. *No answer rests on a
//! tier*: whatever is torn, flipped, late or missing is a miss, is counted, and is not offered again; a full disk or a
//! store that does not answer makes the tier smaller or slower, never the service.
//!
//! Layout: [`BlockKey`] names bytes, [`Record`] is a block on its way in, [`Retention`] travels with it. The
//! shelf inside decides who goes next; [`HostTier`] and [`DiskTier`] are slots of one size with a shelf each,
//! [`RemoteTier`] is a store of objects under names that need no listing. [`Filter`] says what is worth an SSD's
//! wear. [`Stack`] is memory and disk as one: reads from the nearest, fills upwards, writes what leaves.
//!
//! Blocks are forgotten one by one: forgetting all of a namespace at once is not built, and what is left of it goes as
//! it is wanted less.
//!
//! Time comes in as `now_ms`, by a clock that goes on over restarts (that of the wall, in practice).
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod disk;
mod error;
mod figures;
mod filter;
mod host;
mod key;
mod moves;
mod record;
mod remote;
mod shelf;
mod stack;
mod sum;

pub use disk::{DiskSettings, DiskTier, Health};
pub use error::TierError;
pub use figures::{Figures, FiguresView};
pub use filter::{Filter, FilterSettings, Skip, Touch, Verdict};
pub use host::{HostSettings, HostTier, Leaving};
pub use key::{BlockKey, Layout, LayoutId};
pub use moves::{Move, Moves};
pub use record::{Get, Held, Put, Record, Refusal, Retention};
pub use remote::{Fetch, Loaded, PACK_BLOCKS_MAX, RemoteSettings, RemoteTier, Run};
pub use stack::{Found, Stack, StackSettings};
pub use sum::{SUM_PIECE_BYTES, copy_summed, sum};

/// The most slots of a tier; the room of its tables is bounded by it.
pub const SLOTS_MAX: u32 = 1 << 26;
/// The largest block.
pub const BLOCK_BYTES_MAX: u32 = 256 << 20;
/// The highest priority.
pub const PRIORITY_MAX: u8 = 100;
/// The priority of a block about which nobody said anything.
pub const PRIORITY_DEFAULT: u8 = 35;
