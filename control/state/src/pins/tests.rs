//! The rules of pins by hand, and random logs against a small oracle that knows only promises.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_types::{Command, Proposal, Stamp, Tenure};
use proptest::prelude::*;

use super::*;
use crate::Machine;
use crate::testing::{
    Log, fence, log, machine, pin, prefix, register, report, small_limits, stamp,
};

fn put(log: &mut Log, request: PinRequest) -> Outcome {
    log.apply(Command::PutPin(request))
}

fn state(log: &Log, id: u128) -> PinState {
    log.machine.pin(PinId(id)).expect("known").state
}

fn code(outcome: &Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

fn message(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Refused { message, .. } => message,
        _ => panic!("not refused: {outcome:?}"),
    }
}

#[test]
fn a_retry_is_the_same_pin_and_other_contents_are_another() {
    let mut log = Log::new(Limits::standard());
    let first = put(&mut log, pin(1, prefix(0, 3)));
    log.now_ms += 400;
    assert_eq!(put(&mut log, pin(1, prefix(0, 3))), first);
    assert_eq!(code(&put(&mut log, pin(1, prefix(0, 4)))), Some(ErrorCode::AlreadyExists));
    log.apply(Command::ReleasePin { id: PinId(1) });
    let again = put(&mut log, pin(1, prefix(0, 3)));
    assert!(matches!(again, Outcome::Pin { state: PinState::Released, .. }), "{again:?}");
}

#[test]
fn a_pin_lives_through_its_ttl_and_ends_in_the_first_entry_after_it() {
    let mut log = Log::new(Limits::standard());
    log.pass(0);
    let expires_ms = log.machine.time().now_ms + 1_000 + 2 * ClusterTime::SKEW_MS_MAX;
    let made = put(&mut log, pin(1, prefix(0, 3)));
    assert_eq!(made, Outcome::Pin { id: PinId(1), state: PinState::Pending, expires_ms });
    log.pass(1_499);
    assert_eq!(state(&log, 1), PinState::Pending);
    log.pass(1);
    assert_eq!(state(&log, 1), PinState::Expired);
    assert_eq!(log.machine.live_pin_count(), 0);
    let late = log.apply(Command::ExtendPin { id: PinId(1), ttl_ms: 1_000 });
    assert_eq!(code(&late), Some(ErrorCode::FailedPrecondition));
}

#[test]
fn extending_never_shortens() {
    let mut log = Log::new(Limits::standard());
    let made = put(&mut log, pin(1, prefix(0, 3)));
    assert_eq!(log.apply(Command::ExtendPin { id: PinId(1), ttl_ms: 10 }), made);
    let longer = log.apply(Command::ExtendPin { id: PinId(1), ttl_ms: 5_000 });
    assert_ne!(longer, made);
    log.pass(2_000);
    assert_eq!(state(&log, 1), PinState::Pending);
    for ttl_ms in [0, Limits::standard().ttl_ms_max + 1] {
        let outcome = log.apply(Command::ExtendPin { id: PinId(1), ttl_ms });
        assert_eq!(code(&outcome), Some(ErrorCode::InvalidArgument));
    }
    let unknown = log.apply(Command::ExtendPin { id: PinId(2), ttl_ms: 1 });
    assert_eq!(code(&unknown), Some(ErrorCode::NotFound));
}

#[test]
fn releasing_twice_is_releasing_once() {
    let mut log = Log::new(Limits::standard());
    put(&mut log, pin(1, prefix(0, 3)));
    let released = log.apply(Command::ReleasePin { id: PinId(1) });
    assert!(matches!(released, Outcome::Pin { state: PinState::Released, .. }));
    let changed = log.machine.pin(PinId(1)).expect("kept").changed_index;
    assert_eq!(log.apply(Command::ReleasePin { id: PinId(1) }), released);
    let pin = log.machine.pin(PinId(1)).expect("kept");
    assert_eq!((pin.changed_index, pin.reason.as_str()), (changed, "released by its owner"));
    let unknown = log.apply(Command::ReleasePin { id: PinId(2) });
    assert_eq!(code(&unknown), Some(ErrorCode::NotFound));
}

