//! Tests of the pin ledger.

use super::*;

fn hs(numbers: &[u128]) -> Vec<SequenceHash> {
    numbers.iter().copied().map(SequenceHash).collect()
}

struct Desk {
    ledger: PinLedger,
    held: HashSet<SequenceHash>,
    live: Vec<(PinId, Vec<SequenceHash>, u64)>,
}

impl Desk {
    fn new() -> Self {
        Self { ledger: PinLedger::new(8), held: HashSet::new(), live: Vec::new() }
    }

    fn put(&mut self, id: u128, blocks: &[u128], ttl_left_ms: u64) {
        self.live.push((PinId(id), hs(blocks), ttl_left_ms));
    }

    fn sync(&mut self, now_ms: u64) {
        let live = self.live.iter().map(|(id, blocks, ttl_left_ms)| Wanted {
            id: *id,
            made: LogIndex(blocks.len() as u64),
            namespace: NamespaceId(7),
            blocks,
            priority: 50,
            ttl_left_ms: *ttl_left_ms,
        });
        self.ledger.sync(live, |block| self.held.contains(&block), now_ms);
    }

    fn store(&mut self, block: u128) {
        self.held.insert(SequenceHash(block));
        self.ledger.stored(SequenceHash(block));
    }

    fn remove(&mut self, block: u128) {
        self.held.remove(&SequenceHash(block));
        self.ledger.removed(SequenceHash(block));
    }

    /// The one operation that is due.
    fn only(&mut self, now_ms: u64) -> Action {
        let actions = self.ledger.actions(now_ms);
        assert_eq!(actions.len(), 1, "{actions:?}");
        actions.into_iter().next().expect("one")
    }

    fn report(&mut self) -> Vec<(PinId, u32)> {
        let mut reports = self.ledger.reports(100);
        self.ledger.reported(&reports);
        reports.sort_unstable();
        reports
    }
}

#[test]
fn a_pin_is_asked_for_once_with_a_lease_that_ends_later_than_the_clusters() {
    let mut desk = Desk::new();
    desk.put(1, &[10, 11], 60_000);
    desk.sync(1_000);
    let Action::Pin { op_id, id, blocks, ttl_ms, priority } = desk.only(1_000) else {
        panic!("a pin");
    };
    assert_eq!((id, blocks, priority), (PinId(1), vec![10, 11], 50));
    assert!(ttl_ms > 60_000 && ttl_ms < 70_000, "{ttl_ms}");
    assert!(desk.ledger.actions(1_001).is_empty(), "it is under way");
    assert!(desk.ledger.done(op_id, 0, 0));
    assert!(!desk.ledger.done(op_id, 0, 0), "an answer counts once");
    assert!(desk.ledger.actions(2_000).is_empty());
    assert_eq!(desk.report(), [], "nothing held, nothing said");
}

#[test]
fn reports_follow_what_is_held_once_the_lease_is_in_force() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.put(1, &[10, 11], 60_000);
    desk.sync(0);
    assert_eq!(desk.report(), [], "held but not protected yet");
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 1, 0);
    assert_eq!(desk.report(), [(PinId(1), 1)]);
    assert_eq!(desk.report(), [], "told once");
    desk.store(11);
    assert_eq!(desk.report(), [], "the engine has not said that it protects this one, too");
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 2, 0);
    assert_eq!(desk.report(), [(PinId(1), 2)]);
    desk.remove(10);
    desk.remove(11);
    assert_eq!(desk.report(), [(PinId(1), 0)], "a loss is told too");
}

#[test]
fn a_report_that_is_not_acknowledged_stays_due() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.put(1, &[10], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 1, 0);
    assert_eq!(desk.ledger.reports(100), [(PinId(1), 1)]);
    assert_eq!(desk.ledger.reports(100), [(PinId(1), 1)]);
    assert!(desk.ledger.report_due());
    desk.ledger.reported(&[(PinId(1), 1)]);
    assert_eq!(desk.ledger.reports(100), []);
    assert!(!desk.ledger.report_due());
}

