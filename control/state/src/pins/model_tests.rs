//! The pins against a literal model: a list of promises, searched from end to end for every command, which knows
//! no budgets kept up to date, no order of expiries and no sessions' tables. What the machine does to its pins is
//! also judged by itself, entry by entry: which ended, and whether they were allowed to. In between, the state
//! goes through its image and back, and commands are sent twice, as clients do.

use std::collections::BTreeSet;

use mainstay_types::{Command, PinScope};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::Machine;
use crate::testing::{Log, fence, order, pin, prefix, register, report, tokens};

/// Limits that random logs run into, but not before a session has its eight branches.
fn limits() -> Limits {
    Limits {
        workers_max: 4,
        pins_max: 20,
        pins_per_tenant_max: 14,
        pin_blocks_max: 8,
        pinned_blocks_max: 100,
        pinned_blocks_per_tenant_max: 44,
        pin_token_bytes_max: 150,
        kept_token_bytes_max: 950,
        kept_token_bytes_per_tenant_max: 650,
        ttl_ms_max: 20_000,
        index_blocks_max: 40,
        ..Limits::standard()
    }
}

/// One step of a test.
#[derive(Debug, Clone)]
struct Step {
    passed_ms: u64,
    command: Command,
    /// Sent again at once, as after a lost answer.
    again: bool,
    /// The state goes through its image first.
    image: bool,
}

fn request() -> impl Strategy<Value = PinRequest> {
    // 0: no tokens; 1: a block too few of them; else all.
    let world = (0_u128..80, 0_u128..14, 1_usize..8, 0_usize..6, 0_usize..4, 0_u32..30);
    // Now and then something that no pin may ask for.
    let ttl = prop_oneof![20 => 1_000_u64..20_000, 1 => Just(0), 1 => Just(20_001)];
    let odd = prop_oneof![30 => Just((1, 50)), 3 => Just((2, 50)), 3 => Just((1, 60)), 1 => Just((0, 50)), 1 => Just((1, 101))];
    (world, ttl, odd).prop_map(
        |((id, branch, length, tenant, owner, kept), ttl_ms, (copies_min, priority))| PinRequest {
            tenant: TenantId::new(if tenant == 0 { "zeta" } else { "acme" }).expect("a name"),
            owner: [None, SessionId::new("s"), SessionId::new("s"), SessionId::new("t")][owner]
                .clone(),
            ttl_ms,
            priority,
            copies_min,
            tokens: (kept < 20).then(|| tokens(length - usize::from(kept == 0))),
            scope: if id % 9 == 0 { PinScope::Global } else { PinScope::default() },
            ..pin(id, prefix(branch, length))
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let id = || (0_u128..80).prop_map(PinId);
    let command = prop_oneof![
        1 => Just(Command::Tick),
        12 => request().prop_map(Command::PutPin),
        2 => (id(), 0_u64..21_000).prop_map(|(id, ttl_ms)| Command::ExtendPin { id, ttl_ms }),
        1 => id().prop_map(|id| Command::ReleasePin { id }),
        3 => (1_u32..3, 0_u128..80, 0_u32..6).prop_map(|(w, id, held)| report(w, 1, id, held)),
        // Mostly for those who live; workers from 3 on were never there.
        7 => (1_u32..4, 0_u128..80).prop_map(|(w, id)| order(id, w, 1)),
        1 => (1_u32..9).prop_map(|w| fence(w, 1)),
    ];
    let chance = proptest::bool::weighted;
    (0_u64..200, command, chance(0.2), chance(0.1))
        .prop_map(|(passed_ms, command, again, image)| Step { passed_ms, command, again, image })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 0..120)
}

/// A promise as the model remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Promise {
    request: PinRequest,
    expires_ms: u64,
    live: bool,
}

/// What the machine must answer, as far as promises go.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Pin { live: bool, expires_ms: u64 },
    Refused(ErrorCode),
    Anything,
}

#[derive(Default)]
struct Model {
    promises: Vec<Promise>,
}

