//! Host memory and disk of this machine, of which either may be missing.

use std::sync::Arc;

use mainstay_tier::{
    BlockKey, DiskSettings, DiskTier, Found, Get, HostSettings, HostTier, Layout, Moves, Put,
    Record, Retention, Stack, StackSettings, TierError,
};
use mainstay_types::{SequenceHash, Tier};

use super::{TierConfig, now_ms};

/// Memory above a disk where none is asked for: what is on its way, and what was just read.
const BUFFER_BYTES: u64 = 64 << 20;
/// Moves of a tier that may wait to be told.
const MOVES_MAX: usize = 1 << 16;
/// The longest that an orderly end waits for a disk that takes nothing.
const DISK_WAIT_MS: u64 = 10_000;

/// See the module.
pub(crate) struct Local {
    host: Arc<HostTier>,
    below: Option<Below>,
}

struct Below {
    disk: Arc<DiskTier>,
    stack: Stack,
}

/// The leading blocks of a chain, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) bytes: Vec<u8>,
    pub(crate) found: Vec<Found>,
}

impl Local {
    /// Opens memory and disk as they are set; `None` if neither is. Takes as long as the memory takes to be there.
    pub(super) fn open(config: &TierConfig, layout: Layout) -> Result<Option<Self>, TierError> {
        let budget_bytes = match (config.host_bytes, &config.disk) {
            (0, None) => return Ok(None),
            // Never less than a block of the largest models.
            (0, Some(_)) => BUFFER_BYTES.max(u64::from(layout.block_bytes) * 8),
            (bytes, _) => bytes,
        };
        // Bytes that leave the machine are summed, and so is what comes back from a disk.
        let host = HostTier::new(layout, HostSettings { budget_bytes, check_reads: true })?;
        host.keep_moves(MOVES_MAX);
        let host = Arc::new(host);
        let below = match &config.disk {
            Some(disk) => {
                let settings = DiskSettings::new(disk.folder.clone(), disk.bytes);
                let disk = Arc::new(DiskTier::open(layout, settings, now_ms())?);
                disk.keep_moves(MOVES_MAX);
                let settings = StackSettings { wait_ms: DISK_WAIT_MS, ..StackSettings::default() };
                let stack = Stack::new(Arc::clone(&host), Arc::clone(&disk), settings)?;
                Some(Below { disk, stack })
            }
            None => None,
        };
        Ok(Some(Self { host, below }))
    }

    pub(super) const fn host(&self) -> &Arc<HostTier> {
        &self.host
    }

    pub(super) fn disk(&self) -> Option<&DiskTier> {
        self.below.as_ref().map(|below| below.disk.as_ref())
    }

    /// The furthest tier that there is.
    pub(crate) const fn furthest(&self) -> Tier {
        if self.below.is_some() { Tier::Disk } else { Tier::Host }
    }

    pub(super) fn stack(&self) -> Option<&Stack> {
        self.below.as_ref().map(|below| &below.stack)
    }

    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.host.has(key) || self.disk().is_some_and(|disk| disk.has(key))
    }

    pub(super) fn put(&self, record: &Record<'_>) -> Result<Put, TierError> {
        match &self.below {
            Some(below) => below.stack.put(record, now_ms()),
            None => self.host.put(record, now_ms()),
        }
    }

    /// Says that a block is wanted at least so much.
    pub(super) fn want_more(&self, key: &BlockKey, said: &Retention) {
        self.host.retain_more(key, said, now_ms());
        if let Some(disk) = self.disk() {
            disk.retain_more(key, said, now_ms());
        }
    }

    /// Says that nobody claims a block any more.
    pub(super) fn unclaim(&self, key: &BlockKey) {
        match &self.below {
            Some(below) => below.stack.unclaim(key, now_ms()),
            None => self.host.unclaim(key, now_ms()),
        };
    }

    /// Says until when a block must not go; 0 is no longer.
    pub(super) fn pin(&self, key: &BlockKey, until_ms: u64, now_ms: u64) {
        match &self.below {
            Some(below) => below.stack.pin(key, until_ms, now_ms),
            None => self.host.pin(key, until_ms, now_ms),
        };
    }

    /// Has the disk keep over a crash what was written to it.
    pub(super) fn commit(&self) -> bool {
        self.disk().is_none_or(|disk| disk.flush(now_ms()))
    }

    /// The leading blocks of a chain that are here and whole. Waits for the disk: not for a thread of the runtime.
    pub(crate) fn read(&self, keys: &[BlockKey]) -> Read {
        let block_bytes = self.host.layout().block_bytes as usize;
        // Looked at first, so that a chain that is not here costs no memory.
        let there = keys.iter().take_while(|key| self.has(key)).count();
        let mut bytes = vec![0; there * block_bytes];
        let read = match &self.below {
            Some(below) => below.stack.get_run(&keys[..there], &mut bytes, now_ms()),
            None => self.read_host(&keys[..there], &mut bytes),
        };
        let found = read.unwrap_or_else(|error| {
            tracing::error!(%error, "a local tier was asked for what it can't have");
            Vec::new()
        });
        bytes.truncate(found.len() * block_bytes);
        Read { bytes, found }
    }

    fn read_host(&self, keys: &[BlockKey], bytes: &mut [u8]) -> Result<Vec<Found>, TierError> {
        let block_bytes = self.host.layout().block_bytes as usize;
        let mut found = Vec::with_capacity(keys.len());
        for (key, room) in keys.iter().zip(bytes.chunks_exact_mut(block_bytes)) {
            let Get::Hit(held) = self.host.get(key, room)? else { break };
            found.push(Found { tier: Tier::Host, held });
        }
        Ok(found)
    }

    /// Since when the tier that would give a block has it.
    pub(crate) fn since_ms(&self, key: &BlockKey) -> Option<u64> {
        self.host.since_ms(key).or_else(|| self.disk()?.since_ms(key))
    }

    pub(super) fn save(&self, now_ms: u64) -> bool {
        self.stack().is_none_or(|stack| stack.save(now_ms))
    }

    /// What moved in each tier since the last call.
    pub(super) fn take_moves(&self) -> Vec<(Tier, Moves)> {
        let mut moved = vec![(Tier::Host, self.host.take_moves())];
        moved.extend(self.disk().map(|disk| (Tier::Disk, disk.take_moves())));
        moved
    }

    /// All that a tier holds, with the block before each.
    pub(super) fn keys(&self, tier: Tier) -> Vec<(BlockKey, SequenceHash)> {
        match (tier, self.disk()) {
            (Tier::Host, _) => self.host.keys(),
            (Tier::Disk, Some(disk)) => {
                disk.keys().into_iter().map(|(key, held)| (key, held.parent)).collect()
            }
            _ => Vec::new(),
        }
    }
}