#[test]
fn a_map_that_lags_behind_the_engine_does_not_promise_too_much() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.store(11);
    desk.put(1, &[10, 11], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    // Block 11 was evicted before the lease began; its removal is still on the way.
    desk.ledger.done(op, 1, 0);
    assert_eq!(desk.report(), [(PinId(1), 1)]);
    desk.remove(11);
    assert_eq!(desk.report(), []);
    assert!(desk.ledger.actions(DOUBT_MS).is_empty(), "the map has caught up");
    desk.store(11);
    let op = desk.only(DOUBT_MS).op_id();
    desk.ledger.done(op, 2, DOUBT_MS);
    assert_eq!(desk.report(), [(PinId(1), 2)]);
}

#[test]
fn a_block_that_found_no_room_in_the_engines_budget_is_not_reported() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.put(1, &[10, 11], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 1, 0);
    assert_eq!(desk.report(), [(PinId(1), 1)]);
    desk.store(11);
    let op = desk.only(1).op_id();
    desk.ledger.done(op, 1, 1);
    assert_eq!(desk.report(), [], "held, but not protected");
    let op = desk.only(1 + DOUBT_MS).op_id();
    desk.ledger.done(op, 2, 1 + DOUBT_MS);
    assert_eq!(desk.report(), [(PinId(1), 2)], "another pin has ended meanwhile");
}

#[test]
fn an_answer_that_lags_behind_the_map_is_asked_again() {
    let mut desk = Desk::new();
    desk.put(1, &[10, 11], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    // Stored after the engine looked, but heard of before its answer: the lanes are separate.
    desk.store(10);
    desk.store(11);
    desk.ledger.done(op, 0, 100);
    assert_eq!(desk.report(), [], "in doubt the lower number counts");
    assert!(desk.ledger.actions(100 + DOUBT_MS - 1).is_empty());
    let op = desk.only(100 + DOUBT_MS).op_id();
    desk.ledger.done(op, 1, 200);
    assert_eq!(desk.report(), [(PinId(1), 1)]);
    assert!(desk.ledger.actions(200 + DOUBT_MS).is_empty(), "more slowly each time");
    let op = desk.only(200 + 2 * DOUBT_MS).op_id();
    desk.ledger.done(op, 2, 300);
    assert_eq!(desk.report(), [(PinId(1), 2)]);
    assert!(desk.ledger.actions(60_000).is_empty());
}

#[test]
fn a_pin_that_is_gone_is_released_and_an_unknown_one_is_not_asked_twice() {
    let mut desk = Desk::new();
    desk.put(1, &[10], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 0, 0);
    desk.live.clear();
    desk.sync(10);
    let Action::Unpin { op_id, id } = desk.only(10) else { panic!("an unpin") };
    assert_eq!(id, PinId(1));
    assert!(desk.ledger.refused(op_id, false, 10), "full: try again");
    let Action::Unpin { op_id, .. } = desk.only(20) else { panic!("an unpin") };
    assert!(desk.ledger.refused(op_id, true, 20), "not known there");
    assert!(desk.ledger.actions(30).is_empty());
    assert_eq!(desk.ledger.len(), 0);
    assert!(desk.ledger.by_block.is_empty(), "nothing is left behind");
}

#[test]
fn a_pin_that_was_never_asked_for_needs_no_release() {
    let mut desk = Desk::new();
    desk.put(1, &[10], 60_000);
    desk.sync(0);
    desk.live.clear();
    desk.sync(1);
    assert!(desk.ledger.actions(2).is_empty());
}

#[test]
fn a_refused_pin_is_asked_again_later_and_keeps_its_former_lease() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.put(1, &[10], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.refused(op, false, 0);
    assert!(desk.ledger.actions(RETRY_MS - 1).is_empty());
    let op = desk.only(RETRY_MS).op_id();
    desk.ledger.done(op, 1, 0);
    assert_eq!(desk.report(), [(PinId(1), 1)]);
    // The cluster extends it, and the engine refuses the renewal for now.
    desk.live[0].2 = 600_000;
    desk.sync(2_000);
    let op = desk.only(2_000).op_id();
    assert_eq!(desk.report(), [], "still in force while it is renewed");
    desk.ledger.refused(op, false, 2_000);
    assert_eq!(desk.report(), [], "the former lease lasts");
    assert!(matches!(desk.only(2_000 + RETRY_MS), Action::Pin { .. }));
}

#[test]
fn an_extended_pin_is_renewed_and_jitter_is_not() {
    let mut desk = Desk::new();
    desk.put(1, &[10], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 0, 0);
    // The replica's time lags by up to some hundred milliseconds.
    desk.live[0].2 = 59_300;
    desk.sync(1_000);
    assert!(desk.ledger.actions(1_000).is_empty());
    desk.live[0].2 = 120_000;
    desk.sync(1_000);
    let Action::Pin { ttl_ms, .. } = desk.only(1_000) else { panic!("a renewal") };
    assert!(ttl_ms > 120_000);
}

#[test]
fn a_lease_that_the_engine_ended_is_taken_again_only_while_the_pin_lives() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.put(1, &[10], 10_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 1, 0);
    desk.report();
    desk.ledger.lease_ended(PinId(1), 5_000);
    assert_eq!(desk.report(), [(PinId(1), 0)], "it is not protected now");
    let op = desk.only(5_000).op_id();
    desk.ledger.done(op, 1, 0);
    assert_eq!(desk.report(), [(PinId(1), 1)]);
    // The control plane is away, so nobody says that the pin has ended.
    let later = 10_000 + MARGIN_MS + 200;
    desk.ledger.lease_ended(PinId(1), later);
    assert!(desk.ledger.actions(later).is_empty(), "renewing it would keep it for ever");
}

