//! Three members and more: failover, restarts, joining, leaving, and a founder without its disk.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mainstay_proto::client::{ControlPlane, LEADER_METADATA};

use super::streams::{Told, chain, mark_at};
use super::*;

/// Members that were given the same list.
pub(super) struct Cluster {
    dir: TempDir,
    pub(super) members: Vec<(NodeId, String)>,
    pub(super) running: BTreeMap<u64, ControlHandle>,
}

impl Cluster {
    /// Three members that are yet to be started.
    pub(super) fn of_three() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let members = (1..=3).map(|id| (NodeId(id), free_port().to_string())).collect();
        Self { dir, members, running: BTreeMap::new() }
    }

    pub(super) async fn three() -> Self {
        let mut cluster = Self::of_three();
        for id in 1..=3 {
            cluster.start(id, Origin::Members(cluster.members.clone())).await;
        }
        cluster
    }

    pub(super) async fn start(&mut self, id: u64, origin: Origin) {
        self.start_as(id, origin, mainstay_state::VERSION_NEWEST).await;
    }

    /// [`Cluster::start`] of a member that agrees to no newer version of the cluster.
    pub(super) async fn start_as(&mut self, id: u64, origin: Origin, version_max: u8) {
        let known = self.members.iter().find(|(m, _)| m.0 == id).map(|(_, a)| a.clone());
        let address = known.unwrap_or_else(|| {
            let address = free_port().to_string();
            self.members.push((NodeId(id), address.clone()));
            address
        });
        let path = self.dir.path().join(id.to_string());
        let mut config = ControlConfig::single(NodeId(id), path);
        config.listen = address.parse().unwrap();
        config.origin = origin;
        config.settings.version_max = version_max;
        self.running.insert(id, start(config).await.unwrap());
    }

    pub(super) fn plane(&self) -> ControlPlane {
        let addresses: Vec<String> = self.members.iter().map(|(_, a)| a.clone()).collect();
        ControlPlane::new(&addresses).unwrap()
    }

    pub(super) async fn leader(&self) -> u64 {
        eventually("leading", async || {
            self.running.iter().find(|(_, h)| h.group().leads()).map(|(id, _)| *id)
        })
        .await
    }

    pub(super) async fn agree(&self) {
        let leader = &self.running[&self.leader().await];
        eventually("agreement", async || {
            let at = state_of(leader);
            tokio::time::sleep(Duration::from_millis(1)).await;
            let same = self.running.values().all(|h| state_of(h) == at);
            same.then_some(())
        })
        .await;
    }

    pub(super) async fn end(self) {
        for handle in self.running.into_values() {
            handle.shutdown().await;
        }
    }
}

