//! What the block manager costs beside a plain LRU: ns of CPU a block, in one process and by turns.
//!
//! Both hold the same chains of blocks under the same kind of hash table. The LRU knows neither
//! users nor parents, priorities, leases or pins: it is the least that any cache has to do. Rounds
//! alternate between the two, so that a busy machine disturbs both alike; the medians are printed.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use mainstay_block::{
    BlockId, BlockManager, Class, End, LeaseId, LeaseTerms, Limits, SpanTerms, TenantSlot,
};
use mainstay_types::hash::{NamespaceId, SequenceHash};

/// Blocks of a chain: a prompt of 4,096 tokens.
const CHAIN: usize = 256;
const ROUNDS: usize = 5;
const TENANT: TenantSlot = TenantSlot(0);
const NONE: u32 = u32::MAX;

/// Any spreading of numbers will do: hashes are spread already.
fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn hash_of(chain: u64, at: usize) -> u128 {
    let low = mixed(chain << 16 | at as u64);
    u128::from(mixed(low)) << 64 | u128::from(low)
}

/// The least that a cache does.
struct Lru {
    by_hash: HashMap<u128, u32, RandomState>,
    entries: Vec<(u128, u32, u32)>,
    /// Evicted, and not filled again.
    spare: Vec<u32>,
    head: u32,
    tail: u32,
    total: usize,
}

impl Lru {
    fn new(total: usize) -> Self {
        let (by_hash, entries, spare) = (HashMap::default(), Vec::new(), Vec::new());
        Self { by_hash, entries, spare, head: NONE, tail: NONE, total }
    }

    fn unlink(&mut self, id: u32) {
        let (_, prev, next) = self.entries[id as usize];
        match prev {
            NONE => self.head = next,
            prev => self.entries[prev as usize].2 = next,
        }
        match next {
            NONE => self.tail = prev,
            next => self.entries[next as usize].1 = prev,
        }
    }

    fn append(&mut self, id: u32) {
        self.entries[id as usize].1 = self.tail;
        self.entries[id as usize].2 = NONE;
        match self.tail {
            NONE => self.head = id,
            tail => self.entries[tail as usize].2 = id,
        }
        self.tail = id;
    }

    fn insert(&mut self, hash: u128) {
        let id = if let Some(id) = self.spare.pop() {
            self.entries[id as usize].0 = hash;
            id
        } else if self.entries.len() < self.total {
            self.entries.push((hash, NONE, NONE));
            self.entries.len() as u32 - 1
        } else {
            let id = self.head;
            self.unlink(id);
            self.by_hash.remove(&self.entries[id as usize].0);
            self.entries[id as usize].0 = hash;
            id
        };
        self.by_hash.insert(hash, id);
        self.append(id);
    }

    fn evict(&mut self) -> Option<u128> {
        let id = self.head;
        let hash = self.entries.get(id as usize)?.0;
        self.unlink(id);
        self.by_hash.remove(&hash);
        self.spare.push(id);
        Some(hash)
    }

    fn touch(&mut self, hash: u128) -> bool {
        let Some(id) = self.by_hash.get(&hash).copied() else { return false };
        self.unlink(id);
        self.append(id);
        true
    }
}

/// How a prompt's blocks are kept. All at one priority, so that both evict in one order and do the same work; the time
/// runs out while others come, as it does.
fn spans(duration_ms: u64) -> [SpanTerms; 3] {
    [(Class::System, 0..32), (Class::History, 32..224), (Class::Output, 224..CHAIN)].map(
        |(class, blocks)| SpanTerms {
            priority: 50,
            after: 50,
            duration_ms: Some(duration_ms),
            ..SpanTerms::of(class, blocks)
        },
    )
}

struct Pool {
    manager: BlockManager,
    now_ms: u64,
    table: Vec<BlockId>,
    hashes: Vec<SequenceHash>,
    lease_ms: u64,
}

impl Pool {
    fn finish(&mut self, lease: Option<LeaseId>) {
        if let Some(id) = lease {
            let spans = spans(self.lease_ms);
            let terms = LeaseTerms { tenant: TENANT, id, spans: &spans };
            self.manager.lease(&terms, &self.table, self.now_ms).expect("a lease fits");
        }
        let leased = lease.is_some();
        self.manager.release(&self.table, |_| leased, self.now_ms).expect("the table is in use");
        self.table.clear();
        self.manager.drain_changes();
    }

    fn insert(&mut self, chain: u64, leased: bool) {
        self.now_ms += 1;
        let mut parent = None;
        for at in 0..CHAIN {
            let id = self.manager.allocate(TENANT, self.now_ms).expect("a block can go");
            let hash = SequenceHash(hash_of(chain, at));
            let id = self.manager.register(id, hash, parent, NamespaceId(1)).expect("registered");
            parent = Some(id);
            self.table.push(id);
        }
        self.finish(leased.then_some(LeaseId(u128::from(chain))));
    }

