//! Blocks in from elsewhere and out to elsewhere: what another engine of the same layout computed need not be
//! computed here.
//!
//! The bytes are trusted as the tier or the worker that sent them has checked them; the engine sees no tokens, so it
//! can't tell whether they are those of the name they come under.

use mainstay_engine_abi::sdk::{Code, Import};
use mainstay_engine_blocks::{BlockId, Claim};
use mainstay_kernels::KvType;

use super::Scheduler;

/// Changes when the order of a block's numbers does.
const LAYOUT_VERSION: u64 = 1;

impl Scheduler {
    /// Tells blocks that this engine can read from those it can't: type, shape and order of their numbers.
    #[must_use]
    pub fn kv_layout(&self) -> u64 {
        let shape = self.kv.shape();
        let kind = match self.kv.kv_type() {
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
    #[must_use]
    pub fn export(&self, blocks: &[u128], bytes: &mut [u8]) -> u32 {
        let of = self.kv.bytes_per_block();
        let mut copied = 0;
        for (hash, room) in blocks.iter().zip(bytes.chunks_exact_mut(of)) {
            let Some(id) = self.blocks.lookup(*hash) else { break };
            room.copy_from_slice(self.kv.block_bytes(id));
            copied += 1;
        }
        copied
    }

    /// Registers blocks with these bytes, first to last, as far as there is room, and says how many are held.
    pub fn import(&mut self, import: &Import, now_us: u64) -> Result<u32, Code> {
        let mut table = self.path(import)?;
        for id in &table {
            self.blocks.acquire(*id);
        }
        let above = table.len();
        let of = self.kv.bytes_per_block();
        for (hash, bytes) in import.blocks.iter().zip(import.bytes().chunks_exact(of)) {
            let id = match self.blocks.lookup(*hash) {
                Some(id) if self.blocks.parent(id) == table.last().copied() => {
                    self.blocks.acquire(id);
                    id
                }
                // It is known behind another block: one of the two sides is wrong, and nothing is done.
                Some(_) => {
                    self.blocks.unacquire(&table);
                    return Err(Code::Precondition);
                }
                None => {
                    let Some(id) = self.blocks.allocate() else { break };
                    self.kv.block_bytes_mut(id).copy_from_slice(bytes);
                    self.blocks.register(id, *hash, table.last().copied(), import.namespace)
                }
            };
            table.push(id);
        }
        let held = table.len() - above;
        let duration_ms = (import.duration_ms > 0).then(|| u64::from(import.duration_ms));
        let claim = Claim { priority: import.priority, duration_ms };
        self.blocks.release(&table, now_us / 1000, |index| Some(claim).filter(|_| index >= above));
        Ok(held as u32)
    }

    /// The blocks above the first one that comes in.
    fn path(&self, import: &Import) -> Result<Vec<BlockId>, Code> {
        if import.parent == import.namespace {
            return Ok(Vec::new());
        }
        let parent = self.blocks.lookup(import.parent).ok_or(Code::Precondition)?;
        Ok(self.blocks.path_to(parent))
    }
}