pub(super) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_survive_the_leaders_death_and_a_restart_of_all() {
    let mut cluster = Cluster::three().await;
    let plane = cluster.plane();
    let me = plane.call(SOON, async |mut c| c.register(worker("w", 1)).await).await.unwrap();
    for id in 0..10 {
        plane.call(SOON, async |mut c| c.create_pin(pin(id, 600_000)).await).await.unwrap();
    }
    let dead = cluster.leader().await;
    let follower = cluster.running.iter().find(|(id, _)| **id != dead).unwrap().1;
    let away = client(follower).create_pin(pin(99, 1000)).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable);
    let leader = cluster.running[&dead].advertised();
    assert_eq!(away.metadata().get(LEADER_METADATA).unwrap(), leader);

    cluster.running.remove(&dead).unwrap().shutdown().await;
    let start = Instant::now();
    plane.call(SOON, async |mut c| c.create_pin(pin(10, 600_000)).await).await.unwrap();
    println!("pins stood still for {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    // The new leader granted the worker a full lease, so it lives on if it is heard in time.
    let next = plane.call(SOON, async |mut c| c.publish(publish(&me, vec![])).await).await.unwrap();
    assert_eq!(next.next_sequence, 1);
    let table = plane.call(SOON, async |mut c| c.status(v1::StatusRequest::default()).await);
    let table = table.await.unwrap();
    assert_eq!(table.pins_live, 11);
    let mut seen: Vec<_> = table.members.iter().map(|m| (m.id == dead, m.reachable)).collect();
    seen.sort_unstable();
    assert_eq!(seen, vec![(false, true), (false, true), (true, false)]);

    let list = Origin::Members(cluster.members.clone());
    cluster.start(dead, list.clone()).await;
    cluster.agree().await;
    for id in 1..=3 {
        cluster.running.remove(&id).unwrap().shutdown().await;
    }
    for id in 1..=3 {
        cluster.start(id, list.clone()).await;
    }
    let pins = plane
        .call(SOON, async |mut c| c.list_pins(v1::ListPinsRequest::default()).await)
        .await
        .unwrap();
    assert_eq!(pins.pins.len(), 11);
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_and_another_is_taken_out() {
    let mut cluster = Cluster::three().await;
    let plane = cluster.plane();
    plane.call(SOON, async |mut c| c.create_pin(pin(1, 600_000)).await).await.unwrap();
    let addresses = cluster.members.iter().map(|(_, a)| a.clone()).collect();
    cluster.start(4, Origin::Join(addresses)).await;
    eventually("joining", async || {
        let status = cluster.running[&4].group().status();
        status.members.iter().any(|m| m.id.0 == 4 && m.voter).then_some(())
    })
    .await;
    cluster.agree().await;
    let mut fourth = client(&cluster.running[&4]);
    let mine = v1::GetPinRequest { id: u128_to_wire(1), local: true };
    assert!(fourth.get_pin(mine).await.is_ok());
    let mut replica = Replica::new();
    let (at, _) = state_of(&cluster.running[&4]);
    replica.follow(&mut fourth, at, false).await;
    assert!(replica.machine.pin(PinId(1)).is_some(), "any member serves watchers");

    let gone = cluster.leader().await;
    let reply = plane
        .call(SOON, async |mut c| c.remove_member(v1::RemoveMemberRequest { id: gone }).await)
        .await
        .unwrap();
    assert!(reply.members.iter().all(|m| m.id != gone), "{reply:?}");
    cluster.running.remove(&gone).unwrap().shutdown().await;
    plane.call(SOON, async |mut c| c.create_pin(pin(2, 600_000)).await).await.unwrap();
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_disk_does_not_found_again() {
    let mut cluster = Cluster::three().await;
    let plane = cluster.plane();
    plane.call(SOON, async |mut c| c.create_pin(pin(1, 600_000)).await).await.unwrap();
    cluster.running.remove(&1).unwrap().shutdown().await;
    std::fs::remove_dir_all(cluster.dir.path().join("1")).unwrap();
    // Alone with its empty disk it can't tell, so it waits until a majority can be asked.
    let mut rest = Vec::new();
    for id in [2, 3] {
        rest.push(id);
        cluster.running.remove(&id).unwrap().shutdown().await;
    }
    cluster.start(1, Origin::Members(cluster.members.clone())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.running[&1].group().status().term, 0);
    cluster.running.remove(&1).unwrap().shutdown().await;
    for id in rest {
        cluster.start(id, Origin::Members(cluster.members.clone())).await;
    }
    let kept = plane
        .call(SOON, async |mut c| c.list_pins(v1::ListPinsRequest::default()).await)
        .await
        .unwrap();
    assert_eq!(kept.pins.len(), 1);
    cluster.end().await;
}

/// What a worker does for each member: frames, and all of it to one that lacks some.
async fn feed(handle: &ControlHandle, told: &Told, frame: &v1::EventFrame, all: &[BlockEvent]) {
    eventually("taking a frame", async || {
        let mut c = client(handle);
        match c.publish(told.message(frame.clone())).await {
            Ok(reply) if reply.get_ref().next_sequence == told.sequence + 1 => Some(()),
            Ok(_) => {
                c.publish(told.snapshot(all)).await.unwrap();
                None
            }
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => panic!("{status}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_equal_on_all_members_whoever_was_away() {
    let mut cluster = Cluster::three().await;
    let plane = cluster.plane();
    let me = plane.call(SOON, async |mut c| c.register(worker("w", 1)).await).await.unwrap();
    let mut told = Told::new(me);
    let mut all = Vec::new();
    for round in 0..6_u128 {
        // One member after another is away for a frame, the leader too, and comes back with nothing.
        let away = u64::try_from(round).unwrap() % 3 + 1;
        if round > 0 {
            cluster.running.remove(&away).unwrap().shutdown().await;
        }
        for at in 0..5 {
            let event = chain(1_000 * round + 100 * at, 40);
            let frame = told.frame(&event);
            all.push(event);
            for handle in cluster.running.values() {
                feed(handle, &told, &frame, &all).await;
            }
        }
        if round > 0 {
            cluster.start(away, Origin::Members(cluster.members.clone())).await;
        }
    }
    let event = chain(50_000, 1);
    let frame = told.frame(&event);
    all.push(event);
    for handle in cluster.running.values() {
        feed(handle, &told, &frame, &all).await;
        assert_eq!(mark_at(handle, &told), told.mark());
        assert_eq!(handle.group().streams().look(mainstay_state::Streams::drift), 0);
    }
    let of = |handle: &ControlHandle| {
        handle
            .group()
            .read(|m| m.worker(mainstay_types::WorkerId(told.me.worker)).and_then(|w| w.cut))
    };
    eventually("a cut on all members", async || {
        cluster.running.values().all(|h| of(h) == Some(told.mark())).then_some(())
    })
    .await;
    cluster.agree().await;
    cluster.end().await;
}

async fn members(plane: &ControlPlane) -> Vec<v1::Member> {
    let status = plane.call(SOON, async |mut c| c.status(v1::StatusRequest::default()).await);
    status.await.unwrap().members
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_is_told_the_cure_and_the_cure_works() {
    let mut cluster = Cluster::three().await;
    let plane = cluster.plane();
    plane.call(SOON, async |mut c| c.create_pin(pin(1, 600_000)).await).await.unwrap();
    // Every data directory gets known, also those of members that were late when the group was founded.
    eventually("knowing all directories", async || {
        let known = members(&plane).await;
        let own = |id| cluster.running[&id].group().instance();
        (known.len() == 3 && known.iter().all(|m| m.instance == own(m.id))).then_some(())
    })
    .await;
    let leader = cluster.leader().await;
    let wiped = (1..=3).find(|id| *id != leader).unwrap();
    cluster.running.remove(&wiped).unwrap().shutdown().await;
    std::fs::remove_dir_all(cluster.dir.path().join(wiped.to_string())).unwrap();
    let addresses: Vec<String> =
        cluster.members.iter().filter(|(id, _)| id.0 != wiped).map(|(_, a)| a.clone()).collect();
    cluster.start(wiped, Origin::Join(addresses.clone())).await;
    let mine = cluster.running[&wiped].group().instance();
    let request = v1::AddMemberRequest {
        id: wiped,
        address: cluster.running[&wiped].advertised().to_owned(),
        instance: mine,
        learner_only: false,
        version: u32::from(mainstay_state::VERSION_NEWEST),
    };
    // Whether it names its directory or is asked for it.
    for instance in [mine, 0] {
        let request = v1::AddMemberRequest { instance, ..request.clone() };
        let asked = plane.call(SOON, async |mut c| c.add_member(request.clone()).await);
        let refused = asked.await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
        let cure = format!("mainstay control members rm {wiped}");
        assert!(refused.message().contains(&cure), "{refused}");
    }
    let blank = cluster.running[&wiped].group().status();
    assert_eq!((blank.term, blank.last_log), (0, LogIndex(0)));

    cluster.running.remove(&wiped).unwrap().shutdown().await;
    let removed = v1::RemoveMemberRequest { id: wiped };
    plane.call(SOON, async |mut c| c.remove_member(removed).await).await.unwrap();
    cluster.start(4, Origin::Join(addresses)).await;
    eventually("joining anew", async || {
        let status = cluster.running[&4].group().status();
        status.members.iter().any(|m| m.id.0 == 4 && m.voter).then_some(())
    })
    .await;
    cluster.agree().await;
    let known = members(&plane).await;
    let fourth = known.iter().find(|m| m.id == 4).unwrap();
    assert_eq!(fourth.instance, cluster.running[&4].group().instance());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_over_by_request() {
    let cluster = Cluster::three().await;
    let plane = cluster.plane();
    let leader = cluster.leader().await;
    let to = (1..=3).find(|id| *id != leader).unwrap();
    let request = v1::TransferLeaderRequest { id: to };
    let follower = (1..=3).find(|id| *id != leader && *id != to).unwrap();
    let away = client(&cluster.running[&follower]).transfer_leader(request).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable);
    assert_eq!(
        away.metadata().get(LEADER_METADATA).unwrap(),
        cluster.running[&leader].advertised()
    );
    let unknown = v1::TransferLeaderRequest { id: 9 };
    let refused = client(&cluster.running[&leader]).transfer_leader(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    client(&cluster.running[&leader]).transfer_leader(request).await.unwrap();
    assert_eq!(cluster.leader().await, to);
    // Asked again, as after a lost answer, it changes nothing.
    client(&cluster.running[&to]).transfer_leader(request).await.unwrap();
    assert_eq!(cluster.leader().await, to);
    plane.call(SOON, async |mut c| c.create_pin(pin(1, 600_000)).await).await.unwrap();
    cluster.end().await;
}
