//! Blocks that come in from elsewhere, as if they had been computed here.

use std::collections::HashSet;

use mainstay_block::{Class, LeaseId, PRIORITY_DEFAULT, SpanTerms};

use super::{BlockPool, Table};

/// A chain that comes in.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// Whose.
    pub namespace: u128,
    /// The block before the first, or the namespace.
    pub parent: u128,
    /// First to last; each is the parent of the next.
    pub hashes: &'a [u128],
    /// 0 to 100.
    pub priority: u8,
    /// How long; `None` is for good.
    pub duration_ms: Option<u64>,
}

impl BlockPool {
    /// Registers a chain, first to last, as far as there is room, and says how many of it are held then. `fill` is told
    /// where to put the bytes of each that is new, with its place in the chain. `None`, and nothing is done, where the
    /// chain does not fit what is registered: its parent is not, or one of it is elsewhere than behind the one before.
    pub fn import(
        &mut self,
        chain: &Chain<'_>,
        now_ms: u64,
        mut fill: impl FnMut(u32, usize),
    ) -> Option<u32> {
        let path = self.path_to(chain.parent, chain.namespace)?;
        let known = self.known_of(chain)?;
        let mut table = Table::default();
        let held = self.attach(path.iter().copied(), &mut table, now_ms);
        debug_assert_eq!(held, path.len(), "an ancestor is registered as long as its child");
        self.attach(chain.hashes[..known].iter().copied(), &mut table, now_ms);
        for (index, hash) in chain.hashes.iter().enumerate().skip(known) {
            if !self.extend(&mut table, chain.namespace, now_ms) {
                break;
            }
            let at = table.len() - 1;
            fill(table.slots()[at], index);
            self.register(&mut table, at, *hash, chain.namespace);
        }
        let brought = table.len() - path.len();
        self.keep_imported(&table, path.len(), chain, now_ms);
        let (above, below) = table.ids().split_at(path.len());
        let released = self.manager.release(below, |_| true, now_ms);
        // Those above were only held, which is no use of them.
        let let_go = self.manager.unacquire(above, above.len(), now_ms);
        debug_assert!(released.is_ok() && let_go.is_ok(), "{released:?} {let_go:?}");
        Some(brought as u32)
    }

    fn keep_imported(&mut self, table: &Table, from: usize, chain: &Chain<'_>, now_ms: u64) {
        if table.len() == from {
            return;
        }
        let span = SpanTerms {
            blocks: from..table.len(),
            class: Class::Plain,
            priority: chain.priority,
            after: PRIORITY_DEFAULT.min(chain.priority),
            duration_ms: chain.duration_ms,
        };
        if span.duration_ms.is_some() {
            let name = self.next_name();
            self.take_lease(table, chain.namespace, LeaseId(name), vec![span], now_ms);
        } else {
            self.raise_floors(table, chain.namespace, vec![span]);
        }
    }

    /// The hashes from the start of its chain to `hash`; none for a namespace itself. `None` where it is not registered
    /// in that namespace.
    fn path_to(&self, hash: u128, namespace: u128) -> Option<Vec<u128>> {
        let mut path = Vec::new();
        let mut at = hash;
        while at != namespace {
            let (parent, of) = self.place(at)?;
            if of != namespace {
                return None;
            }
            path.push(at);
            at = parent;
        }
        path.reverse();
        Some(path)
    }

    /// How many leading blocks of a chain are held; `None` where one is held elsewhere than behind the one before it, or
    /// twice in the chain.
    fn known_of(&self, chain: &Chain<'_>) -> Option<usize> {
        let mut last = chain.parent;
        let mut known = 0;
        let mut new = HashSet::new();
        for hash in chain.hashes {
            match self.place(*hash) {
                None if new.insert(*hash) => {}
                Some(place) if new.is_empty() && place == (last, chain.namespace) => known += 1,
                _ => return None,
            }
            last = *hash;
        }
        Some(known)
    }
}