impl Model {
    fn find(&mut self, id: PinId) -> Option<&mut Promise> {
        self.promises.iter_mut().find(|p| p.request.id == id)
    }

    fn apply(&mut self, time: ClusterTime, limits: &Limits, command: &Command) -> Expected {
        for promise in &mut self.promises {
            promise.live &= promise.expires_ms > time.now_ms;
        }
        let ttl_fits = |ttl_ms: u64| ttl_ms >= 1 && ttl_ms <= limits.ttl_ms_max;
        match command {
            Command::PutPin(request) => self.put(time, limits, request),
            Command::ExtendPin { ttl_ms, .. } if !ttl_fits(*ttl_ms) => {
                Expected::Refused(ErrorCode::InvalidArgument)
            }
            Command::ExtendPin { id, ttl_ms } => match self.find(*id) {
                None => Expected::Refused(ErrorCode::NotFound),
                Some(promise) if !promise.live => Expected::Refused(ErrorCode::FailedPrecondition),
                Some(promise) => {
                    promise.expires_ms = promise.expires_ms.max(time.expiry(*ttl_ms));
                    Expected::Pin { live: true, expires_ms: promise.expires_ms }
                }
            },
            Command::ReleasePin { id } => match self.find(*id) {
                None => Expected::Refused(ErrorCode::NotFound),
                Some(promise) => {
                    promise.live = false;
                    Expected::Pin { live: false, expires_ms: promise.expires_ms }
                }
            },
            _ => Expected::Anything,
        }
    }

    fn put(&mut self, time: ClusterTime, limits: &Limits, new: &PinRequest) -> Expected {
        if let Some(known) = self.find(new.id) {
            if known.request != *new {
                return Expected::Refused(ErrorCode::AlreadyExists);
            }
            return Expected::Pin { live: known.live, expires_ms: known.expires_ms };
        }
        let fits = new.ttl_ms >= 1
            && new.ttl_ms <= limits.ttl_ms_max
            && new.priority <= 100
            && new.copies_min >= 1
            && new.tokens.as_ref().is_none_or(|tokens| {
                tokens.count() == 16 * new.blocks.len() as u32
                    && tokens.packed_bytes() <= limits.pin_token_bytes_max
            })
            && new.blocks.len() <= limits.pin_blocks_max as usize;
        if !fits {
            return Expected::Refused(ErrorCode::InvalidArgument);
        }
        let expires_ms = time.expiry(new.ttl_ms);
        let mut after = self.promises.clone();
        for old in after.iter_mut().filter(|old| old.live) {
            old.live = !carries_on(new, expires_ms, old);
        }
        after.push(Promise { request: new.clone(), expires_ms, live: true });
        if over_budget(&after, limits) {
            return Expected::Refused(ErrorCode::ResourceExhausted);
        }
        self.promises = after;
        Expected::Pin { live: true, expires_ms }
    }

    fn live(&self) -> BTreeSet<(PinId, u64)> {
        let live = self.promises.iter().filter(|p| p.live);
        live.map(|p| (p.request.id, p.expires_ms)).collect()
    }
}

/// Whether a new pin promises at least what an old one of the same session does.
fn carries_on(new: &PinRequest, expires_ms: u64, old: &Promise) -> bool {
    let known = &old.request;
    new.owner.is_some()
        && (&new.owner, &new.tenant, new.namespace)
            == (&known.owner, &known.tenant, known.namespace)
        && new.blocks.len() >= known.blocks.len()
        && new.blocks[..known.blocks.len()] == known.blocks
        && expires_ms >= old.expires_ms
        && new.priority >= known.priority
        && new.copies_min >= known.copies_min
        && (new.tokens.is_some() || known.tokens.is_none())
        && new.scope == known.scope
}

