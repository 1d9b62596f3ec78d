//! The checker turns red: each broken promise, put into a history that was clean, is found and named.

use super::check::Kind;
use super::*;

const SECOND: u64 = 1_000_000;

fn spec(id: u128, ttl_ms: u64) -> Spec {
    Spec {
        id,
        tenant: "acme".into(),
        namespace: 7,
        owner: String::new(),
        blocks: vec![1, 2, 3],
        priority: 5,
        copies_min: 1,
        ttl_ms,
    }
}

/// Builds a history; log indexes count up by themselves.
struct Script {
    ops: Vec<Op>,
    log_index: u64,
    specs: Vec<Arc<Spec>>,
}

fn view(standing: Standing, id: u128) -> View {
    View { standing, by: None, created_index: 1_000 + u64::try_from(id).unwrap() }
}

impl Script {
    fn new() -> Self {
        Self { ops: Vec::new(), log_index: 0, specs: Vec::new() }
    }

    /// An operation sent at `at_ms` and answered 10 ms later.
    fn op(&mut self, at_ms: u64, asked: Asked, answer: Answer) -> usize {
        let invoked_us = at_ms * 1_000;
        let returned_us = invoked_us + 10_000;
        self.ops.push(Op { client: 1, asked, invoked_us, returned_us, attempts: 1, answer });
        self.ops.len() - 1
    }

    fn pin(&mut self, at_ms: u64, asked: Asked, standing: Standing) -> usize {
        self.log_index += 1;
        let view = view(standing, asked.pin().unwrap());
        let answer = Answer::Pin { view, log_index: self.log_index };
        self.op(at_ms, asked, answer)
    }

    fn create(&mut self, at_ms: u64, spec: Spec) -> usize {
        let spec = Arc::new(spec);
        self.specs.push(Arc::clone(&spec));
        self.pin(at_ms, Asked::Create(spec), Standing::Live)
    }

    fn read(&mut self, at_ms: u64, id: u128, standing: Standing) -> usize {
        self.pin(at_ms, Asked::Read { id }, standing)
    }

    fn list(&mut self, at_ms: u64, ids: &[u128]) -> usize {
        self.log_index += 1;
        let pins = ids.iter().map(|id| (*id, view(Standing::Live, *id))).collect();
        let answer = Answer::Pins { pins, log_index: self.log_index, whole: true };
        self.op(at_ms, Asked::List { tenant: "acme".into() }, answer)
    }

    fn kinds(&self) -> Vec<Kind> {
        check(&self.ops, Bounds::default()).counts.into_keys().collect()
    }

    fn set_view(&mut self, at: usize, change: impl FnOnce(&mut View)) {
        let Answer::Pin { view, .. } = &mut self.ops[at].answer else { panic!("no pin") };
        change(view);
    }
}

/// A pin that is made, read, extended, listed, read after its end.
fn life() -> Script {
    let mut script = Script::new();
    script.create(0, spec(1, 5_000));
    script.read(1_000, 1, Standing::Live);
    script.list(2_000, &[1]);
    script.pin(3_000, Asked::Extend { id: 1, ttl_ms: 5_000 }, Standing::Live);
    script.read(7_000, 1, Standing::Live);
    script.list(7_500, &[1]);
    script.read(9_900, 1, Standing::Expired);
    script.list(11_000, &[]);
    script
}

#[test]
fn a_history_that_keeps_its_promises_is_clean() {
    let report = check(&life().ops, Bounds::default());
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.pins, report.acknowledged, report.extended, report.lists), (1, 1, 1, 3));
    assert!(report.looks >= 5, "{report}");
}

#[test]
fn a_pin_missing_from_a_read_or_a_list_is_lost() {
    let mut script = life();
    script.ops[1].answer = Answer::Refused(Refusal::NotFound);
    assert!(script.kinds().contains(&Kind::Lost));
    let mut script = life();
    script.ops[2].answer = Answer::Pins { pins: vec![], log_index: 3, whole: true };
    assert_eq!(script.kinds(), [Kind::Lost]);
    // A list that was cut short proves nothing.
    script.ops[2].answer = Answer::Pins { pins: vec![], log_index: 3, whole: false };
    assert!(script.kinds().is_empty());
    // Released though nobody asked for it.
    let mut script = Script::new();
    script.create(0, spec(1, 5_000));
    script.read(1_000, 1, Standing::Released);
    assert!(script.kinds().contains(&Kind::Lost));
}

