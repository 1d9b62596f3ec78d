//! Leases on the wire, and orders to whoever served a session.

use std::sync::Arc;

use mainstay_proto::client::channel;

use super::*;
use crate::replica::Replica;

const NAMESPACE: NamespaceId = NamespaceId(5);

fn retainer(on: bool) -> (Retainer, Letters) {
    Retainer::new(on, Workers::new(Replica::new(), Arc::new(channel)))
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a name")
}

fn keeping(retainer: &Retainer, name: &str, session: &str, is_side: bool) -> Option<Keeping> {
    let parts = Parts { head: 100, prompt: 1_000 };
    let who = (&tenant(name), Some(session));
    retainer.keeping(who, is_side, (NAMESPACE, HashKey([7; 16]), 16), parts)
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
    let parts = Parts { head: 0, prompt: 10 };
    assert!(on.keeping(nobody, false, (NAMESPACE, HashKey([7; 16]), 16), parts).is_none());
}

#[test]
fn those_served_longest_ago_make_room() {
    let (retainer, _letters) = retainer(true);
    let mut state = State::default();
    let mut turn = keeping(&retainer, "a", "s", false).expect("leases");
    for n in 0..SERVED_MAX as u128 + 10 {
        turn.session = SessionId(n);
        state.serve(&turn, WorkerId(1));
    }
    assert_eq!(state.served.len(), SERVED_MAX);
    assert!(!state.served.contains_key(&SessionId(9)) && state.served.contains_key(&SessionId(10)));
    for _ in 0..3 * SERVED_MAX {
        state.serve(&turn, WorkerId(1));
    }
    assert!(state.order.len() <= 2 * SERVED_MAX);
    assert!(state.served.contains_key(&turn.session), "the last one stays");
}
