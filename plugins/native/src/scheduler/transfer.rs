//! Blocks in from elsewhere and out to elsewhere: what another engine of the same layout computed need not be
//! computed here.
//!
//! The bytes are trusted as the tier or the worker that sent them has checked them; the engine sees no tokens, so it
//! can't tell whether they are those of the name they come under.

use mainstay_engine_abi::sdk::{Code, Import};
use mainstay_engine_blocks::Chain;
use mainstay_kernels::KvType;

use super::Scheduler;

/// Changes when the order of a block's numbers does.
const LAYOUT_VERSION: u64 = 1;

impl Scheduler {
    /// Tells blocks that this engine can read from those it can't: type, shape and order of their numbers.
    #[must_use]
    pub fn kv_layout(&self) -> u64 {
        let shape = self.compute.kv_shape();
        let kind = match self.compute.kv_type() {
            KvType::F32 => 1,
            KvType::Bf16 => 2,
        };
        let parts = [
            LAYOUT_VERSION,
            kind,
            shape.layers as u64,
            shape.kv_heads as u64,
            shape.head_dim as u64,
            shape.block_tokens as u64,
        ];
        // Never 0, which is an engine without a layout.
        parts.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, part| {
            (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
        }) | 1
    }

    /// Copies blocks out, first to last, and says how many: up to the first that is not registered.
    pub(super) fn copy_out(&self, blocks: &[u128], bytes: &mut [u8]) -> u32 {
        let of = self.compute.block_bytes();
        let mut copied = 0;
        for (hash, room) in blocks.iter().zip(bytes.chunks_exact_mut(of)) {
            let Some(slot) = self.cache.blocks.slot(*hash) else { break };
            if self.compute.read_block(slot, room).is_err() {
                break;
            }
            copied += 1;
        }
        copied
    }

    /// Registers blocks with these bytes, first to last, as far as there is room, and says how many are held. Either
    /// the chain fits what is held already, or nothing is done.
    pub(super) fn take_in(&mut self, import: &Import, now_us: u64) -> Result<u32, Code> {
        let chain = Chain {
            namespace: import.namespace,
            parent: import.parent,
            hashes: &import.blocks,
            priority: import.priority,
            duration_ms: (import.duration_ms > 0).then(|| u64::from(import.duration_ms)),
        };
        let of = self.compute.block_bytes();
        let bytes = import.bytes();
        let (compute, broken) = (&mut self.compute, &mut self.broken);
        let fill = |slot, index: usize| {
            // What a device refuses is its end, and the engine's: nobody reads the block.
            if let Err(failure) = compute.write_block(slot, &bytes[index * of..(index + 1) * of]) {
                *broken = Some(failure.reason);
            }
        };
        self.cache.blocks.import(&chain, now_us / 1000, fill).ok_or(Code::Precondition)
    }
}
