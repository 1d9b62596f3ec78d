//! What workers say about the blocks they hold: numbered frames of events, one stream per worker and epoch.

use crate::{Epoch, EventSequence, NamespaceId, SequenceHash, WorkerId};

/// Where a block lies, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// The engine's own memory: GPU, or RAM for a CPU engine.
    Device,
    /// Host memory beside a GPU.
    Host,
    /// NVMe.
    Disk,
    /// An object store.
    Remote,
}

impl Tier {
    /// All tiers, nearest first.
    pub const ALL: [Self; 4] = [Self::Device, Self::Host, Self::Disk, Self::Remote];

    /// The number used on wires and in the C ABI.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Device => 0,
            Self::Host => 1,
            Self::Disk => 2,
            Self::Remote => 3,
        }
    }

    /// The reverse of [`Tier::number`]; an unknown number is `None`.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// The name shown to people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
            Self::Remote => "remote",
        }
    }
}

/// One change of what a worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockEvent {
    /// A run of blocks that follow each other after `parent` is held now.
    Stored {
        /// The namespace of the run.
        namespace: NamespaceId,
        /// The block before the first; the namespace's own number at the start of a chain.
        parent: SequenceHash,
        /// The run, in order.
        blocks: Vec<SequenceHash>,
        /// Where.
        tier: Tier,
    },
    /// These blocks are held no more in that tier.
    Removed {
        /// Which, in any order.
        blocks: Vec<SequenceHash>,
        /// From where.
        tier: Tier,
    },
    /// `count` blocks that follow each other up to `tail` are held no more in that tier. The worker held all of
    /// them in some tier, so whoever has its events knows them.
    Truncated {
        /// The last of them.
        tail: SequenceHash,
        /// How many.
        count: u32,
        /// From where.
        tier: Tier,
    },
    /// The worker holds nothing from here on.
    Cleared,
}

impl BlockEvent {
    /// How many blocks it names.
    #[must_use]
    pub fn block_count(&self) -> usize {
        match self {
            Self::Stored { blocks, .. } | Self::Removed { blocks, .. } => blocks.len(),
            Self::Truncated { count, .. } => *count as usize,
            Self::Cleared => 0,
        }
    }
}

/// A [`BlockEvent`] as it lies in a message: hashes are 16 bytes each, little-endian, and are not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventView<'a> {
    /// See [`BlockEvent::Stored`].
    Stored {
        /// The namespace of the run.
        namespace: NamespaceId,
        /// The block before the first.
        parent: SequenceHash,
        /// The run.
        blocks: &'a [[u8; 16]],
        /// Where.
        tier: Tier,
    },
    /// See [`BlockEvent::Removed`].
    Removed {
        /// Which.
        blocks: &'a [[u8; 16]],
        /// From where.
        tier: Tier,
    },
    /// See [`BlockEvent::Truncated`].
    Truncated {
        /// The last of them.
        tail: SequenceHash,
        /// How many.
        count: u32,
        /// From where.
        tier: Tier,
    },
    /// See [`BlockEvent::Cleared`].
    Cleared,
}

/// Where a worker's stream of frames stands, and what the worker holds there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamMark {
    /// The last frame that counts; 0 before the first.
    pub sequence: EventSequence,
    /// The sum over all it holds, as the index makes it.
    pub digest: u64,
    /// How many blocks it holds, each counted once whatever its tiers.
    pub blocks: u64,
}

/// A worker's part of a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutSource {
    /// Who.
    pub worker: WorkerId,
    /// Which life of its cache.
    pub epoch: Epoch,
    /// Where its stream stood.
    pub mark: StreamMark,
}

/// A numbered batch of events. Sequence numbers start at 1 in each epoch and have no holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFrame {
    /// Who.
    pub worker: WorkerId,
    /// Which life of its cache.
    pub epoch: Epoch,
    /// Its number.
    pub sequence: EventSequence,
    /// What happened, in order.
    pub events: Vec<BlockEvent>,
}