/// Adds everything up from nothing.
fn over_budget(promises: &[Promise], limits: &Limits) -> bool {
    let live: Vec<&PinRequest> = promises.iter().filter(|p| p.live).map(|p| &p.request).collect();
    let blocks: usize = live.iter().map(|r| r.blocks.len()).sum();
    let token_bytes = |of: &[&&PinRequest]| -> u64 {
        let tokens = of.iter().filter_map(|r| r.tokens.as_ref());
        tokens.map(|t| u64::from(t.packed_bytes())).sum()
    };
    let own = |of: &PinRequest| -> Vec<&&PinRequest> {
        live.iter().filter(|r| r.tenant == of.tenant).collect()
    };
    let session = |of: &PinRequest| {
        let same = |r: &&&PinRequest| r.owner == of.owner && r.namespace == of.namespace;
        own(of).into_iter().filter(|r| of.owner.is_some() && same(r)).count()
    };
    live.len() > limits.pins_max as usize
        || blocks as u64 > limits.pinned_blocks_max
        || token_bytes(&live.iter().collect::<Vec<_>>()) > limits.kept_token_bytes_max
        || live.iter().any(|r| {
            let names: BTreeSet<_> = own(r).iter().flat_map(|r| &r.blocks).collect();
            own(r).len() > limits.pins_per_tenant_max as usize
                || names.len() as u64 > limits.pinned_blocks_per_tenant_max
                || token_bytes(&own(r)) > limits.kept_token_bytes_per_tenant_max
                || session(r) > OWNER_PINS_MAX
        })
}

/// What a run of steps came across, to show that the tests above bite.
#[derive(Debug, Default)]
struct Tally {
    superseded: usize,
    ninth_branches: usize,
    other_budgets: usize,
    token_budgets: usize,
    expired: usize,
    orders: usize,
}

fn live_of(machine: &Machine) -> BTreeSet<(PinId, u64)> {
    let live = machine.pins().filter(|pin| pin.is_live());
    live.map(|pin| (pin.request.id, pin.expires_ms)).collect()
}

/// Whether each pin that lived before lives on, or was allowed to end.
fn check_ends(before: &Machine, after: &Machine, command: &Command) -> Result<(), TestCaseError> {
    let now_ms = after.time().now_ms;
    for old in before.pins().filter(|pin| pin.is_live()) {
        let id = old.request.id;
        let now = after.pin(id).expect("pins are remembered after they end");
        prop_assert!(now.expires_ms >= old.expires_ms, "{id} was cut short");
        if now.is_live() || old.expires_ms <= now_ms {
            continue;
        }
        let allowed = match command {
            Command::ReleasePin { id: released } => *released == id,
            Command::PutPin(new) => after.pin(new.id).is_some_and(|pin| {
                let promise = Promise {
                    request: old.request.clone(),
                    expires_ms: old.expires_ms,
                    live: true,
                };
                pin.is_live() && carries_on(new, pin.expires_ms, &promise)
            }),
            _ => false,
        };
        prop_assert!(allowed, "{id} ended early by {command:?}: {}", now.reason);
    }
    Ok(())
}

/// Tokens are there as long as the pin lives, and orders as long as it lacks copies.
fn check_keeping(machine: &Machine) -> Result<(), TestCaseError> {
    let short: BTreeSet<PinId> = machine.short_pins().map(|pin| pin.request.id).collect();
    for pin in machine.pins() {
        let tokens = pin.request.tokens.as_ref();
        let packed = tokens.and_then(|tokens| tokens.packed());
        prop_assert_eq!(packed.is_some(), pin.is_live() && tokens.is_some());
        let lacks = pin.is_live() && pin.copies() < pin.request.copies_min as usize;
        prop_assert_eq!(short.contains(&pin.request.id), lacks && tokens.is_some());
        prop_assert!(lacks || pin.keeping.orders.is_empty());
        for (worker, order) in &pin.keeping.orders {
            let known = machine.worker(*worker).expect("orders are for known workers");
            prop_assert!(known.is_live() && known.epoch == order.epoch);
            prop_assert!(!pin.holds_all(*worker) && tokens.is_some());
        }
    }
    Ok(())
}

