//! What is known of one block.
//!
//! A prompt has thousands of them and each operation reads all, so a block is one cache line; what
//! is read seldom, like its namespace, lies elsewhere.

use super::{End, NONE, Stage};

/// See the module.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Block {
    pub(crate) hash: u128,
    /// Order of use: a count, which no clock can disturb, and which no two blocks share.
    pub(crate) stamp: u64,
    /// When it was used last.
    pub(crate) used_ms: u64,
    /// Sequences that have it in their table.
    pub(crate) references: u32,
    /// Registered blocks whose parent it is.
    pub(crate) children: u32,
    /// Its own pin, as one, and its children that are held.
    pub(crate) holds: u32,
    pub(crate) parent: u32,
    /// The first of its levels of claims.
    pub(crate) levels: u32,
    /// Below [`super::TENANTS_MAX`].
    pub(crate) tenant: u16,
    /// How often its number was given back: a claim on what was in it before is none.
    pub(crate) generation: u32,
    /// How often it was found again, up to what fits.
    pub(crate) hits: u8,
    /// The least that it is worth while it is here, if it was used without a lease.
    pub(crate) floor: Option<u8>,
    /// How its last claim was ended.
    pub(crate) ended: Option<End>,
    pub(crate) stage: Stage,
    /// Whether a pin that covers its hash is in force here.
    pub(crate) pinned: bool,
}

const _: () = assert!(size_of::<Block>() == 64, "a block is one cache line");

impl Block {
    pub(crate) fn new(generation: u32) -> Self {
        Self {
            hash: 0,
            stamp: 0,
            used_ms: 0,
            references: 0,
            children: 0,
            holds: 0,
            parent: NONE,
            levels: NONE,
            tenant: 0,
            generation,
            hits: 0,
            floor: None,
            ended: None,
            stage: Stage::Free,
            pinned: false,
        }
    }
}
