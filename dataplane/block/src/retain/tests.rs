//! Changes of sessions against a pool that does as it is ordered.

use mainstay_types::hash::{NamespaceId, SequenceHash};
use proptest::prelude::*;

use super::super::{BlockId, BlockManager, Cause, LeaseTerms, Limits};
use super::*;

const TENANT: TenantSlot = TenantSlot(1);
const SESSION: SessionId = SessionId(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
/// Memory is asked for, and its price is low.
const STAKES: Stakes = Stakes { reload_ms: 2_000.0, price_per_ms: 0.01, kept_ms: 0 };
const READ: Event<'_> = Event::Paused { tools: &["read"], stakes: STAKES };

/// A pool that does what it is told to, and one session's turns in it.
struct World {
    retention: Retention,
    pool: BlockManager,
    now_ms: u64,
}

impl World {
    fn new() -> Self {
        let pool = BlockManager::new(Limits::new(64));
        Self { retention: Retention::default(), pool, now_ms: 0 }
    }

    fn obey(&mut self, orders: Vec<Order>) -> Vec<bool> {
        let obey = |order| match order {
            Order::Amend { lease, amendments } => {
                self.pool.amend_lease(TENANT, lease, &amendments, self.now_ms)
            }
            Order::End { lease, end } => self.pool.end_lease(TENANT, lease, end, self.now_ms),
            Order::Prefetch { .. } => false,
        };
        orders.into_iter().map(obey).collect()
    }

    /// Whether each order found its lease.
    fn told(&mut self, event: Event<'_>) -> Vec<bool> {
        let orders = self.retention.told(TENANT, SESSION, event, self.now_ms);
        self.obey(orders)
    }

    /// A request is served: blocks of that chain, of which the first few are what others begin with too.
    fn turn(&mut self, chain: u128, turn: Turn, parts: &[(Class, Range<usize>)]) -> Vec<BlockId> {
        let blocks = parts.last().map_or(0, |part| part.1.end);
        let mut table: Vec<BlockId> = Vec::new();
        for at in 0..blocks as u128 {
            let hash = SequenceHash(chain << 32 | at);
            let id = self.pool.lookup(hash).unwrap_or_else(|| {
                let id = self.pool.allocate(TENANT, self.now_ms).unwrap();
                self.pool.register(id, hash, table.last().copied(), NamespaceId(1)).unwrap()
            });
            if self.pool.stage(id) == Some(super::super::Stage::Cached) {
                self.pool.acquire(id, self.now_ms).unwrap();
            }
            table.push(id);
        }
        let leases = self.retention.leases(TENANT, SESSION, turn, parts);
        let named: Vec<Range<usize>> =
            leases.iter().flat_map(|(_, spans)| spans).map(|span| span.blocks.clone()).collect();
        for (id, spans) in &leases {
            let terms = LeaseTerms { tenant: TENANT, id: *id, spans };
            assert_eq!(self.pool.lease(&terms, &table, self.now_ms), Ok(()));
        }
        let leased = |at: usize| named.iter().any(|blocks| blocks.contains(&at));
        self.pool.release(&table, leased, self.now_ms).unwrap();
        table
    }

    fn worth(&mut self, table: &[BlockId]) -> Vec<u8> {
        self.pool.expire(self.now_ms);
        table.iter().map(|id| self.pool.worth(*id).unwrap().0).collect()
    }
}

const PARTS: [(Class, Range<usize>); 4] = [
    (Class::System, 0..1),
    (Class::History, 1..3),
    (Class::Reasoning, 3..4),
    (Class::Output, 4..5),
];

#[test]
fn a_pause_holds_and_a_loop_that_is_over_lets_its_thoughts_go() {
    let mut world = World::new();
    assert_eq!(world.told(Event::Started), []);
    let table = world.turn(7, Turn::Conversation, &PARTS);
    assert_eq!(world.worth(&table), [90, 60, 60, 60, 60], "the loop's next prompt repeats them");
    assert_eq!(world.told(READ), [true]);
    assert_eq!(world.worth(&table), [90, 80, 80, 80, 80]);
    // Nothing is known of the tool: a minute.
    world.now_ms = 60_000;
    assert_eq!(world.worth(&table), [90, 35, 35, 35, 35]);
    assert_eq!(world.told(Event::Resumed), []);
    let table = world.turn(7, Turn::Conversation, &PARTS);
    assert_eq!(world.worth(&table), [90, 60, 60, 60, 60]);
    assert_eq!(world.told(Event::Rested { thoughts_fall: false }), [true]);
    assert_eq!(world.worth(&table), [90, 60, 60, 60, 60], "there was no thought");
    assert_eq!(world.told(Event::Rested { thoughts_fall: true }), [true]);
    assert_eq!(world.worth(&table), [90, 60, 60, 5, 60]);
    assert_eq!(world.retention.sessions(), 0, "nothing is left to remember");
    assert_eq!(world.retention.policy().durations().tools(), 1);
}

#[test]
fn a_hold_that_nothing_needs_demotes_nobody() {
    let mut world = World::new();
    let table = world.turn(7, Turn::Conversation, &PARTS);
    let free = Stakes { price_per_ms: 0.0, kept_ms: u64::MAX, ..STAKES };
    let read = Event::Paused { tools: &["read"], stakes: free };
    assert_eq!(world.told(read), []);
    world.now_ms = 100_000;
    assert_eq!(world.worth(&table), [90, 60, 60, 60, 60], "as much as one that rests");
    assert_eq!(world.told(Event::Resumed), []);
    assert_eq!(world.retention.policy().durations().tools(), 1, "what it took is learnt");
}

#[test]
fn a_subagent_that_is_done_goes_first_and_leaves_what_others_begin_with() {
    let mut world = World::new();
    let table = world.turn(7, Turn::Conversation, &PARTS);
    assert_eq!(world.told(READ), [true]);
    assert_eq!(world.told(Event::Ended(Ending::Finished)), [true]);
    assert_eq!(world.worth(&table), [90, 0, 0, 0, 0]);
    for _ in 0..4 {
        assert_eq!(world.pool.evict(1).map(|gone| gone.cause), Some(Cause::Lifecycle));
    }
    assert_eq!(world.told(Event::Ended(Ending::Finished)), [false], "there is nothing left of it");
}

#[test]
fn silence_releases_and_what_nobody_follows_runs_out_by_itself() {
    let mut world = World::new();
    let table = world.turn(7, Turn::Conversation, &PARTS);
    assert_eq!(world.told(Event::Ended(Ending::Untracked)), []);
    assert_eq!(world.worth(&table), [90, 60, 60, 60, 60]);
    assert_eq!(world.told(Event::Ended(Ending::Idle)), [true]);
    assert_eq!(world.worth(&table), [90, 35, 35, 35, 35]);
    world.now_ms = 3_600_000;
    assert_eq!(world.worth(&table), [60, 35, 35, 35, 35]);
}

#[test]
fn the_end_of_an_old_window_never_reaches_the_new_one() {
    let mut world = World::new();
    let old = world.turn(7, Turn::Conversation, &PARTS);
    let late = world.retention.told(TENANT, SESSION, Event::Compacted, 0);
    // The summary's first turn is served before the order comes to the worker.
    let new = world.turn(8, Turn::Conversation, &PARTS);
    assert_eq!(world.worth(&old)[1..], [60, 60, 60, 60]);
    assert_eq!(world.obey(late), [true]);
    assert_eq!(world.worth(&old)[1..], [0, 0, 0, 0]);
    assert_eq!(world.worth(&new), [90, 60, 60, 60, 60]);
    assert_eq!(world.told(READ), [true]);
    assert_eq!(world.worth(&new), [90, 80, 80, 80, 80]);
    assert_eq!(world.retention.sessions(), 1, "its window is remembered");
    assert_eq!(world.told(Event::Ended(Ending::Finished)), [true]);
}

#[test]
fn a_session_that_comes_back_is_not_reached_by_the_ends_of_what_it_was() {
    let mut world = World::new();
    let mut late = Vec::new();
    let endings = [Ending::Idle, Ending::Untracked, Ending::Finished].map(Event::Ended);
    for event in [Event::Compacted, Event::Compacted].into_iter().chain(endings) {
        world.turn(7, Turn::Conversation, &PARTS);
        late.extend(world.retention.told(TENANT, SESSION, event, 0));
        assert_eq!(world.told(Event::Resumed), []);
    }
    assert_eq!(late.len(), 4, "nobody's word ends what goes on untracked");
    let new = world.turn(8, Turn::Conversation, &PARTS);
    assert_eq!(world.obey(late), [true; 4], "each reaches its own");
    assert_eq!(world.worth(&new), [90, 60, 60, 60, 60]);
}

#[test]
fn a_title_is_worth_little_and_takes_nothing_from_its_session() {
    let mut world = World::new();
    let table = world.turn(7, Turn::Conversation, &PARTS);
    let title = [(Class::System, 0..1), (Class::UserTurn, 1..2)];
    let title = world.turn(9, Turn::Side, &title);
    assert_eq!(world.worth(&table), [90, 60, 60, 60, 60]);
    assert_eq!(world.worth(&title), [35, 5]);
    world.now_ms = 60_000;
    assert_eq!(world.worth(&title), [35, 0]);
    // No lease of it has no end, so those of side requests never fill a pool.
    assert_eq!(world.pool.counts().leases, 3);
    let mut ends = 0;
    while let Some(due_ms) = world.pool.next_expiry_ms() {
        world.pool.expire(due_ms);
        ends += 1;
    }
    assert!(ends > 0);
    assert_eq!(world.pool.tenants.get(TENANT.0).unwrap().leases_over, 3);
}

#[test]
fn a_prefetch_comes_before_the_return_and_only_once() {
    let mut world = World::new();
    let dear = Stakes { price_per_ms: 1.0, ..STAKES };
    let build = Event::Paused { tools: &["build"], stakes: dear };
    for _ in 0..20 {
        world.told(build);
        world.now_ms += 600_000;
        world.told(Event::Resumed);
    }
    assert_eq!(world.retention.next_due_ms(), None);
    let since_ms = world.now_ms;
    world.told(build);
    let due_ms = world.retention.next_due_ms().unwrap() - since_ms;
    assert!((480_000..=598_000).contains(&due_ms), "{due_ms}");
    assert_eq!(world.retention.due(since_ms + due_ms - 1), []);
    let prefetch = (TENANT, Order::Prefetch { session: SESSION });
    assert_eq!(world.retention.due(since_ms + due_ms), [prefetch]);
    assert_eq!(world.retention.due(since_ms + due_ms), []);
    // Who is back needs none.
    world.told(build);
    world.told(Event::Resumed);
    assert_eq!((world.retention.next_due_ms(), world.retention.sessions()), (None, 0));
    // Nor who will not be back.
    world.told(build);
    world.told(Event::Ended(Ending::Idle));
    assert_eq!((world.retention.next_due_ms(), world.retention.sessions()), (None, 1));
}

#[test]
fn a_tenant_with_many_sessions_forgets_its_own() {
    let mut retention = Retention::new(PolicySettings::default(), 8);
    let told = |retention: &mut Retention, tenant, session, event| {
        retention.told(TenantSlot(tenant), SessionId(session), event, 0)
    };
    told(&mut retention, 2, 77, Event::Compacted);
    for session in 0..100 {
        let orders = told(&mut retention, 1, session, Event::Compacted);
        assert_eq!(orders.len(), 1);
    }
    assert_eq!(retention.sessions(), 5, "as many as were left for others");
    let lease = |tenant, session| retention.own_lease(TenantSlot(tenant), SessionId(session));
    assert_ne!(lease(2, 77), lease_of(SessionId(77), Part::Own { window: 0 }));
    assert_ne!(lease(1, 99), lease_of(SessionId(99), Part::Own { window: 0 }));
    assert_eq!(lease(1, 0), lease_of(SessionId(0), Part::Own { window: 0 }));
    told(&mut retention, TENANTS, 5, Event::Compacted);
    assert_eq!(retention.sessions(), 5);
}

const TENANTS: u32 = super::super::TENANTS_MAX;

fn events() -> impl Strategy<Value = Event<'static>> {
    let stakes = prop::sample::select(vec![
        STAKES,
        Stakes { price_per_ms: 1.0, ..STAKES },
        Stakes { reload_ms: f64::NAN, price_per_ms: f64::NAN, kept_ms: u64::MAX },
        Stakes { reload_ms: f64::INFINITY, price_per_ms: -1.0, kept_ms: 5 },
    ]);
    let tools: Vec<&'static [&'static str]> = vec![&["a"], &["b"], &["a", "b"], &[]];
    let tools = prop::sample::select(tools);
    let others = vec![
        Event::Started,
        Event::Rested { thoughts_fall: true },
        Event::Rested { thoughts_fall: false },
        Event::Resumed,
        Event::Compacted,
        Event::Forked,
        Event::Ended(Ending::Finished),
        Event::Ended(Ending::Idle),
        Event::Ended(Ending::Untracked),
    ];
    prop_oneof![
        (tools, stakes).prop_map(|(tools, stakes)| Event::Paused { tools, stakes }),
        prop::sample::select(others),
    ]
}

