//! Leases on the wire, and orders to whoever served a session.

use std::sync::Arc;

use mainstay_proto::client::channel;

use super::*;
use crate::model::PromptMemory;
use crate::placement::Placement;
use crate::replica::Replica;

const NAMESPACE: NamespaceId = NamespaceId(5);

fn retainer(on: bool) -> (Retainer, Letters) {
    Retainer::new(on, Workers::new(Replica::new(), Arc::new(channel), PromptMemory::default()))
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a name")
}

fn keeping(retainer: &Retainer, name: &str, session: &str, is_side: bool) -> Option<Keeping> {
    let parts = Parts { head: 100, prompt: 1_000, ..Parts::default() };
    let who = (&tenant(name), Some(session));
    let blocks: Arc<[SequenceHash]> = (0..62).map(SequenceHash).collect();
    retainer.keeping(who, is_side, (NAMESPACE, HashKey([7; 16]), 16), (parts, &blocks))
}

fn lived(name: &str, key: &str, change: Change) -> Lived {
    Lived { tenant: name.into(), key: key.into(), change }
}

fn ended(why: EndCause) -> Change {
    Change::Ended { why }
}

#[test]
fn a_turn_leases_what_is_shared_and_what_is_its_own() {
    let (retainer, _letters) = retainer(true);
    let turn = keeping(&retainer, "a", "s", false).expect("leases");
    assert_eq!(turn.leases.len(), 2);
    let seen: Vec<_> = turn.ranges.iter().map(|r| (r.lease, r.kind, r.start, r.end)).collect();
    assert_eq!(seen, [(1, 1, 0, 100), (2, 3, 100, 1_000), (2, 5, 1_000, u32::MAX)]);
    assert!(turn.ranges.iter().all(|r| r.duration_ms > 0 && r.after <= r.priority + 1));
    // The next turn renews them, another session's and another tenant's are others.
    let again = keeping(&retainer, "a", "s", false).expect("leases");
    assert_eq!(again.leases, turn.leases);
    for (name, session) in [("a", "t"), ("b", "s")] {
        let other = keeping(&retainer, name, session, false).expect("leases");
        assert!(other.leases.iter().all(|lease| !turn.leases.contains(lease)));
    }
    let side = keeping(&retainer, "a", "s", true).expect("leases");
    assert!(side.leases.iter().all(|lease| !turn.leases.contains(lease)), "it replaces nothing");
    assert!(side.ranges.iter().all(|range| range.kind == 7 && range.priority < 35));
}

const IN_LOOP: OpenLoop = OpenLoop { begun: true, thought: true };

/// A turn whose template drops thoughts once their loop is over, of so many tokens whose blocks go on from `before`
/// ones of the first chain.
fn thinking(
    retainer: &Retainer,
    (prompt, before): (u32, u128),
    open_loop: OpenLoop,
) -> (Keeping, Vec<(u32, u32, u32, u32)>) {
    let parts = Parts { head: 96, prompt, thoughts: Thoughts::FallAfterLoop, open_loop };
    let who = (&tenant("a"), Some("s"));
    let name = |at: u128| SequenceHash(if at < before { at } else { at + (before << 32) });
    let blocks: Arc<[SequenceHash]> = (0..u128::from(prompt / 16)).map(name).collect();
    let of = (NAMESPACE, HashKey([7; 16]), 16);
    let keeping = retainer.keeping(who, false, of, (parts, &blocks)).expect("leases");
    let ranges = keeping.ranges.iter().map(|r| (r.kind, r.start, r.end, r.priority)).collect();
    (keeping, ranges)
}

fn letters_of(letters: &mut Letters) -> Vec<Letter> {
    std::iter::from_fn(|| letters.try_recv().ok()).collect()
}

/// What a change says that a kind is worth from now on.
fn amended(letter: &Letter, kind: u32) -> Option<u32> {
    letter.change.ranges.iter().find(|range| range.kind == kind).map(|range| range.priority)
}