    fn evict(&mut self) {
        for _ in 0..CHAIN {
            let gone = self.manager.evict(self.now_ms).expect("a block can go");
            self.manager.reclaim(gone.block).expect("it was evicted");
        }
        self.manager.drain_changes();
    }

    fn hit(&mut self, chain: u64, leased: bool) {
        self.now_ms += 1;
        self.hashes.clear();
        self.hashes.extend((0..CHAIN).map(|at| SequenceHash(hash_of(chain, at))));
        self.manager.prefix(&self.hashes, &mut self.table);
        assert_eq!(self.table.len(), CHAIN, "the chain is here");
        for id in &self.table {
            self.manager.acquire(*id, self.now_ms).expect("the parent is in use");
        }
        self.finish(leased.then_some(LeaseId(u128::from(chain))));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What this thread has had of a processor: others on the machine take it away and do not count.
fn cpu_ns() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    spent.tv_sec as f64 * 1e9 + spent.tv_nsec as f64
}

/// ns a block of `work` over `count` chains.
fn timed(count: u64, mut work: impl FnMut(u64)) -> f64 {
    let begin_ns = cpu_ns();
    (0..count).for_each(&mut work);
    (cpu_ns() - begin_ns) / (count as f64 * CHAIN as f64)
}

const ROWS: [&str; 10] = [
    "LRU: insert, evicting",
    "insert, evicting",
    "insert with a lease, evicting",
    "LRU: hit",
    "hit and release",
    "hit, lease renewed, release",
    "end of a lease",
    "LRU: evict",
    "evict and reclaim",
    "evict and reclaim, leased",
];

fn measure(blocks: usize) -> Vec<f64> {
    let chains = (blocks / CHAIN) as u64;
    let total = chains as usize * CHAIN;
    let mut lru = Lru::new(total);
    let limits = Limits { leases: chains as usize * 2, ..Limits::new(total as u32) };
    let mut pools = [0, 1].map(|_| Pool {
        manager: BlockManager::new(limits),
        now_ms: 0,
        table: Vec::with_capacity(CHAIN),
        hashes: Vec::with_capacity(CHAIN),
        lease_ms: chains / 2,
    });
    let mut next = chains;
    for chain in 0..chains {
        (0..CHAIN).for_each(|at| lru.insert(hash_of(chain, at)));
        pools[0].insert(chain, false);
        pools[1].insert(chain, true);
    }
    let mut rows: Vec<Vec<f64>> = vec![Vec::new(); ROWS.len()];
    let part = (chains / 4).max(1);
    for round in 0..ROUNDS as u64 {
        let any = |turn: u64| next - 1 - mixed(round << 32 | turn) % (part * 2);
        rows[3].push(timed(part, |turn| {
            assert!((0..CHAIN).all(|at| lru.touch(hash_of(any(turn), at))));
        }));
        rows[4].push(timed(part, |turn| pools[0].hit(any(turn), false)));
        rows[5].push(timed(part, |turn| pools[1].hit(any(turn), true)));
        // The newest are in all three; the hits above have kept none of the older ones from going.
        rows[6].push(timed(part, |turn| {
            let id = LeaseId(u128::from(next - 1 - turn));
            let now_ms = pools[1].now_ms;
            pools[1].manager.end_lease(TENANT, id, End::Released, now_ms);
        }));
        for chain in next - part * 2..next {
            (0..CHAIN).for_each(|at| assert!(lru.touch(hash_of(chain, at))));
            pools[0].hit(chain, false);
            pools[1].hit(chain, true);
        }
        let first = next;
        rows[0].push(timed(part, |turn| {
            (0..CHAIN).for_each(|at| lru.insert(hash_of(first + turn, at)));
        }));
        rows[1].push(timed(part, |turn| pools[0].insert(first + turn, false)));
        rows[2].push(timed(part, |turn| pools[1].insert(first + turn, true)));
        next += part;
        let gone = part / 4;
        rows[7].push(timed(gone, |_| (0..CHAIN).for_each(|_| assert!(lru.evict().is_some()))));
        rows[8].push(timed(gone, |_| pools[0].evict()));
        rows[9].push(timed(gone, |_| pools[1].evict()));
        for chain in next..next + gone {
            (0..CHAIN).for_each(|at| lru.insert(hash_of(chain, at)));
            pools[0].insert(chain, false);
            pools[1].insert(chain, true);
        }
        next += gone;
    }
    for pool in &pools {
        let counts = pool.manager.counts();
        let evictions = pool.manager.figures().evictions();
        println!("  {evictions} evictions, {} listed out of order", counts.late_listings);
    }
    rows.into_iter().map(median).collect()
}

fn main() {
    let sizes = [100_000, 1_000_000];
    let figures = sizes.map(measure);
    println!("| ns a block | {} blocks | {} blocks |\n|---|---|---|", sizes[0], sizes[1]);
    for (row, name) in ROWS.iter().enumerate() {
        println!("| {name} | {:.1} | {:.1} |", figures[0][row], figures[1][row]);
    }
}
