//! Blocks in from elsewhere and out to elsewhere: what another engine of the same layout computed need not be
//! computed here.
//!
//! The bytes are trusted as the tier or the worker that sent them has checked them; the engine sees no tokens, so it
//! can't tell whether they are those of the name they come under.

use std::collections::HashSet;

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

    /// Registers blocks with these bytes, first to last, as far as there is room, and says how many are held. Either
    /// the chain fits what is held already, or nothing is done.
    pub fn import(&mut self, import: &Import, now_us: u64) -> Result<u32, Code> {
        let mut table = self.path(import)?;
        let above = table.len();
        table.extend(self.known(import, table.last().copied())?);
        for id in &table {
            self.blocks.acquire(*id);
        }
        let known = table.len() - above;
        let of = self.kv.bytes_per_block();
        let pairs = import.blocks.iter().zip(import.bytes().chunks_exact(of));
        for (hash, bytes) in pairs.skip(known) {
            let Some(id) = self.blocks.allocate() else { break };
            self.kv.block_bytes_mut(id).copy_from_slice(bytes);
            let last = table.last().copied();
            table.push(self.blocks.register(id, *hash, last, import.namespace));
        }
        let (path, brought) = table.split_at(above);
        let duration_ms = (import.duration_ms > 0).then(|| u64::from(import.duration_ms));
        let claim = Claim { priority: import.priority, duration_ms };
        self.blocks.release(brought, now_us / 1000, |_| Some(claim));
        // Those above were only held, which is no claim on them.
        self.blocks.unacquire(path);
        Ok(brought.len() as u32)
    }

    /// The blocks above the first one that comes in.
    fn path(&self, import: &Import) -> Result<Vec<BlockId>, Code> {
        if import.parent == import.namespace {
            return Ok(Vec::new());
        }
        let parent = self.blocks.lookup(import.parent).ok_or(Code::Precondition)?;
        if self.blocks.namespace(parent) != Some(import.namespace) {
            return Err(Code::Precondition);
        }
        Ok(self.blocks.path_to(parent))
    }

    /// Which leading blocks are held; an error where one is held elsewhere than behind the one before it, or twice in
    /// the chain.
    fn known(&self, import: &Import, mut last: Option<BlockId>) -> Result<Vec<BlockId>, Code> {
        let mut known = Vec::new();
        let mut new = HashSet::new();
        for hash in &import.blocks {
            let Some(id) = self.blocks.lookup(*hash) else {
                if !new.insert(*hash) {
                    return Err(Code::Precondition);
                }
                continue;
            };
            let fits = new.is_empty()
                && self.blocks.parent(id) == last
                && self.blocks.namespace(id) == Some(import.namespace);
            if !fits {
                return Err(Code::Precondition);
            }
            known.push(id);
            last = Some(id);
        }
        Ok(known)
    }
}