#[test]
fn an_end_before_its_time_is_early() {
    let mut script = Script::new();
    script.create(0, spec(1, 5_000));
    script.read(4_900, 1, Standing::Expired);
    assert_eq!(script.kinds(), [Kind::Early]);
    // An extension counts from its own invocation, and what shortens a pin shows here.
    let mut script = Script::new();
    script.create(0, spec(1, 20_000));
    script.pin(1_000, Asked::Extend { id: 1, ttl_ms: 3_000 }, Standing::Live);
    script.read(5_000, 1, Standing::Expired);
    assert_eq!(script.kinds(), [Kind::Early]);
    let mut script = life();
    script.set_view(4, |view| view.standing = Standing::Expired);
    assert!(script.kinds().contains(&Kind::Early));
    // A creation of unknown outcome can't have ended before its TTL either.
    let mut script = Script::new();
    script.op(0, Asked::Create(Arc::new(spec(1, 5_000))), Answer::Unknown);
    script.read(4_000, 1, Standing::Expired);
    assert_eq!(script.kinds(), [Kind::Early]);
}

#[test]
fn a_pin_seen_long_after_its_time_is_late() {
    let mut script = Script::new();
    script.create(0, spec(1, 5_000));
    script.read(6_900, 1, Standing::Live);
    let report = check(&script.ops, Bounds::default());
    assert!(report.is_clean() && report.latest_ms > 1_500, "{report}");
    script.list(7_100, &[1]);
    assert_eq!(script.kinds(), [Kind::Late]);
    // Only an extension that may have happened excuses it.
    script.ops.push(Op {
        client: 2,
        asked: Asked::Extend { id: 1, ttl_ms: 5_000 },
        invoked_us: 3 * SECOND,
        returned_us: 4 * SECOND,
        attempts: 2,
        answer: Answer::Unknown,
    });
    assert!(script.kinds().is_empty());
    script.ops.last_mut().unwrap().answer = Answer::Refused(Refusal::Ended);
    script.ops.last_mut().unwrap().attempts = 1;
    assert!(script.kinds().contains(&Kind::Late));
}

#[test]
fn an_equal_request_again_neither_prolongs_nor_doubles_a_pin() {
    let mut script = Script::new();
    let first = script.create(0, spec(1, 5_000));
    let again = Asked::Create(Arc::clone(&script.specs[0]));
    let retry = script.pin(4_000, again, Standing::Live);
    assert!(script.kinds().is_empty());
    let read = script.read(8_000, 1, Standing::Live);
    assert_eq!(script.kinds(), [Kind::Late]);
    script.ops.remove(read);
    script.set_view(retry, |view| view.created_index += 1);
    assert_eq!(script.kinds(), [Kind::Twice]);
    script.set_view(retry, |view| view.created_index -= 1);
    script.list(4_500, &[1, 1]);
    assert_eq!(script.kinds(), [Kind::Twice]);
    assert_eq!(first, 0);
}

#[test]
fn a_released_pin_stays_gone() {
    let mut script = Script::new();
    script.create(0, spec(1, 30_000));
    script.pin(1_000, Asked::Release { id: 1 }, Standing::Released);
    script.read(2_000, 1, Standing::Released);
    assert!(script.kinds().is_empty());
    let list = script.list(3_000, &[1]);
    assert_eq!(script.kinds(), [Kind::Revived]);
    script.ops.remove(list);
    script.read(3_000, 1, Standing::Live);
    assert_eq!(script.kinds(), [Kind::Revived, Kind::Unexplained]);
}

#[test]
fn a_release_of_unknown_outcome_allows_both_ends_but_not_a_return() {
    let mut script = Script::new();
    script.create(0, spec(1, 30_000));
    script.op(1_000, Asked::Release { id: 1 }, Answer::Unknown);
    let live = script.read(2_000, 1, Standing::Live);
    script.read(3_000, 1, Standing::Released);
    assert!(script.kinds().is_empty());
    script.ops[live].invoked_us += 2 * SECOND;
    script.ops[live].returned_us += 2 * SECOND;
    script.set_view(live, |view| view.standing = Standing::Live);
    let kinds = script.kinds();
    assert!(kinds.contains(&Kind::Revived) && kinds.contains(&Kind::Unexplained), "{kinds:?}");
}