#[test]
fn the_state_follows_the_holders() {
    let mut log = Log::new(Limits::standard());
    log.apply(register("a", 1));
    log.apply(register("b", 1));
    put(&mut log, PinRequest { copies_min: 2, ..pin(1, prefix(0, 4)) });
    assert_eq!(state(&log, 1), PinState::Pending);
    for (worker, held, expected) in [
        (1, 2, PinState::Partial),
        (1, 4, PinState::Partial),
        (2, 3, PinState::Partial),
        (1, 0, PinState::Partial),
        (2, 0, PinState::Pending),
        (1, 4, PinState::Partial),
        (2, 4, PinState::Active),
        (2, 3, PinState::Degraded),
        (2, 4, PinState::Active),
    ] {
        assert_eq!(log.apply(report(worker, 1, 1, held)), Outcome::Reported);
        assert_eq!(state(&log, 1), expected, "worker {worker} holds {held}");
    }
    log.apply(fence(2, 1));
    assert_eq!(state(&log, 1), PinState::Degraded);
    assert_eq!(code(&log.apply(report(1, 1, 1, 5))), Some(ErrorCode::InvalidArgument));
    assert_eq!(code(&log.apply(report(1, 1, 7, 1))), Some(ErrorCode::NotFound));
    log.apply(Command::ReleasePin { id: PinId(1) });
    assert_eq!(log.apply(report(1, 1, 1, 4)), Outcome::Reported);
    assert_eq!(state(&log, 1), PinState::Released);
    assert!(log.machine.pin(PinId(1)).expect("kept").holders.is_empty());
}

#[test]
fn the_next_turn_takes_the_place_of_the_last() {
    let mut log = Log::new(Limits::standard());
    put(&mut log, pin(1, prefix(0, 3)));
    put(&mut log, pin(2, prefix(0, 5)));
    assert_eq!(state(&log, 1), PinState::Released);
    let reason = &log.machine.pin(PinId(1)).expect("kept").reason;
    assert_eq!(reason, &format!("superseded by {}", PinId(2)));
    assert_eq!(log.machine.live_pin_count(), 1);
}

#[test]
fn nothing_is_superseded_by_a_weaker_promise_or_another_owner() {
    let strong = |id, blocks| PinRequest { copies_min: 2, ..pin(id, blocks) };
    let equal = strong(2, prefix(0, 5));
    let tenant = TenantId::new("zeta").expect("a name");
    for (later, superseded) in [
        (equal.clone(), true),
        (PinRequest { ttl_ms: 999, ..equal.clone() }, false),
        (PinRequest { priority: 49, ..equal.clone() }, false),
        (PinRequest { copies_min: 1, ..equal.clone() }, false),
        (PinRequest { owner: SessionId::new("t"), ..equal.clone() }, false),
        (PinRequest { owner: None, ..equal.clone() }, false),
        (PinRequest { tenant, ..equal.clone() }, false),
        (PinRequest { namespace: NamespaceId(8), ..equal.clone() }, false),
        (strong(2, prefix(1, 5)), false),
        (strong(2, prefix(0, 2)), false),
        (strong(2, prefix(0, 3)), true),
    ] {
        let mut log = Log::new(Limits::standard());
        put(&mut log, strong(1, prefix(0, 3)));
        put(&mut log, later.clone());
        assert_eq!(state(&log, 1) == PinState::Released, superseded, "{later:?}");
        assert_eq!(state(&log, 2), PinState::Pending);
    }
}