#[test]
fn a_new_engine_gets_every_pin_again_and_its_reports_begin_at_nothing() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.put(1, &[10], 60_000);
    desk.put(2, &[10], 60_000);
    desk.sync(0);
    for action in desk.ledger.actions(0) {
        desk.ledger.done(action.op_id(), 1, 0);
    }
    assert_eq!(desk.report(), [(PinId(1), 1), (PinId(2), 1)]);
    desk.held.clear();
    desk.ledger.engine_began(true, 1_000);
    desk.ledger.epoch_began();
    assert_eq!(desk.report(), [], "the new epoch has been told nothing");
    let asked = desk.ledger.actions(1_000);
    assert_eq!(asked.len(), 2);
    for action in asked {
        assert!(desk.ledger.done(action.op_id(), 0, 0));
    }
    desk.store(10);
    for action in desk.ledger.actions(1_001) {
        desk.ledger.done(action.op_id(), 1, 1_001);
    }
    assert_eq!(desk.report(), [(PinId(1), 1), (PinId(2), 1)]);
}

#[test]
fn a_new_epoch_alone_is_told_what_is_held() {
    let mut desk = Desk::new();
    desk.store(10);
    desk.put(1, &[10], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 1, 0);
    desk.report();
    desk.ledger.epoch_began();
    assert_eq!(desk.report(), [(PinId(1), 1)]);
}

#[test]
fn an_engine_without_events_is_taken_at_its_word() {
    let mut desk = Desk::new();
    desk.ledger.engine_began(false, 0);
    desk.put(1, &[10, 11], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 99, 0);
    assert_eq!(desk.report(), [(PinId(1), 2)], "but never for more than the pin has");
}

#[test]
fn operations_and_pins_are_bounded() {
    let mut desk = Desk::new();
    for id in 0..20 {
        desk.put(id, &[10], 60_000);
    }
    desk.sync(0);
    assert_eq!((desk.ledger.len(), desk.ledger.left_out), (8, 12));
    let mut ledger = PinLedger::new(PINS_MAX);
    let blocks = hs(&[1]);
    let live = (0..2_000).map(|id| Wanted {
        id: PinId(id),
        made: LogIndex(1),
        namespace: NamespaceId(7),
        blocks: &blocks,
        priority: 0,
        ttl_left_ms: 60_000,
    });
    ledger.sync(live, |_| false, 0);
    assert_eq!(ledger.actions(0).len(), OPS_MAX);
    assert!(ledger.actions(1).is_empty(), "until answers come");
    assert_eq!(ledger.actions(ANSWER_MS_MAX).len(), OPS_MAX, "or are given up");
}