#[test]
fn only_a_pin_that_covers_another_takes_its_place() {
    let mut script = Script::new();
    let owned =
        |id, blocks: Vec<u128>, ttl_ms| Spec { owner: "s1".into(), blocks, ..spec(id, ttl_ms) };
    script.create(0, owned(1, vec![1, 2], 5_000));
    script.create(1_000, owned(2, vec![1, 2, 3], 9_000));
    let gone = script.read(2_000, 1, Standing::Superseded);
    script.set_view(gone, |view| view.by = Some(2));
    script.list(2_500, &[2]);
    assert!(script.kinds().is_empty());
    // One that ends as late in cluster time may look a little shorter in real time.
    script.ops[1].asked = Asked::Create(Arc::new(owned(2, vec![1, 2, 3], 3_700)));
    assert!(script.kinds().is_empty());
    // One that promises less, or is of another session, or was asked for later.
    let worse: [fn(&mut Spec); 4] = [
        |s| s.blocks = vec![1, 9, 3],
        |s| s.ttl_ms = 100,
        |s| s.priority = 4,
        |s| s.owner = "s2".into(),
    ];
    for change in worse {
        let mut changed = owned(2, vec![1, 2, 3], 9_000);
        change(&mut changed);
        script.ops[1].asked = Asked::Create(Arc::new(changed));
        assert_eq!(script.kinds(), [Kind::Lost]);
    }
}

#[test]
fn a_read_sees_all_that_was_acknowledged_before() {
    let mut script = life();
    let Answer::Pin { log_index, .. } = &mut script.ops[4].answer else { panic!("a pin") };
    *log_index = 1;
    assert_eq!(script.kinds(), [Kind::Stale]);
    // A write has a place of its own.
    let mut script = Script::new();
    script.create(0, spec(1, 5_000));
    let second = script.create(1_000, spec(2, 5_000));
    let Answer::Pin { log_index, .. } = &mut script.ops[second].answer else { panic!("a pin") };
    *log_index = 1;
    assert_eq!(script.kinds(), [Kind::Stale]);
    // Operations that overlap may come in either order.
    script.ops[second].invoked_us = 5_000;
    assert!(script.kinds().is_empty());
}

#[test]
fn answers_that_no_order_explains_are_found() {
    // An extension that was accepted after the release was.
    let mut script = Script::new();
    script.create(0, spec(1, 30_000));
    script.pin(1_000, Asked::Release { id: 1 }, Standing::Released);
    script.pin(2_000, Asked::Extend { id: 1, ttl_ms: 9_000 }, Standing::Live);
    assert!(script.kinds().contains(&Kind::Unexplained));
    // Two ends of one pin.
    let mut script = Script::new();
    script.create(0, spec(1, 5_000));
    script.read(9_000, 1, Standing::Expired);
    script.read(9_500, 1, Standing::Superseded);
    assert!(script.kinds().contains(&Kind::Unexplained));
    // Refused as unknown between two sights of it.
    let mut script = life();
    script.ops[3].answer = Answer::Refused(Refusal::NotFound);
    assert!(script.kinds().contains(&Kind::Unexplained));
}

#[test]
fn operations_at_once_have_any_order() {
    let mut script = Script::new();
    script.create(0, spec(1, 30_000));
    let release = script.pin(1_000, Asked::Release { id: 1 }, Standing::Released);
    let extend = script.pin(1_500, Asked::Extend { id: 1, ttl_ms: 9_000 }, Standing::Live);
    assert!(!script.kinds().is_empty());
    script.ops[release].returned_us = script.ops[extend].returned_us;
    let Answer::Pin { log_index, .. } = &mut script.ops[release].answer else { panic!("a pin") };
    *log_index = 9;
    assert!(script.kinds().is_empty());
}

#[test]
fn a_creation_of_unknown_outcome_may_appear_late_but_not_for_ever() {
    let mut script = Script::new();
    script.op(0, Asked::Create(Arc::new(spec(1, 5_000))), Answer::Unknown);
    script.list(1_000, &[]);
    script.list(8_000, &[1]);
    assert!(script.kinds().is_empty());
    script.list(40_000, &[1]);
    assert_eq!(script.kinds(), [Kind::Late]);
}

#[test]
fn a_creation_may_be_answered_at_its_second_attempt_with_the_end_of_the_pin() {
    let mut script = Script::new();
    let create = script.create(0, spec(1, 30_000));
    script.ops[create].returned_us = 3 * SECOND;
    script.set_view(create, |view| view.standing = Standing::Released);
    let release = script.pin(1_000, Asked::Release { id: 1 }, Standing::Released);
    assert_eq!(script.kinds(), [Kind::Unexplained]);
    script.ops[create].attempts = 2;
    assert!(script.kinds().is_empty());
    script.ops.remove(release);
    script.read(4_000, 1, Standing::Live);
    assert!(script.kinds().contains(&Kind::Unexplained));
}
