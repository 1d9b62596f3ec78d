//! A block with what must travel with it, and the 128 bytes that say so on a disk and in an object.
//!
//! The same header closes a slot on NVMe, makes a line of its journal, and opens a block in an object. It is fixed in
//! size and sums itself, so that whatever reads it can tell a whole one from anything else without knowing what
//! came before. Numbers are little-endian.

use mainstay_types::{NamespaceId, SequenceHash};

use crate::sum::sum;
use crate::{BlockKey, LayoutId, PRIORITY_DEFAULT, PRIORITY_MAX};

/// How much a block is wanted, and for how long; travels with it through all tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The priority until `until_ms`, 0 to 100.
    pub priority: u8,
    /// The priority from then on.
    pub after: u8,
    /// When `priority` ends.
    pub until_ms: u64,
    /// Until when it must not go at all. A pin names every block of its prefix.
    pub pinned_until_ms: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            priority: PRIORITY_DEFAULT,
            after: PRIORITY_DEFAULT,
            until_ms: 0,
            pinned_until_ms: 0,
        }
    }
}

impl Retention {
    /// The priority at a time.
    #[must_use]
    pub fn priority_at(&self, now_ms: u64) -> u8 {
        let priority = if now_ms < self.until_ms { self.priority } else { self.after };
        priority.min(PRIORITY_MAX)
    }

    /// Whether it must not go.
    #[must_use]
    pub fn pinned_at(&self, now_ms: u64) -> bool {
        now_ms < self.pinned_until_ms
    }

    /// Up to which priority others make room for it.
    pub(crate) fn worth_at(&self, now_ms: u64) -> u8 {
        if self.pinned_at(now_ms) { PRIORITY_MAX } else { self.priority_at(now_ms) }
    }

    /// When something about it changes next, if ever.
    pub(crate) fn next_change_ms(&self, now_ms: u64) -> Option<u64> {
        [self.until_ms, self.pinned_until_ms]
            .into_iter()
            .filter(|&at_ms| at_ms > now_ms && at_ms != u64::MAX)
            .min()
    }

    /// What is left when nobody claims the block any more: it goes first, once no pin holds it.
    #[must_use]
    pub fn unclaimed(&self) -> Self {
        Self { priority: 0, after: 0, until_ms: 0, pinned_until_ms: self.pinned_until_ms }
    }

    /// What two that want the same block want together: the most of each.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        Self {
            priority: self.priority.max(other.priority),
            after: self.after.max(other.after),
            until_ms: self.until_ms.max(other.until_ms),
            pinned_until_ms: self.pinned_until_ms.max(other.pinned_until_ms),
        }
    }
}

/// A block on its way into a tier.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its name.
    pub key: BlockKey,
    /// The block before it; the namespace's own number at the start of a chain.
    pub parent: SequenceHash,
    /// How much it is wanted.
    pub retention: Retention,
    /// Its bytes.
    pub payload: &'a [u8],
    /// Their checksum where the caller has it from the last hop; a tier then finds what broke in between.
    pub sum: Option<u64>,
}

/// What a tier says about a block it gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The block before it.
    pub parent: SequenceHash,
    /// How much it is wanted.
    pub retention: Retention,
    /// The checksum of its bytes.
    pub sum: u64,
}

/// The answer to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Get {
    /// The bytes are in the caller's buffer.
    Hit(Held),
    /// The tier has no such block. The buffer is as it was, or all zeros if the block went while it was read.
    Miss,
    /// The tier had it, but not whole: it is quarantined and counted. The buffer is all zeros.
    Bad,
}

impl Get {
    /// Whether the bytes are there.
    #[must_use]
    pub const fn is_hit(&self) -> bool {
        matches!(self, Self::Hit(_))
    }
}

/// The answer to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Put {
    /// It is kept now.
    Stored,
    /// It was kept already, or somebody is just writing it; its retention was merged.
    Present,
    /// It is not kept.
    Refused(Refusal),
}

/// Why a block was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// All that is there is wanted more, pinned or being read.
    Full,
    /// The tier takes nothing for now: the disk is full, or fails.
    ReadOnly,
    /// This write failed.
    Failed,
    /// Its bytes are not those of the checksum that came with it.
    Broken,
    /// Too many wait already.
    Busy,
}

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 128;
const MAGIC: [u8; 4] = *b"MsBk";
const VERSION: u8 = 1;

/// What a header stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A block in a slot or in an object.
    Block = 1,
    /// Journal: the slot holds this block from now on.
    Stored = 2,
    /// Journal: the slot holds nothing that counts.
    Freed = 3,
    /// Journal: the slot is not to be used.
    Quarantined = 4,
    /// Journal: the first line; says which layout and how many bytes a slot has.
    Opening = 5,
}