#[test]
fn a_session_keeps_eight_branches_and_is_refused_a_ninth() {
    let mut log = Log::new(Limits::standard());
    for branch in 0..8 {
        put(&mut log, pin(branch, prefix(branch, 5)));
    }
    let ninth = || pin(8, prefix(8, 5));
    let refused = put(&mut log, ninth());
    assert_eq!(code(&refused), Some(ErrorCode::ResourceExhausted));
    let text = message(&refused);
    assert!(text.contains("session s has 8 live pins") && text.contains("pin rm"), "{text}");
    assert!((0..8).all(|id| state(&log, id) == PinState::Pending));
    assert!(log.machine.pin(PinId(8)).is_none());
    // The next turn of a branch takes its own predecessor's place and no other's.
    put(&mut log, pin(9, prefix(4, 7)));
    assert_eq!(state(&log, 4), PinState::Released);
    assert_eq!(log.machine.live_pin_count(), OWNER_PINS_MAX);
    // Another session, or nobody's, has room; so has this one once a branch has ended.
    let other = PinRequest { owner: SessionId::new("t"), ..pin(10, prefix(8, 5)) };
    assert!(matches!(put(&mut log, other), Outcome::Pin { .. }));
    assert!(matches!(
        put(&mut log, PinRequest { owner: None, ..pin(11, prefix(8, 5)) }),
        Outcome::Pin { .. }
    ));
    log.apply(Command::ReleasePin { id: PinId(0) });
    assert!(matches!(put(&mut log, ninth()), Outcome::Pin { .. }));
}

#[test]
fn a_breakpoint_that_moves_each_turn_is_never_refused() {
    let mut log = Log::new(Limits::standard());
    for turn in 0..100 {
        let outcome = put(&mut log, pin(turn, prefix(0, 3 + turn as usize)));
        assert!(matches!(outcome, Outcome::Pin { .. }), "turn {turn}: {outcome:?}");
        log.pass(5);
    }
    assert_eq!(log.machine.live_pin_count(), 1);
}

#[test]
fn budgets_name_themselves_and_what_is_left() {
    let mut log = Log::new(small_limits());
    let free = |id, branch, length| PinRequest { owner: None, ..pin(id, prefix(branch, length)) };
    // Two blocks are common to all branches and count once: 12 and 10 more of 24.
    put(&mut log, free(1, 0, 12));
    put(&mut log, free(2, 1, 12));
    assert_eq!(log.machine.tenant_pinned_blocks(&pin(0, vec![]).tenant), 22);
    let refused = put(&mut log, free(3, 2, 5));
    assert_eq!(code(&refused), Some(ErrorCode::ResourceExhausted));
    let text = message(&refused);
    assert!(text.contains("pinned blocks of the tenant (acme): 2 of 24 left, 3 more"), "{text}");
    assert!(log.machine.pin(PinId(3)).is_none());
    assert!(matches!(put(&mut log, free(3, 2, 4)), Outcome::Pin { .. }));
    for id in 4..8 {
        assert!(matches!(put(&mut log, free(id, 0, 3)), Outcome::Pin { .. }));
    }
    let text = put(&mut log, free(8, 0, 1));
    assert!(message(&text).contains("live pins of the tenant (acme): 0 of 7 left"), "{text:?}");
    let zeta = |id| PinRequest { tenant: TenantId::new("zeta").expect("a name"), ..free(id, 0, 1) };
    for id in 9..12 {
        assert!(matches!(put(&mut log, zeta(id)), Outcome::Pin { .. }));
    }
    let text = put(&mut log, zeta(12));
    assert!(message(&text).contains("live pins of the cluster (zeta): 0 of 10 left"), "{text:?}");
}

#[test]
fn a_turn_that_grows_is_charged_only_for_what_it_adds() {
    let mut log = Log::new(Limits { pinned_blocks_per_tenant_max: 5, ..small_limits() });
    put(&mut log, pin(1, prefix(0, 4)));
    assert!(matches!(put(&mut log, pin(2, prefix(0, 5))), Outcome::Pin { .. }));
    // One that is refused leaves its predecessor in force.
    let refused = put(&mut log, pin(3, prefix(0, 6)));
    assert_eq!(code(&refused), Some(ErrorCode::ResourceExhausted));
    assert_eq!(state(&log, 2), PinState::Pending);
}

