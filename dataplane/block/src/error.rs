//! What a pool refuses. Nothing has changed then, unless the operation says otherwise.

use super::{BlockId, Stage};

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// No such block was ever handed out.
    #[error("there is no block {}", .0.index())]
    Unknown(BlockId),
    /// The block was given back since, and may be another's.
    #[error("block {} was given back since; look it up again", .0.index())]
    Stale(BlockId),
    /// The block is at another station of its life.
    #[error("block {} is {}, which cannot become {}", .block.index(), .is.name(), .wanted.name())]
    Stage {
        /// Which.
        block: BlockId,
        /// Where it is.
        is: Stage,
        /// Where it was to go.
        wanted: Stage,
    },
    /// The block before it is not in use, so that it could go first.
    #[error("the parent of block {} is not in use; acquire a prefix from its start", .0.index())]
    Orphan(BlockId),
    /// The block belongs to another namespace.
    #[error("block {} belongs to another namespace; tables have one", .0.index())]
    Foreign(BlockId),
    /// All blocks are in use or pinned.
    #[error("all blocks are in use or pinned; let a request or a pin end")]
    Full,
    /// All blocks that the tenant may have are in use or pinned.
    #[error("the tenant's {limit} blocks are in use or pinned; raise its budget")]
    TenantFull {
        /// How many it may have.
        limit: u32,
    },
    /// A pin alone is larger than all that pins may hold.
    #[error("the pin has more than {limit} blocks, all that pins may hold here; raise the budget")]
    PinTooLarge {
        /// How many that is.
        limit: u32,
    },
    /// A span that is empty, backward or beyond the table.
    #[error("span {span} is not a stretch of the table")]
    Span {
        /// Which.
        span: usize,
    },
    /// A limit of the pool, of which a tenant may have as many as are left for others.
    #[error("more {what} than a tenant's part of {limit}; let some end")]
    Many {
        /// Of which.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}
