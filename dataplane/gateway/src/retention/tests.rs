//! Leases on the wire, and orders to whoever served a session.

use std::sync::Arc;

use mainstay_proto::client::channel;

use super::*;
use crate::placement::Placement;
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
