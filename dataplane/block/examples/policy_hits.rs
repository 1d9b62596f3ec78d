//! What retention finds again where an LRU thrashes: agents that wait for tools while strangers bring several times the
//! pool.
//!
//! A model in virtual time, without the time that serving takes: it says which blocks are there when somebody returns,
//! and nothing of latency. Agents share a system prompt, grow with each turn and wait for tools whose durations differ
//! from each other and from call to call; some start subagents, which finish. Strangers ask, some ask once more a
//! little later, and most are never seen again. All policies serve the same requests in the same order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::ops::Range;

use mainstay_block::{
    BlockId, BlockManager, Class, Ending, Event, Figures, LeaseTerms, Limits, Order,
    PolicySettings, Pressure, Retention, SESSIONS_MAX, SessionId, Stakes, TenantSlot, Turn,
};
use mainstay_types::hash::{NamespaceId, SequenceHash};

const TENANT: TenantSlot = TenantSlot(1);
const POOL: u32 = 4_000;
const SYSTEM: u64 = 40;
const RUN_MS: u64 = 1_800_000;
/// What is not counted, since nothing was learnt yet.
const WARM_UP_MS: u64 = 300_000;
const LOOK_MS: u64 = 10_000;
/// What a block takes to compute.
const BLOCK_MS: f64 = 0.5;

fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Numbers that depend on who asks for which turn's what, so that no policy changes another's world.
fn draw(who: u64, turn: u64, what: u64) -> f64 {
    let bits = mixed(mixed(mixed(who) ^ turn) ^ what);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Its logarithm spreads evenly enough: half of the draws lie within a factor of two and a half.
fn around(median_ms: f64, who: u64, turn: u64) -> u64 {
    let spread: f64 = (0..4).map(|what| draw(who, turn, 10 + what) - 0.5).sum();
    (median_ms * (spread * 2.4).exp()) as u64
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Agent,
    Subagent { parent: u64 },
    Stranger,
}

/// The tool that a turn calls, and how long it takes.
fn tool_of(who: u64, turn: u64) -> (&'static str, u64) {
    let (name, median_ms) = match draw(who, turn, 1) {
        x if x < 0.55 => ("read", 5_000.0),
        x if x < 0.85 => ("bash", 15_000.0),
        x if x < 0.95 => ("test", 90_000.0),
        _ => ("ask", 400_000.0),
    };
    (name, around(median_ms, who, turn))
}

type Parts = Vec<(Class, Range<usize>)>;

/// How blocks are kept.
trait Cache {
    /// Serves a prompt with what it is made of; answers with how many leading blocks were there.
    fn serve(
        &mut self,
        now_ms: u64,
        who: u64,
        prompt: &[u128],
        parts: &[(Class, Range<usize>)],
    ) -> usize;
    fn told(&mut self, _now_ms: u64, _who: u64, _blocks: usize, _what: What) {}
}

#[derive(Clone, Copy)]
enum What {
    Paused(&'static str),
    Resumed,
    Rested,
    Finished,
}

/// One list of blocks by their last use; of a prompt the last block counts as the oldest.
struct Lru {
    at: HashMap<u128, u64>,
    order: BTreeMap<u64, u128>,
    clock: u64,
}

impl Cache for Lru {
    fn serve(&mut self, _: u64, _: u64, prompt: &[u128], _: &[(Class, Range<usize>)]) -> usize {
        let found = prompt.iter().take_while(|hash| self.at.contains_key(hash)).count();
        for hash in prompt.iter().rev() {
            self.clock += 1;
            if let Some(was) = self.at.insert(*hash, self.clock) {
                self.order.remove(&was);
            }
            self.order.insert(self.clock, *hash);
        }
        while self.at.len() > POOL as usize {
            if let Some((_, gone)) = self.order.pop_first() {
                self.at.remove(&gone);
            }
        }
        found
    }
}

#[derive(Default)]
struct Everything(HashSet<u128>);

impl Cache for Everything {
    fn serve(&mut self, _: u64, _: u64, prompt: &[u128], _: &[(Class, Range<usize>)]) -> usize {
        let found = prompt.iter().take_while(|hash| self.0.contains(hash)).count();
        self.0.extend(prompt);
        found
    }
}

/// How far the manager's possibilities are used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Classes,
    FixedHold,
    LearntHold,
}

struct Managed {
    pool: BlockManager,
    retention: Retention,
    use_of: Use,
    earlier: Figures,
    pressure: Pressure,
    looked_ms: u64,
}

impl Managed {
    fn new(use_of: Use) -> Self {
        // The minute of a fixed hold is what stands for a tool of which nothing is known.
        let settings = PolicySettings {
            samples_min: if use_of == Use::FixedHold { u32::MAX } else { 8 },
            ..PolicySettings::default()
        };
        Self {
            pool: BlockManager::new(Limits::new(POOL)),
            retention: Retention::new(settings, SESSIONS_MAX),
            use_of,
            earlier: Figures::default(),
            pressure: Pressure { kept_ms: None, used_share: 0.0 },
            looked_ms: 0,
        }
    }

    fn stakes(&self, blocks: usize) -> Stakes {
        let stakes = Stakes::of(blocks as u32, BLOCK_MS, 0.0, self.pressure);
        match self.use_of {
            Use::FixedHold => Stakes { price_per_ms: 0.0, kept_ms: 0, ..stakes },
            _ => stakes,
        }
    }
}

impl Cache for Managed {
    fn serve(
        &mut self,
        now_ms: u64,
        who: u64,
        prompt: &[u128],
        parts: &[(Class, Range<usize>)],
    ) -> usize {
        if now_ms >= self.looked_ms + LOOK_MS {
            self.pressure = Pressure::between(&self.earlier, self.pool.figures());
            (self.earlier, self.looked_ms) = (*self.pool.figures(), now_ms);
        }
        let hashes: Vec<SequenceHash> = prompt.iter().map(|hash| SequenceHash(*hash)).collect();
        let mut table: Vec<BlockId> = Vec::new();
        self.pool.prefix(&hashes, &mut table);
        let found = table.len();
        for id in &table {
            self.pool.acquire(*id, now_ms).expect("found from the start on");
        }
        for hash in &hashes[found..] {
            let id = self.pool.allocate(TENANT, now_ms).expect("room for one prompt");
            let parent = table.last().copied();
            table.push(self.pool.register(id, *hash, parent, NamespaceId(1)).expect("registered"));
        }
        let session = SessionId(u128::from(mixed(who)) << 64 | u128::from(who));
        let leases = self.retention.leases(TENANT, session, Turn::Conversation, parts);
        let mut is_leased = true;
        for (id, spans) in &leases {
            let terms = LeaseTerms { tenant: TENANT, id: *id, spans };
            is_leased &= self.pool.lease(&terms, &table, now_ms).is_ok();
        }
        self.pool.release(&table, |_| is_leased, now_ms).expect("in use");
        self.pool.drain_changes();
        found
    }

    fn told(&mut self, now_ms: u64, who: u64, blocks: usize, what: What) {
        let tool;
        let event = match what {
            What::Paused(_) if self.use_of == Use::Classes => return,
            What::Paused(name) => {
                tool = [name];
                Event::Paused { tools: &tool, stakes: self.stakes(blocks) }
            }
            What::Resumed => Event::Resumed,
            What::Rested => Event::Rested { thoughts_fall: false },
            What::Finished => Event::Ended(Ending::Finished),
        };
        let session = SessionId(u128::from(mixed(who)) << 64 | u128::from(who));
        for order in self.retention.told(TENANT, session, event, now_ms) {
            match order {
                Order::Amend { lease, amendments } => {
                    self.pool.amend_lease(TENANT, lease, &amendments, now_ms);
                }
                Order::End { lease, end } => {
                    self.pool.end_lease(TENANT, lease, end, now_ms);
                }
                // There is nothing to fetch from in this model.
                Order::Prefetch { .. } => {}
            }
        }
    }
}

/// Blocks that were there of those that had been before, and of all.
#[derive(Default, Clone, Copy)]
struct Tally {
    found: u64,
    known: u64,
    all: u64,
}

struct World {
    /// When, who, which turn; of two at one time the lower number first.
    due: BinaryHeap<Reverse<(u64, u64, u64)>>,
    kinds: HashMap<u64, Kind>,
    next: u64,
    agents: Tally,
    strangers: Tally,
    brought: u64,
}

/// The blocks of a turn, what they are, and how many of them somebody has had before.
fn prompt_of(who: u64, kind: Kind, turn: u64) -> (Vec<u128>, Parts, usize) {
    let name = |group: u64, at: u64| u128::from(mixed(group)) << 64 | u128::from(at);
    let (system, first, more) = match kind {
        Kind::Agent => (Some(1), 60 + who % 40, 6),
        Kind::Subagent { .. } => (Some(2), 20, 8),
        Kind::Stranger => (None, 25, 5),
    };
    let mut prompt: Vec<u128> = Vec::new();
    let mut parts = Vec::new();
    if let Some(system) = system {
        prompt.extend((0..SYSTEM).map(|at| name(system, at)));
        parts.push((Class::System, 0..SYSTEM as usize));
    }
    let from = prompt.len();
    prompt.extend((0..first + more * turn).map(|at| name(1 << 40 | who, at)));
    let last = prompt.len() - more as usize;
    parts.push((Class::History, from..last));
    parts.push((Class::Output, last..prompt.len()));
    // Blocks that this session, or one with the same system prompt, has had before.
    let known = if turn == 0 { from } else { last };
    (prompt, parts, known)
}

impl World {
    fn new(agents: u64) -> Self {
        let mut world = Self {
            due: BinaryHeap::new(),
            kinds: HashMap::new(),
            next: agents,
            agents: Tally::default(),
            strangers: Tally::default(),
            brought: 0,
        };
        for who in 0..agents {
            world.kinds.insert(who, Kind::Agent);
            world.due.push(Reverse((mixed(who) % 30_000, who, 0)));
        }
        world
    }

    fn serve(&mut self, cache: &mut dyn Cache, now_ms: u64, who: u64, turn: u64) {
        let Some(kind) = self.kinds.get(&who).copied() else { return };
        let (prompt, parts, known) = prompt_of(who, kind, turn);
        if turn > 0 {
            cache.told(now_ms, who, prompt.len(), What::Resumed);
        }
        let found = cache.serve(now_ms, who, &prompt, &parts);
        if now_ms >= WARM_UP_MS {
            let tally = match kind {
                Kind::Stranger => &mut self.strangers,
                Kind::Agent | Kind::Subagent { .. } => &mut self.agents,
            };
            tally.found += found.min(known) as u64;
            tally.known += known as u64;
            tally.all += prompt.len() as u64;
        }
        match kind {
            Kind::Stranger => {
                self.brought += (prompt.len() - found) as u64;
                cache.told(now_ms, who, prompt.len(), What::Rested);
                if turn == 0 && draw(who, 0, 2) < 0.3 {
                    self.due.push(Reverse((now_ms + around(6_000.0, who, 0), who, 1)));
                } else {
                    self.kinds.remove(&who);
                }
            }
            Kind::Subagent { parent } if turn >= 4 => {
                self.kinds.remove(&who);
                cache.told(now_ms, who, prompt.len(), What::Finished);
                let turn = (who >> 32) + 1;
                self.due.push(Reverse((now_ms + 500, parent, turn)));
            }
            Kind::Agent if draw(who, turn, 3) < 0.15 => {
                let child = (turn << 32) | (1 << 31) | who;
                cache.told(now_ms, who, prompt.len(), What::Paused("task"));
                self.kinds.insert(child, Kind::Subagent { parent: who });
                self.due.push(Reverse((now_ms + 1_000, child, 0)));
            }
            Kind::Agent | Kind::Subagent { .. } => {
                let (tool, tool_ms) = tool_of(who, turn);
                cache.told(now_ms, who, prompt.len(), What::Paused(tool));
                self.due.push(Reverse((now_ms + tool_ms, who, turn + 1)));
            }
        }
    }

    fn run(&mut self, cache: &mut dyn Cache, stranger_ms: u64) {
        let mut next_ms = 0;
        loop {
            let due_ms = self.due.peek().map_or(u64::MAX, |due| due.0.0);
            if due_ms.min(next_ms) >= RUN_MS {
                return;
            }
            if next_ms <= due_ms {
                let who = (1 << 60) | self.next;
                self.next += 1;
                self.kinds.insert(who, Kind::Stranger);
                self.serve(cache, next_ms, who, 0);
                next_ms += stranger_ms;
            } else if let Some(Reverse((now_ms, who, turn))) = self.due.pop() {
                self.serve(cache, now_ms, who, turn);
            }
        }
    }
}

fn share(tally: Tally) -> f64 {
    100.0 * tally.found as f64 / tally.known.max(1) as f64
}

fn caches() -> Vec<(&'static str, Box<dyn Cache>)> {
    let lru = Lru { at: HashMap::new(), order: BTreeMap::new(), clock: 0 };
    vec![
        ("plain LRU", Box::new(lru)),
        ("classes", Box::new(Managed::new(Use::Classes))),
        ("classes, hold of a minute", Box::new(Managed::new(Use::FixedHold))),
        ("classes, learnt holds", Box::new(Managed::new(Use::LearntHold))),
        ("all that ever was", Box::<Everything>::default()),
    ]
}

fn main() {
    // Twelve agents need a third of the pool, eighty twice as much as there is. A stranger every 20 ms brings five
    // times the pool within 15 s.
    for (agents, stranger_ms) in [(12, 20), (12, 100), (80, 20), (80, 100)] {
        println!("{agents} agents, a stranger every {stranger_ms} ms, {POOL} blocks");
        println!(
            "| kept | agents' blocks found | strangers' | computed of all |\n|---|---|---|---|"
        );
        for (name, mut cache) in caches() {
            let mut world = World::new(agents);
            world.run(cache.as_mut(), stranger_ms);
            let (found, all) = (
                world.agents.found + world.strangers.found,
                world.agents.all + world.strangers.all,
            );
            println!(
                "| {name} | {:.1} % | {:.1} % | {:.1} % |",
                share(world.agents),
                share(world.strangers),
                100.0 - 100.0 * found as f64 / all.max(1) as f64
            );
        }
    }
}