#[test]
fn a_loop_that_is_over_falls_from_its_first_thought_on() {
    let (retainer, mut letters) = retainer(true);
    let (asked, ranges) = thinking(&retainer, (500, 500), OpenLoop::default());
    assert_eq!(ranges, [(1, 0, 96, 90), (3, 96, 500, 60), (6, 500, u32::MAX, 60)]);
    asked.on(WorkerId(1));
    retainer.told(&lived("a", "s", Change::Paused { tools: vec!["read".into()] }));
    retainer.told(&lived("a", "s", Change::Resumed));
    // Two turns on, what falls still begins with the loop's first answer.
    for prompt in [900, 1_400] {
        let (turn, ranges) = thinking(&retainer, (prompt, 500), IN_LOOP);
        assert_eq!(ranges, [(1, 0, 96, 90), (3, 96, 500, 60), (6, 500, u32::MAX, 60)]);
        turn.on(WorkerId(2));
    }
    letters_of(&mut letters);
    retainer.told(&lived("a", "s", Change::Rested { thought: true }));
    let told = letters_of(&mut letters);
    assert_eq!(told.iter().map(|l| l.worker.0).collect::<Vec<_>>(), [1, 2]);
    for letter in &told {
        assert_eq!((amended(letter, 6), amended(letter, 3)), (Some(5), Some(60)));
        assert!(letter.change.lease == asked.leases[1] && letter.change.end == 0);
    }
    // The user speaks: the prompt is another one from the first thought on, and so is its loop.
    let (_, ranges) = thinking(&retainer, (700, 30), OpenLoop::default());
    assert_eq!(ranges, [(1, 0, 96, 90), (3, 96, 700, 60), (6, 700, u32::MAX, 60)]);
}

#[test]
fn what_is_not_known_to_be_a_loops_does_not_fall() {
    let (retainer, _letters) = retainer(true);
    // It began at another gateway.
    let (turn, ranges) = thinking(&retainer, (900, 900), IN_LOOP);
    assert_eq!(ranges[1..], [(3, 96, 900, 60), (6, 900, u32::MAX, 60)]);
    turn.on(WorkerId(1));
    // It goes on from there, and not from something else.
    let (_, ranges) = thinking(&retainer, (1_200, 900), IN_LOOP);
    assert_eq!(ranges[1..], [(3, 96, 900, 60), (6, 900, u32::MAX, 60)]);
    let (_, ranges) = thinking(&retainer, (1_200, 10), IN_LOOP);
    assert_eq!(ranges[1..], [(3, 96, 1_200, 60), (6, 1_200, u32::MAX, 60)]);
    // A client that leaves its thoughts out has a prompt that comes again as it is.
    let (_, ranges) = thinking(&retainer, (1_200, 900), OpenLoop { begun: true, thought: false });
    assert_eq!(ranges[1..], [(3, 96, 1_200, 60), (6, 1_200, u32::MAX, 60)]);
}

#[test]
fn a_turn_that_rests_ends_holds_where_it_was_served_before() {
    let (retainer, mut letters) = retainer(true);
    let (turn, _) = thinking(&retainer, (500, 500), OpenLoop::default());
    for worker in 1..=3 {
        turn.on(WorkerId(worker));
    }
    retainer.told(&lived("a", "s", Change::Rested { thought: false }));
    let told = letters_of(&mut letters);
    assert_eq!(told.iter().map(|l| l.worker.0).collect::<Vec<_>>(), [1, 2]);
    assert!(told.iter().all(|l| amended(l, 6) == Some(60)), "no thought, nothing falls");
    // The same where the template shows thoughts for ever.
    let kept = keeping(&retainer, "a", "t", false).expect("leases");
    kept.on(WorkerId(1));
    retainer.told(&lived("a", "t", Change::Rested { thought: true }));
    assert!(letters_of(&mut letters).is_empty(), "who served it last has its lease anew");
}