#[test]
fn odd_requests_are_refused() {
    let mut log = Log::new(small_limits());
    let good = pin(1, prefix(0, 3));
    for request in [
        PinRequest { ttl_ms: 0, ..good.clone() },
        PinRequest { ttl_ms: 10_001, ..good.clone() },
        PinRequest { blocks: vec![], ..good.clone() },
        PinRequest { blocks: prefix(0, 13), ..good.clone() },
        PinRequest { priority: 101, ..good.clone() },
        PinRequest { copies_min: 0, ..good.clone() },
        PinRequest { copies_min: 5, ..good.clone() },
    ] {
        let outcome = put(&mut log, request);
        assert_eq!(code(&outcome), Some(ErrorCode::InvalidArgument), "{outcome:?}");
    }
    // The same block twice is odd but harmless: it counts once, and is given back once.
    let twice = [prefix(0, 3), prefix(0, 3)].concat();
    put(&mut log, PinRequest { blocks: twice, ..good.clone() });
    assert_eq!(log.machine.tenant_pinned_blocks(&good.tenant), 3);
    log.apply(Command::ReleasePin { id: PinId(1) });
    assert_eq!(log.machine.tenant_pinned_blocks(&good.tenant), 0);
}

#[test]
fn ended_pins_are_remembered_up_to_a_number_and_a_size() {
    let mut log = Log::new(Limits::standard());
    let many = ENDED_PINS_MAX as u128 + 10;
    for id in 0..many {
        put(&mut log, pin(id, prefix(0, 3)));
    }
    log.apply(Command::ReleasePin { id: PinId(many - 1) });
    assert_eq!(log.machine.pins().count(), ENDED_PINS_MAX);
    assert!(log.machine.pin(PinId(9)).is_none());
    assert!(log.machine.pin(PinId(10)).is_some());
    let big = |id: u128| PinRequest {
        owner: None,
        ..pin(1_000_000 + id, (0..131_072).map(|n| SequenceHash(1_000_000 * id + n)).collect())
    };
    for id in 1..=8 {
        put(&mut log, big(id));
        log.apply(Command::ReleasePin { id: big(id).id });
    }
    let kept: Vec<u128> = log.machine.pins().map(|pin| pin.request.id.0).collect();
    assert_eq!(kept, (1..=8).map(|id| 1_000_000 + id).collect::<Vec<_>>());
}

/// Knows what was promised: until when each accepted pin must live.
#[derive(Default)]
struct Oracle {
    promised: BTreeMap<PinId, (PinRequest, u64)>,
    released: BTreeSet<PinId>,
}

impl Oracle {
    fn note(&mut self, now_ms: u64, command: &Command, outcome: &Outcome) {
        match (command, outcome) {
            (Command::PutPin(request), Outcome::Pin { state: PinState::Pending, .. }) => {
                let until_ms = now_ms + request.ttl_ms;
                self.promised.entry(request.id).or_insert((request.clone(), until_ms));
            }
            (Command::ExtendPin { id, ttl_ms }, Outcome::Pin { .. }) => {
                let (_, until_ms) = self.promised.get_mut(id).expect("only known pins extend");
                *until_ms = (*until_ms).max(now_ms + ttl_ms);
            }
            (Command::ReleasePin { id }, Outcome::Pin { .. }) => {
                self.released.insert(*id);
            }
            _ => {}
        }
    }

    /// Whether another pin that was promised carries on this one's promise.
    fn carried_on(&self, pin: &Pin) -> bool {
        let (old, until_ms) = &self.promised[&pin.request.id];
        self.promised.values().any(|(new, later_ms)| {
            new.id != old.id
                && new.owner.is_some()
                && (&new.owner, &new.tenant, new.namespace)
                    == (&old.owner, &old.tenant, old.namespace)
                && new.blocks.starts_with(&old.blocks)
                && later_ms >= until_ms
                && pin.reason == format!("superseded by {}", new.id)
        })
    }

    fn check(&self, machine: &Machine) -> Result<(), TestCaseError> {
        let now_ms = machine.time().now_ms;
        for pin in machine.pins() {
            let (_, until_ms) = &self.promised[&pin.request.id];
            match pin.state {
                PinState::Expired => prop_assert!(now_ms >= *until_ms, "ended early"),
                PinState::Released => {
                    let released = self.released.contains(&pin.request.id);
                    prop_assert!(released || self.carried_on(pin), "{}", pin.reason);
                }
                PinState::Denied => prop_assert!(false, "a denied pin is kept"),
                _ => prop_assert!(pin.expires_ms > now_ms, "alive after its end"),
            }
        }
        check_budgets(machine)
    }
}