impl Kind {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Block,
            2 => Self::Stored,
            3 => Self::Freed,
            4 => Self::Quarantined,
            5 => Self::Opening,
            _ => return None,
        })
    }
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) key: BlockKey,
    pub(crate) parent: SequenceHash,
    pub(crate) retention: Retention,
    /// Which write of the tier it was; finds a slot that was written again.
    pub(crate) generation: u64,
    pub(crate) length: u32,
    /// Finds a write that went to another place than it was meant for.
    pub(crate) slot: u32,
    pub(crate) sum: u64,
    /// Journal: which of its files.
    pub(crate) epoch: u64,
    /// Journal: the number of the first line of those that were written together.
    pub(crate) batch: u64,
}

impl Header {
    /// A header about nothing but a slot.
    pub(crate) const fn of_slot(kind: Kind, slot: u32) -> Self {
        Self {
            kind,
            key: BlockKey { namespace: NamespaceId(0), hash: SequenceHash(0), layout: LayoutId(0) },
            parent: SequenceHash(0),
            retention: Retention { priority: 0, after: 0, until_ms: 0, pinned_until_ms: 0 },
            generation: 0,
            length: 0,
            slot,
            sum: 0,
            epoch: 0,
            batch: 0,
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&[VERSION, self.kind as u8, self.retention.priority, self.retention.after]);
        put(&self.key.layout.0.to_le_bytes());
        put(&self.key.namespace.0.to_le_bytes());
        put(&self.key.hash.0.to_le_bytes());
        put(&self.parent.0.to_le_bytes());
        put(&self.retention.until_ms.to_le_bytes());
        put(&self.retention.pinned_until_ms.to_le_bytes());
        put(&self.generation.to_le_bytes());
        put(&self.length.to_le_bytes());
        put(&self.slot.to_le_bytes());
        put(&self.sum.to_le_bytes());
        put(&self.epoch.to_le_bytes());
        put(&self.batch.to_le_bytes());
        let own = sum(&out[..HEADER_BYTES - 8]);
        out[HEADER_BYTES - 8..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// Reads what [`Self::encode`] wrote; anything else is `None`.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.try_into().ok()?;
        let (body, own) = bytes.split_at(HEADER_BYTES - 8);
        // The sum last: a journal has room for millions of lines that were never written.
        if body[..4] != MAGIC || body[4] != VERSION || own != sum(body).to_le_bytes() {
            return None;
        }
        let long = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&body[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        let wide = |at: usize| u128::from(long(at)) | u128::from(long(at + 8)) << 64;
        Some(Self {
            kind: Kind::from_number(body[5])?,
            key: BlockKey {
                layout: LayoutId(long(8)),
                namespace: NamespaceId(wide(16)),
                hash: SequenceHash(wide(32)),
            },
            parent: SequenceHash(wide(48)),
            retention: Retention {
                priority: body[6],
                after: body[7],
                until_ms: long(64),
                pinned_until_ms: long(72),
            },
            generation: long(80),
            length: long(88) as u32,
            slot: (long(88) >> 32) as u32,
            sum: long(96),
            epoch: long(104),
            batch: long(112),
        })
    }

    pub(crate) const fn held(&self) -> Held {
        Held { parent: self.parent, retention: self.retention, sum: self.sum }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_come_back_and_any_flip_is_seen(
            words in prop::array::uniform11(any::<u64>()), kind in 1u8..=5,
            bit in 0..HEADER_BYTES * 8,
        ) {
            let wide = |a: u64, b: u64| u128::from(a) << 64 | u128::from(b);
            let header = Header {
                kind: Kind::from_number(kind).expect("1 to 5"),
                key: BlockKey {
                    namespace: NamespaceId(wide(words[0], words[1])),
                    hash: SequenceHash(wide(words[2], words[3])),
                    layout: LayoutId(words[4]),
                },
                parent: SequenceHash(wide(words[5], words[4])),
                retention: Retention {
                    priority: words[6] as u8,
                    after: (words[6] >> 8) as u8,
                    until_ms: words[7],
                    pinned_until_ms: words[8],
                },
                generation: words[9],
                length: words[10] as u32,
                slot: (words[10] >> 32) as u32,
                sum: words[0],
                epoch: words[1],
                batch: words[2],
            };
            let mut bytes = header.encode();
            prop_assert_eq!(Header::decode(&bytes), Some(header));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::decode(&bytes), None);
        }
    }

    #[test]
    fn zeros_are_no_header() {
        assert_eq!(Header::decode(&[0; HEADER_BYTES]), None);
        assert_eq!(Header::decode(&[]), None);
    }
}