#[test]
fn orders_go_to_whoever_served_the_session() {
    let (retainer, mut letters) = retainer(true);
    let turn = keeping(&retainer, "a", "s", false).expect("leases");
    for worker in 1..=6 {
        turn.on(WorkerId(worker));
    }
    retainer.told(&lived("b", "s", ended(EndCause::Final)));
    assert!(letters.try_recv().is_err(), "another tenant's session of that name is another one");
    retainer.told(&lived("a", "s", Change::Compacted));
    let told: Vec<Letter> = std::iter::from_fn(|| letters.try_recv().ok()).collect();
    assert_eq!(told.iter().map(|l| l.worker.0).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert!(told.iter().all(|l| l.change.lease == turn.leases[1]));
    assert_eq!(told[0].change.end(), v1::LeaseEnd::Compacted);
    // What comes after has another name.
    let after = keeping(&retainer, "a", "s", false).expect("leases");
    assert_eq!(after.leases[0], turn.leases[0]);
    assert_ne!(after.leases[1], turn.leases[1]);
    after.on(WorkerId(9));
    retainer.told(&lived("a", "s", ended(EndCause::Finished)));
    let told: Vec<Letter> = std::iter::from_fn(|| letters.try_recv().ok()).collect();
    assert_eq!(told.last().map(|l| l.worker), Some(WorkerId(9)));
    assert!(told.iter().all(|l| l.change.lease == after.leases[1]));
    assert_eq!(told[0].change.end(), v1::LeaseEnd::Finished);
    retainer.told(&lived("a", "s", ended(EndCause::Finished)));
    assert!(letters.try_recv().is_err(), "nobody serves it any more");
}

#[test]
fn what_is_off_or_of_no_session_wants_nothing() {
    let (off, mut letters) = retainer(false);
    assert!(keeping(&off, "a", "s", false).is_none());
    off.told(&lived("a", "s", ended(EndCause::Final)));
    assert!(letters.try_recv().is_err());
    let (on, _letters) = retainer(true);
    let nobody = (&tenant("a"), None);
    let parts = Parts { prompt: 10, ..Parts::default() };
    let of = (NAMESPACE, HashKey([7; 16]), 16);
    assert!(on.keeping(nobody, false, of, (parts, &Arc::default())).is_none());
}

#[test]
fn a_request_beside_the_conversation_changes_nothing_of_what_is_known() {
    let (retainer, _letters) = retainer(true);
    keeping(&retainer, "a", "s", false).expect("leases").on(WorkerId(1));
    keeping(&retainer, "a", "s", true).expect("leases").on(WorkerId(2));
    let session = retainer.session("a", "s").expect("a name");
    let state = retainer.shared.state.lock();
    let prefix = state.served.get(session).expect("it was served");
    assert_eq!((prefix.blocks.len(), prefix.workers.as_slice()), (62, &[WorkerId(1)][..]));
}

fn placement(retainer: &Retainer) -> Placement {
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let config = crate::config::GatewayConfig::new(listen, vec!["127.0.0.1:1".to_owned()]);
    Placement::new(retainer.shared.workers.clone(), Replica::new(), &config)
}

#[tokio::test]
async fn a_prefetch_needs_a_prefix_a_worker_and_room() {
    let (retainer, _letters) = retainer(true);
    let placement = placement(&retainer);
    let ask = |name: &'static str, session: &'static str| {
        let (retainer, placement) = (retainer.clone(), placement.clone());
        async move { retainer.prefetch(&placement, name, session).await }
    };
    assert!(matches!(ask("a", "s").await, Err(Missed::Unknown)), "nobody was served");
    let turn = keeping(&retainer, "a", "s", false).expect("leases");
    assert!(matches!(ask("a", "s").await, Err(Missed::Unknown)), "nobody has taken it");
    turn.on(WorkerId(1));
    assert!(matches!(ask("b", "s").await, Err(Missed::Unknown)), "another tenant's");
    assert!(matches!(ask("a", "s").await, Err(Missed::Nobody)), "no worker is there");
    let session = retainer.session("a", "s").expect("a name");
    let held = retainer.shared.state.lock().prefetches.begin(session).expect("its place is free");
    assert!(matches!(ask("a", "s").await, Err(Missed::UnderWay)));
    retainer.shared.state.lock().prefetches.done(session, &held);
    let mut others = Vec::new();
    for n in 0_u128.. {
        match retainer.shared.state.lock().prefetches.begin(SessionId(n)) {
            Ok(stop) => others.push(stop),
            Err(_) => break,
        }
    }
    assert!(matches!(ask("a", "s").await, Err(Missed::Crowded)));
    retainer.told(&lived("a", "s", ended(EndCause::Final)));
    assert_eq!(others.len(), 16);
}
