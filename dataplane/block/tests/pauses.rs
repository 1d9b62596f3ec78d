//! Agents that wait for tools while strangers flood the pool, with leases and without.
//!
//! Each agent's turn ends in a call whose tool takes a time of its own, and between two turns come
//! prompts that nobody repeats, more than the pool has. What counts is which share of an agent's
//! prompt is still there when it is back. It is a model of the thing and no measurement of it: that
//! one is over recorded traffic, on engines.

use std::collections::BTreeSet;

use mainstay_block::{
    BlockId, BlockManager, Cause, Class, End, LeaseId, LeaseTerms, Limits, Next, Policy, SpanTerms,
    Stakes, TenantSlot,
};
use mainstay_types::hash::{NamespaceId, SequenceHash};

const AGENTS: u64 = 8;
const POOL: u32 = 400;
const TURNS: u64 = 12;
/// Blocks of the system prompt, and those that come with each turn.
const SYSTEM: usize = 6;
const TURN: usize = 2;
/// Blocks of a stranger's prompt, and the time between two of them: within the shortest pause comes more than the pool
/// has.
const STRANGER: usize = 25;
const STRANGER_MS: u64 = 100;
const TENANT: TenantSlot = TenantSlot(3);

struct World {
    pool: BlockManager,
    policy: Policy,
    leases: bool,
    now_ms: u64,
    found: usize,
    wanted: usize,
    strangers: u64,
}

fn prompt(who: u64, blocks: usize) -> Vec<SequenceHash> {
    let name = |at: usize| {
        // The system prompt is the same for all agents.
        let who = if at < SYSTEM && who < AGENTS { u64::MAX } else { who };
        SequenceHash(u128::from(who) << 64 | at as u128 | 1 << 32)
    };
    (0..blocks).map(name).collect()
}

impl World {
    fn new(leases: bool) -> Self {
        Self {
            pool: BlockManager::new(Limits::new(POOL)),
            policy: Policy::default(),
            leases,
            now_ms: 0,
            found: 0,
            wanted: 0,
            strangers: 0,
        }
    }

    /// A prompt is served; answers with its table and how much of it was there.
    fn serve(&mut self, prompt: &[SequenceHash]) -> (Vec<BlockId>, usize) {
        let mut table = Vec::new();
        self.pool.prefix(prompt, &mut table);
        let found = table.len();
        for id in &table {
            self.pool.acquire(*id, self.now_ms).expect("found from the start on");
        }
        for hash in &prompt[found..] {
            let id = self.pool.allocate(TENANT, self.now_ms).expect("room for one prompt");
            let parent = table.last().copied();
            table.push(self.pool.register(id, *hash, parent, NamespaceId(9)).expect("registered"));
        }
        (table, found)
    }

    fn lease(&mut self, id: u128, table: &[BlockId], spans: &[SpanTerms]) {
        let terms = LeaseTerms { tenant: TENANT, id: LeaseId(id), spans };
        self.pool.lease(&terms, table, self.now_ms).expect("a lease fits");
    }

    /// An agent's turn; answers with when it is back.
    fn turn(&mut self, agent: u64, turn: u64, counted: bool) -> u64 {
        let blocks = SYSTEM + TURN * (turn as usize + 1);
        let (table, found) = self.serve(&prompt(agent, blocks));
        if counted {
            self.found += found;
            self.wanted += blocks - TURN;
        }
        // A tool's times differ by a quarter or so, and no two turns have the same.
        let tool_ms = 2_000 + 500 * agent + 100 * (turn % 5);
        if self.leases {
            let tool = format!("tool{agent}");
            let stakes = Stakes { reload_ms: 3_000.0, price_per_ms: 0.05, kept_ms: 0 };
            let pause = self.policy.pause(TENANT, &[&tool], stakes, self.now_ms);
            let parts = [(Class::System, 0..SYSTEM), (Class::History, SYSTEM..blocks)];
            let terms = self.policy.terms(
                &parts,
                Next::Tools { hold_ms: pause.hold_ms.expect("nothing stays by itself") },
            );
            self.lease(1_000 + u128::from(agent), &table, &terms.shared);
            self.lease(u128::from(agent), &table, &terms.own);
            self.policy.resume(&pause, self.now_ms + tool_ms);
        }
        let leases = self.leases;
        self.pool.release(&table, |_| leases, self.now_ms).expect("in use");
        tool_ms
    }

    fn run(&mut self) {
        let mut stranger = AGENTS;
        // When each agent is back, and with which turn.
        let mut back: BTreeSet<(u64, u64, u64)> = (0..AGENTS).map(|agent| (0, agent, 0)).collect();
        while let Some((due_ms, agent, turn)) = back.pop_first() {
            while self.now_ms + STRANGER_MS <= due_ms {
                self.now_ms += STRANGER_MS;
                stranger += 1;
                let (table, _) = self.serve(&prompt(stranger, STRANGER));
                self.pool.release(&table, |_| false, self.now_ms).expect("in use");
            }
            self.now_ms = self.now_ms.max(due_ms);
            let tool_ms = self.turn(agent, turn, turn > 0);
            if turn + 1 < TURNS {
                back.insert((self.now_ms + tool_ms, agent, turn + 1));
            }
        }
        self.strangers = (stranger - AGENTS) * STRANGER as u64;
    }

    fn hit_rate(&self) -> f64 {
        self.found as f64 / self.wanted as f64
    }
}

#[test]
fn turns_after_a_pause_hit_where_lru_has_nothing_left() {
    let mut plain = World::new(false);
    plain.run();
    let mut held = World::new(true);
    held.run();
    println!(
        "hit rate after a pause: {:.3} without, {:.3} with",
        plain.hit_rate(),
        held.hit_rate()
    );
    assert!(held.strangers > 5 * u64::from(POOL), "{}", held.strangers);
    assert!(plain.hit_rate() < 0.5, "{}", plain.hit_rate());
    assert!(held.hit_rate() >= 0.95, "{}", held.hit_rate());
}

#[test]
fn a_finished_agent_goes_before_strangers_and_leaves_what_others_share() {
    let mut world = World::new(true);
    (0..AGENTS).for_each(|agent| {
        world.turn(agent, TURNS, false);
    });
    assert!(world.pool.end_lease(TENANT, LeaseId(0), End::Finished, world.now_ms));
    let (table, _) = world.serve(&prompt(AGENTS, STRANGER));
    world.pool.release(&table, |_| false, world.now_ms).expect("in use");
    let own = TURN * (TURNS as usize + 1);
    for _ in 0..own {
        assert_eq!(world.pool.evict(world.now_ms).map(|gone| gone.cause), Some(Cause::Lifecycle));
    }
    let next = world.pool.evict(world.now_ms).expect("strangers are next");
    assert_eq!((next.cause, next.class), (Cause::Capacity, Class::Plain));
    let mut left = Vec::new();
    world.pool.prefix(&prompt(0, SYSTEM + own), &mut left);
    assert_eq!(left.len(), SYSTEM);
}