fn check_answer(
    machine: &Machine,
    outcome: &Outcome,
    expected: &Expected,
) -> Result<(), TestCaseError> {
    match (expected, outcome) {
        (Expected::Anything, _) => {}
        (Expected::Refused(code), Outcome::Refused { code: refused, .. }) => {
            prop_assert_eq!(code, refused);
        }
        (Expected::Pin { live, expires_ms }, Outcome::Pin { id, expires_ms: until_ms, state }) => {
            let ended = matches!(state, PinState::Expired | PinState::Released);
            prop_assert_eq!((*live, *expires_ms), (!ended, *until_ms));
            prop_assert_eq!(machine.pin(*id).map(Pin::is_live), Some(*live));
        }
        _ => prop_assert!(false, "{outcome:?} instead of {expected:?}"),
    }
    Ok(())
}

fn run(steps: &[Step]) -> Result<Tally, TestCaseError> {
    let mut log = Log::new(limits());
    let mut model = Model::default();
    let mut tally = Tally::default();
    for name in ["a", "b"] {
        log.apply(register(name, 1));
    }
    for step in steps {
        log.now_ms += step.passed_ms;
        if step.image {
            let (digest, image) = (log.machine.digest(), log.machine.encode());
            log.machine = Machine::decode(&image, limits()).expect("an image of ours");
            prop_assert_eq!(log.machine.digest(), digest);
        }
        let before = log.machine.clone();
        let outcome = log.apply(step.command.clone());
        let expected = model.apply(log.machine.time(), &limits(), &step.command);
        check_answer(&log.machine, &outcome, &expected)?;
        check_ends(&before, &log.machine, &step.command)?;
        check_keeping(&log.machine)?;
        prop_assert_eq!(live_of(&log.machine), model.live());
        prop_assert!(!over_budget(&model.promises, &limits()));
        if step.again {
            let known = log.machine.encode();
            prop_assert_eq!(&log.apply(step.command.clone()), &outcome);
            // Nothing but the place in the log has moved.
            let mut moved = Machine::decode(&known, limits()).expect("an image of ours");
            moved.applied = log.machine.applied();
            prop_assert_eq!(moved.digest(), log.machine.digest());
        }
        tally.note(&outcome, &before, &log.machine);
    }
    Ok(tally)
}

impl Tally {
    fn note(&mut self, outcome: &Outcome, before: &Machine, after: &Machine) {
        if let Outcome::Refused { code: ErrorCode::ResourceExhausted, message } = outcome {
            let ninth = message.starts_with("session");
            self.ninth_branches += usize::from(ninth);
            let of_tokens = message.contains("kept token bytes");
            self.token_budgets += usize::from(of_tokens);
            self.other_budgets += usize::from(!ninth && !of_tokens);
        }
        self.orders += usize::from(*outcome == Outcome::Ordered);
        for pin in before.pins().filter(|pin| pin.is_live()) {
            let Some(now) = after.pin(pin.request.id) else { continue };
            self.superseded += usize::from(now.reason.starts_with("superseded"));
            self.expired += usize::from(now.state == PinState::Expired);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_machine_does_what_a_list_of_promises_does(steps in steps()) {
        run(&steps)?;
    }
}

#[test]
fn the_random_logs_meet_every_rule() {
    let mut runner = TestRunner::deterministic();
    let mut sum = Tally::default();
    for _ in 0..100 {
        let steps = steps().new_tree(&mut runner).expect("steps").current();
        let tally = run(&steps).expect("the model agrees");
        sum.superseded += tally.superseded;
        sum.ninth_branches += tally.ninth_branches;
        sum.other_budgets += tally.other_budgets;
        sum.token_budgets += tally.token_budgets;
        sum.expired += tally.expired;
        sum.orders += tally.orders;
    }
    let counts = [
        sum.superseded,
        sum.ninth_branches,
        sum.other_budgets,
        sum.token_budgets,
        sum.expired,
        sum.orders,
    ];
    assert!(counts.iter().all(|count| *count >= 20), "{sum:?}");
}