proptest! {
    /// A loop of several turns is over and strangers want room: what began with its first thought goes before them and
    /// to its last block, from the end on; what was before that stays. Where no thought falls, strangers go first.
    #[test]
    fn a_loop_goes_from_its_end_to_its_first_thought(
        shared in 0..4usize,
        history in 1..6usize,
        turns in prop::collection::vec(1..5usize, 1..5),
        strangers in 1..8u128,
        thoughts_fall: bool,
    ) {
        let mut world = World::new();
        let from = shared + history;
        let mut end = from;
        for more in turns {
            end += more;
            let parts = [
                (Class::System, 0..shared),
                (Class::History, shared..from),
                (Class::Reasoning, from..end),
            ];
            world.told(Event::Resumed);
            world.turn(7, Turn::Conversation, &parts);
            world.told(READ);
        }
        world.told(Event::Rested { thoughts_fall });
        for stranger in 0..strangers {
            let id = world.pool.allocate(TENANT, 1).unwrap();
            let hash = SequenceHash(9 << 32 | stranger);
            let id = world.pool.register(id, hash, None, NamespaceId(1)).unwrap();
            world.pool.release(&[id], |_| false, 1).unwrap();
        }
        let went: Vec<u128> = std::iter::from_fn(|| world.pool.evict(1))
            .map(|gone| gone.hash.0)
            .collect();
        let fallen = (from..end).rev().map(|at| 7 << 32 | at as u128);
        let others = (0..strangers).map(|stranger| 9 << 32 | stranger);
        let kept = (0..from).rev().map(|at| 7 << 32 | at as u128);
        let due: Vec<u128> = if thoughts_fall {
            fallen.chain(others).chain(kept).collect()
        } else {
            others.chain(fallen).chain(kept).collect()
        };
        prop_assert_eq!(went, due);
    }

    /// Whatever comes in whatever order: nothing is forgotten half, and whoever is fetched for waits.
    #[test]
    fn any_changes_leave_the_tables_whole(
        changes in prop::collection::vec((0..3u32, 0..6u128, events(), 0..90_000u64), 1..120),
    ) {
        let mut retention = Retention::new(PolicySettings::default(), 7);
        let mut now_ms = 0;
        for (tenant, session, event, after_ms) in changes {
            now_ms += after_ms;
            let orders = retention.told(TenantSlot(tenant), SessionId(session), event, now_ms);
            prop_assert!(orders.len() <= 1);
            for (tenant, order) in retention.due(now_ms) {
                let Order::Prefetch { session } = order else { panic!("{order:?}") };
                prop_assert!(retention.sessions[&(tenant.0, session)].pause.is_some());
            }
            let sessions = &retention.sessions;
            prop_assert!(sessions.len() <= 7);
            prop_assert_eq!(retention.order.len(), sessions.len());
            prop_assert_eq!(retention.counts.values().sum::<usize>(), sessions.len());
            prop_assert!(sessions.values().all(|s| s.window > 0 || s.pause.is_some()));
            let due = sessions.values().filter(|session| session.due_ms.is_some()).count();
            prop_assert_eq!(retention.due.len(), due);
            if let Event::Ended(_) = event {
                let ended = sessions.get(&(tenant, SessionId(session)));
                prop_assert!(ended.is_none_or(|session| session.pause.is_none()));
            }
            // No two histories have one name.
            let windows = sessions.values().map(|session| session.window).filter(|w| *w > 0);
            let distinct: BTreeSet<u64> = windows.clone().collect();
            prop_assert_eq!(distinct.len(), windows.count());
        }
    }
}
