//! Names of bytes: whose block it is, which one, and in which form its numbers lie.
//!
//! The sequence hash alone is keyed and tells tenants apart already. The namespace stands beside it so that a
//! tenant's blocks can be found and forgotten together, and the layout so that bytes of another model, type or
//! block size are never taken for these: to an engine they would be numbers like any other.

use mainstay_types::{NamespaceId, SequenceHash};
use xxhash_rust::xxh3::Xxh3;

use crate::{BLOCK_BYTES_MAX, TierError};

/// The fingerprint of how a block's bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayoutId(pub u64);

/// What the bytes of a block are, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The fingerprint.
    pub id: LayoutId,
    /// Bytes of every block of this layout.
    pub block_bytes: u32,
}

impl Layout {
    /// The layout of one model's blocks: `arrangement` is the engine's word for the order of its numbers.
    pub fn new(
        model: &str,
        revision: &str,
        data_type: &str,
        arrangement: &str,
        block_tokens: u32,
        block_bytes: u32,
    ) -> Result<Self, TierError> {
        let mut digest = Xxh3::new();
        for part in [model, revision, data_type, arrangement] {
            // Lengths keep "ab" + "c" apart from "a" + "bc".
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
        digest.update(&block_tokens.to_le_bytes());
        digest.update(&block_bytes.to_le_bytes());
        let layout = Self { id: LayoutId(digest.digest()), block_bytes };
        layout.check()?;
        Ok(layout)
    }

    /// Whether blocks have a length that tiers can keep; asked by each of them, since anyone can make a layout.
    pub(crate) fn check(&self) -> Result<(), TierError> {
        let block_bytes = self.block_bytes;
        if block_bytes == 0 || block_bytes > BLOCK_BYTES_MAX {
            return Err(TierError::Setting(format!(
                "a block of {block_bytes} bytes; 1 to {BLOCK_BYTES_MAX} can be kept"
            )));
        }
        Ok(())
    }

    /// Whether a block of this name and so many bytes is one of this layout.
    pub(crate) fn check_block(&self, key: &BlockKey, length: usize) -> Result<(), TierError> {
        if key.layout != self.id {
            return Err(TierError::WrongLayout);
        }
        let want = self.block_bytes as usize;
        if length != want {
            return Err(TierError::WrongLength { got: length, want });
        }
        Ok(())
    }
}

/// The name of a block's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// Whose.
    pub namespace: NamespaceId,
    /// Which.
    pub hash: SequenceHash,
    /// In which form.
    pub layout: LayoutId,
}

impl BlockKey {
    /// The key of another block of the same chain.
    #[must_use]
    pub const fn sibling(&self, hash: SequenceHash) -> Self {
        Self { namespace: self.namespace, hash, layout: self.layout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_tell_all_parts_apart() {
        let base = Layout::new("m", "r", "bf16", "blhd", 16, 4096).expect("valid");
        let others = [
            Layout::new("mr", "", "bf16", "blhd", 16, 4096),
            Layout::new("m", "r2", "bf16", "blhd", 16, 4096),
            Layout::new("m", "r", "f16", "blhd", 16, 4096),
            Layout::new("m", "r", "bf16", "lbhd", 16, 4096),
            Layout::new("m", "r", "bf16", "blhd", 32, 4096),
            Layout::new("m", "r", "bf16", "blhd", 16, 8192),
        ];
        for other in others {
            assert_ne!(base.id, other.expect("valid").id);
        }
        assert!(Layout::new("m", "r", "bf16", "", 16, 0).is_err());
        assert!(Layout::new("m", "r", "bf16", "", 16, BLOCK_BYTES_MAX + 1).is_err());
    }
}
