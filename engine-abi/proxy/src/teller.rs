//! Tells the lanes what another's cache holds: events go into the mirror, what is new to tell goes to the host.
//!
//! One thread applies events; any thread may ask what is held.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_engine_abi::sdk::{KvEvent, Lanes, Stats};

use crate::event::Event;
use crate::mirror::{Change, Mirror, Passed};
use crate::salts::Salts;

/// The mirror, the salts, and the way to the host.
pub struct Teller {
    mirror: Mutex<Mirror>,
    salts: Mutex<Salts>,
    lanes: Arc<Lanes>,
    blocks: AtomicU64,
    evictions: AtomicU64,
    /// Whether something was told since the last RESET.
    has_told: Mutex<bool>,
}

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Teller").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

// Each change under these locks is one whole step, so what a panic leaves is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Teller {
    #[must_use]
    pub fn new(mirror: Mirror, salts: Salts, lanes: Arc<Lanes>) -> Self {
        let (mirror, salts) = (Mutex::new(mirror), Mutex::new(salts));
        let (blocks, evictions) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { mirror, salts, lanes, blocks, evictions, has_told: Mutex::new(false) }
    }

    /// The salts, to change them.
    pub fn salts(&self) -> MutexGuard<'_, Salts> {
        lock(&self.salts)
    }

    /// How many tokens of a prompt are held, in whole blocks.
    pub fn held_tokens(&self, namespace: u128, tokens: &[u32]) -> u32 {
        lock(&self.mirror).held_tokens(namespace, tokens)
    }

    /// What became of events that told nothing.
    pub fn passed(&self) -> Passed {
        lock(&self.mirror).passed()
    }

    /// Takes events in, in their order, and tells what is new.
    pub fn apply(&self, events: impl IntoIterator<Item = Event>) {
        let salts = self.salts();
        let mut mirror = lock(&self.mirror);
        for event in events {
            mirror.apply(event, &salts, |change| self.tell(change));
        }
        drop(salts);
        self.blocks.store(mirror.blocks_held() as u64, Ordering::Relaxed);
        if self.lanes.kv_overflowed() {
            self.tell_all(&mirror);
        }
    }

    fn tell(&self, change: Change) {
        match change {
            Change::Cleared => {
                if std::mem::take(&mut *lock(&self.has_told)) {
                    self.lanes.begin_snapshot();
                }
            }
            Change::Event(event) => {
                if let KvEvent::Removed { blocks, .. } = &event {
                    self.evictions.fetch_add(blocks.len() as u64, Ordering::Relaxed);
                }
                *lock(&self.has_told) = true;
                self.lanes.kv(event);
            }
        }
    }

    fn tell_all(&self, mirror: &Mirror) -> u32 {
        self.lanes.begin_snapshot();
        mirror.snapshot(|event| self.lanes.kv(event))
    }

    /// Everything that is held, under a new epoch, and the end of that operation.
    pub fn snapshot(&self, op_id: u64) {
        let count = self.tell_all(&lock(&self.mirror));
        self.lanes.op(op_id, 0, count);
    }

    /// Nothing of what was told is so any more. Whether anything had been told.
    pub fn forget(&self) -> bool {
        lock(&self.mirror).clear();
        self.blocks.store(0, Ordering::Relaxed);
        let had_told = std::mem::take(&mut *lock(&self.has_told));
        if had_told {
            self.lanes.begin_snapshot();
        }
        had_told
    }

    /// Its figures, in `stats`.
    #[must_use]
    pub fn count(&self, stats: Stats) -> Stats {
        let blocks_cached = self.blocks.load(Ordering::Relaxed);
        Stats { blocks_cached, evictions: self.evictions.load(Ordering::Relaxed), ..stats }
    }
}
