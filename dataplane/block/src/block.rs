//! What is known of one block.
//!
//! A prompt has thousands of them and each operation reads all, so a block is one cache line; what
//! is read seldom, like its namespace or its pin, lies elsewhere.

use super::{BlockId, End, NONE, Stage};

/// No floor, where 0 to 100 are floors.
const NO_FLOOR: u8 = u8::MAX;

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
    /// The first of its kinds of claims.
    pub(crate) levels: u32,
    /// How often its number was given back: a claim on what was in it before is none.
    pub(crate) generation: u32,
    /// Below [`super::TENANTS_MAX`].
    pub(crate) tenant: u16,
    /// How often its last user has let it go: who let it go with the others is not a user any more.
    pub(crate) uses: u16,
    /// How often it was found again, up to what fits.
    pub(crate) hits: u8,
    floor: u8,
    /// How its last claim was ended.
    pub(crate) ended: Option<End>,
    pub(crate) stage: Stage,
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
            generation,
            tenant: 0,
            uses: 0,
            hits: 0,
            floor: NO_FLOOR,
            ended: None,
            stage: Stage::Free,
        }
    }

    /// The least that it is worth while it is here, if there is one.
    pub(crate) fn floor(&self) -> Option<u8> {
        (self.floor != NO_FLOOR).then_some(self.floor)
    }

    pub(crate) fn raise_floor(&mut self, priority: u8) {
        let priority = priority.min(super::PRIORITY_MAX);
        self.floor = self.floor().map_or(priority, |floor| floor.max(priority));
    }

    /// Its name as of now.
    pub(crate) fn id(&self, index: u32) -> BlockId {
        BlockId { index, generation: self.generation as u16, uses: self.uses }
    }

    /// Whether nobody uses it and no pin holds it.
    pub(crate) fn is_idle(&self) -> bool {
        self.stage == Stage::Cached && self.holds == 0
    }
}