/// Adds up from scratch what the live pins use.
fn check_budgets(machine: &Machine) -> Result<(), TestCaseError> {
    let limits = machine.limits();
    let live: Vec<&Pin> = machine.pins().filter(|pin| pin.is_live()).collect();
    let total: usize = live.iter().map(|pin| pin.request.blocks.len()).sum();
    prop_assert!(live.len() <= limits.pins_max as usize);
    prop_assert_eq!(live.len(), machine.live_pin_count());
    prop_assert!(total as u64 <= limits.pinned_blocks_max);
    for tenant in ["acme", "zeta"].map(|name| TenantId::new(name).expect("a name")) {
        let own: Vec<_> = live.iter().filter(|pin| pin.request.tenant == tenant).collect();
        let blocks: BTreeSet<_> = own.iter().flat_map(|pin| &pin.request.blocks).collect();
        prop_assert_eq!(blocks.len() as u64, machine.tenant_pinned_blocks(&tenant));
        prop_assert!(blocks.len() as u64 <= limits.pinned_blocks_per_tenant_max);
        prop_assert!(own.len() <= limits.pins_per_tenant_max as usize);
    }
    let mut owners: BTreeMap<_, usize> = BTreeMap::new();
    for key in live.iter().filter_map(|pin| pin.owner_key()) {
        *owners.entry(key).or_default() += 1;
    }
    prop_assert!(owners.values().all(|count| *count <= OWNER_PINS_MAX));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn promises_are_kept_and_budgets_too(log in log(150)) {
        let mut machine = machine(small_limits());
        let mut oracle = Oracle::default();
        for (at, proposal) in log.iter().enumerate() {
            let outcome = machine.apply(LogIndex(at as u64 + 1), proposal);
            oracle.note(machine.time().now_ms, &proposal.command, &outcome);
            oracle.check(&machine)?;
        }
    }

    /// In true time: leaders come and go, each with a wall clock that is off by as much as is allowed.
    #[test]
    fn no_pin_ends_before_its_ttl_by_a_true_clock(
        ttl_ms in 1_u64..3_000,
        entries in proptest::collection::vec((1_u64..300, proptest::bool::weighted(0.2)), 1..80),
        skews in proptest::collection::vec(0_u64..=2 * ClusterTime::SKEW_MS_MAX, 3),
    ) {
        let start_ms = 1_000_000;
        let mut machine = Machine::new(Limits::standard());
        let (mut true_ms, mut term, mut index) = (start_ms, 1, 0);
        let mut apply = |machine: &mut Machine, true_ms: u64, term: u64, command| {
            index += 1;
            let node = term % 3;
            let wall_ms = true_ms + skews[node as usize] - ClusterTime::SKEW_MS_MAX;
            let tenure = Tenure { term, node, boot: 1 };
            let stamp = Stamp { tenure, mono_ms: true_ms - 900_000 + 77 * node, wall_ms };
            machine.apply(LogIndex(index), &Proposal { stamp, command });
        };
        apply(&mut machine, true_ms, term, Command::Tick);
        let request = PinRequest { ttl_ms, ..pin(1, prefix(0, 3)) };
        apply(&mut machine, true_ms, term, Command::PutPin(request));
        let mut last_alive_ms = true_ms;
        for (passed_ms, elected) in entries {
            true_ms += passed_ms;
            term += u64::from(elected);
            apply(&mut machine, true_ms, term, Command::Tick);
            if machine.live_pin_count() == 0 {
                prop_assert!(true_ms - start_ms >= ttl_ms, "ended after {} ms", true_ms - start_ms);
                break;
            }
            last_alive_ms = true_ms;
        }
        let late_ms = (last_alive_ms - start_ms).saturating_sub(ttl_ms);
        prop_assert!(late_ms <= 4 * ClusterTime::SKEW_MS_MAX + 300, "{late_ms} ms late");
    }
}

#[test]
fn a_stamp_of_this_log_moves_time_by_itself() {
    // Guards the helpers above: if time stood still, the tests of expiry would prove nothing.
    let mut log = Log::new(Limits::standard());
    log.pass(0);
    let before = log.machine.time().now_ms;
    log.pass(5);
    assert_eq!(log.machine.time().now_ms, before + 5);
    assert_eq!(stamp(5).mono_ms, 5);
}