#[test]
fn an_id_that_comes_again_is_another_pin() {
    let mut desk = Desk::new();
    desk.put(1, &[10], 60_000);
    desk.sync(0);
    let op = desk.only(0).op_id();
    desk.ledger.done(op, 0, 0);
    desk.live[0].1 = hs(&[20, 21]);
    desk.sync(1);
    let Action::Pin { blocks, .. } = desk.only(1) else { panic!("the new one, and no release") };
    assert_eq!(blocks, [20, 21]);
    assert!(!desk.ledger.by_block.contains_key(&SequenceHash(10)));
}

#[test]
fn tiers_are_told_the_latest_end_of_the_pins_on_each_block() {
    let mut desk = Desk::new();
    let told = |desk: &mut Desk| {
        let mut told: Vec<(u128, u64)> =
            desk.ledger.take_marks(100).iter().map(|mark| (mark.block.0, mark.until_ms)).collect();
        told.sort_unstable();
        told
    };
    desk.put(1, &[10, 11], 60_000);
    desk.sync(0);
    assert_eq!(told(&mut desk), [], "nobody has asked");
    desk.ledger.mark_from_now();
    let one = 60_000 + margin(60_000);
    assert_eq!(told(&mut desk), [(10, one), (11, one)]);
    desk.put(2, &[10], 600_000);
    desk.sync(0);
    let two = 600_000 + margin(600_000);
    assert_eq!(told(&mut desk), [(10, two)]);
    // Clocks drift a little; that is no news.
    desk.live[1].2 = 599_000;
    desk.sync(900);
    assert_eq!(told(&mut desk), []);
    desk.live[1].2 = 900_000;
    desk.sync(1_000);
    assert_eq!(told(&mut desk), [(10, 1_000 + 900_000 + margin(900_000))]);
    desk.live.remove(1);
    desk.sync(1_000);
    assert_eq!(told(&mut desk), [(10, one)], "the other pin is still on it");
    desk.ledger.mark_again(NamespaceId(7), &hs(&[11, 12]));
    assert_eq!(told(&mut desk), [(11, one)], "what no pin names is no news");
    desk.live.clear();
    desk.sync(2_000);
    assert_eq!(told(&mut desk), [(10, 0), (11, 0)]);
}

proptest::proptest! {
    /// Whatever pins come, go, and are extended: what tiers know is what the live pins say.
    #[test]
    fn marks_add_up_to_the_live_pins(
        steps in proptest::collection::vec((0..5_u128, 0..3_u8, 0..6_u128, 1..4_u128, 1..9_u64), 1..40),
    ) {
        let mut desk = Desk::new();
        desk.ledger.mark_from_now();
        let mut known: HashMap<u128, u64> = HashMap::new();
        for (now, (id, what, first, length, minutes)) in (0..).zip(steps) {
            let now_ms = now * 1_000;
            let at = desk.live.iter().position(|(live, ..)| live.0 == id);
            match (what, at) {
                (0, None) => {
                    let blocks: Vec<u128> = (first..first + length).collect();
                    desk.put(id, &blocks, minutes * 60_000);
                }
                (1, Some(at)) => desk.live[at].2 += minutes * 60_000,
                (2, Some(at)) => {
                    desk.live.remove(at);
                }
                _ => {}
            }
            desk.sync(now_ms);
            for mark in desk.ledger.take_marks(usize::MAX) {
                known.insert(mark.block.0, mark.until_ms);
            }
            for block in 0..10_u128 {
                let named = desk.live.iter().filter(|(_, blocks, _)| blocks.contains(&SequenceHash(block)));
                let ends = named.map(|(.., left)| now_ms + left + margin(*left)).max().unwrap_or(0);
                let told = known.get(&block).copied().unwrap_or(0);
                proptest::prop_assert!(
                    told.abs_diff(ends) < MARGIN_MS && (told == 0) == (ends == 0),
                    "block {block}: told {told}, ends {ends}"
                );
            }
        }
    }
}
