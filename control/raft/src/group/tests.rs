//! Members in one process that talk over loopback: elections, failover, restarts, images, joining and leaving.

mod identity;
mod version;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mainstay_types::{NamespaceId, PinId, PinRequest, PinScope, SequenceHash, TenantId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::error::MemberError;
use crate::types::Body;
use crate::types::Peer;

/// Long enough for a busy machine; tests that pass never wait this long.
const SOON: Duration = Duration::from_secs(20);

struct Node {
    group: Group,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

/// Members, their folders and addresses; a member that is down keeps both.
struct Cluster {
    dir: TempDir,
    settings: Settings,
    addresses: BTreeMap<u64, SocketAddr>,
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    async fn new(ids: &[u64], settings: Settings) -> Self {
        // `RUST_LOG=openraft=debug` shows what openraft does.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let (addresses, nodes) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster = Self { dir, settings, addresses, nodes };
        for id in ids {
            cluster.start(*id).await;
        }
        cluster
    }

    /// A group of three that has a leader.
    async fn three(settings: Settings) -> Self {
        let cluster = Self::new(&[1, 2, 3], settings).await;
        assert!(cluster.nodes[&1].group.initialise(&cluster.members()).await.unwrap());
        cluster.leader().await;
        cluster
    }

    fn members(&self) -> Vec<Founder> {
        let founder = |(id, address): (&u64, &SocketAddr)| Founder {
            id: NodeId(*id),
            address: address.to_string(),
            instance: self.nodes.get(id).map_or(0, |n| n.group.instance()),
        };
        self.addresses.iter().map(founder).collect()
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    async fn start(&mut self, id: u64) {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let at = self.addresses.get(&id).copied().unwrap_or(any);
        let listener = TcpListener::bind(at).await.unwrap();
        self.addresses.insert(id, listener.local_addr().unwrap());
        let mut config = GroupConfig::new(NodeId(id), self.folder(id));
        config.settings = self.settings.clone();
        let group = Group::start(config).await.unwrap();
        let router = Server::builder().add_service(group.service());
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let until = async { drop(stopped.await) };
            router.serve_with_incoming_shutdown(incoming, until).await.unwrap();
        });
        self.nodes.insert(id, Node { group, stop, server });
    }

    /// Takes a member down without a word to the others.
    async fn stop(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        // Connections end with it: others must not go on talking to a member that is gone.
        let _ = node.stop.send(());
        node.group.shutdown().await;
        tokio::time::timeout(SOON, node.server).await.unwrap().unwrap();
    }

    fn group(&self, id: u64) -> &Group {
        &self.nodes[&id].group
    }

    /// The member that serves as leader.
    async fn leader(&self) -> u64 {
        let until = Instant::now() + SOON;
        loop {
            if let Some((id, _)) = self.nodes.iter().find(|(_, n)| n.group.leads()) {
                return *id;
            }
            assert!(Instant::now() < until, "no leader");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Proposes through whoever leads until it is accepted, as a client does.
    async fn pin(&self, id: u128) -> (LogIndex, Outcome) {
        let until = Instant::now() + SOON;
        loop {
            for node in self.nodes.values() {
                if node.group.leading_term().is_none() {
                    continue;
                }
                if let Ok(answer) = node.group.propose(pin(id)).await {
                    assert!(matches!(answer.1, Outcome::Pin { .. }), "{answer:?}");
                    return answer;
                }
            }
            assert!(Instant::now() < until, "nobody takes pin {id}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until all members have applied what the leader has, then compares their states.
    async fn agree(&self) {
        let leader = self.group(self.leader().await);
        let at = leader.read_linearizable(|m| m.applied()).await.unwrap();
        for node in self.nodes.values() {
            reach(&node.group, at).await;
        }
        let mut digests = self.nodes.values().map(|n| n.group.read(|m| (m.applied(), m.digest())));
        let first = digests.next().unwrap();
        assert!(digests.all(|d| d == first), "states differ at {at}");
    }

    async fn end(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

async fn reach(group: &Group, at: LogIndex) {
    let mut applied = group.watch_applied();
    let reached = tokio::time::timeout(SOON, applied.wait_for(|seen| *seen >= at.0)).await;
    reached.unwrap_or_else(|_| panic!("{} stays at {:?}", group.node(), group.status())).unwrap();
}

pub(crate) fn pin(id: u128) -> Command {
    Command::PutPin(PinRequest {
        id: PinId(id),
        tenant: TenantId::new("acme").unwrap(),
        namespace: NamespaceId(1),
        owner: None,
        blocks: vec![SequenceHash(id), SequenceHash(id + 1_000_000)],
        prefix_tokens: 32,
        ttl_ms: 3_600_000,
        priority: 50,
        copies_min: 1,
        tokens: None,
        scope: PinScope::default(),
    })
}

fn has_pins(machine: &Machine, ids: std::ops::Range<u128>) -> bool {
    ids.into_iter().all(|id| machine.pin(PinId(id)).is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaders_death_loses_nothing_and_it_may_come_back() {
    let mut cluster = Cluster::three(Settings::default()).await;
    for id in 0..20 {
        cluster.pin(id).await;
    }
    let dead = cluster.leader().await;
    cluster.stop(dead).await;
    let start = Instant::now();
    cluster.pin(20).await;
    let gap = start.elapsed();
    // The promise is 3 s on a machine of one's own; tests share theirs.
    assert!(gap < Duration::from_secs(6), "writes stood still for {gap:?}");
    println!("writes stood still for {gap:?}");
    let leader = cluster.leader().await;
    assert!(cluster.group(leader).read_linearizable(|m| has_pins(m, 0..21)).await.unwrap());

    cluster.start(dead).await;
    cluster.pin(21).await;
    cluster.agree().await;
    assert!(cluster.group(dead).read(|m| has_pins(m, 0..22)));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader_and_serves_no_linearizable_reads() {
    let cluster = Cluster::three(Settings::default()).await;
    let leader = cluster.leader().await;
    cluster.agree().await;
    let follower = cluster.group(*cluster.nodes.keys().find(|id| **id != leader).unwrap());
    let expected = ProposeError::NotLeader { leader: Some(cluster.addresses[&leader].to_string()) };
    assert_eq!(follower.propose(Command::Tick).await.unwrap_err(), expected);
    assert_eq!(follower.read_linearizable(|_| ()).await.unwrap_err(), expected);
    assert!(!follower.leads());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_at_once_never_reads_from_before() {
    // No snapshot in between, so that everything has to come from the log.
    let mut cluster = Cluster::three(Settings::default()).await;
    let mut acknowledged = 0;
    for _ in 0..3 {
        for _ in 0..10 {
            cluster.pin(acknowledged).await;
            acknowledged += 1;
        }
        let leader = cluster.leader().await;
        cluster.stop(leader).await;
        cluster.start(leader).await;
        let until = Instant::now() + SOON;
        loop {
            // Whoever answers must know everything that was acknowledged.
            let mut answered = false;
            for node in cluster.nodes.values() {
                let read = node.group.read_linearizable(|m| has_pins(m, 0..acknowledged)).await;
                if let Ok(all) = read {
                    assert!(all, "{} has forgotten pins", node.group.node());
                    answered = true;
                }
            }
            if answered {
                break;
            }
            assert!(Instant::now() < until, "nobody answers");
        }
    }
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_restarts_with_everything_and_a_tenure_of_its_own() {
    let mut cluster = Cluster::new(&[1], Settings::default()).await;
    assert!(cluster.group(1).init_single("127.0.0.1:1").await.unwrap());
    assert!(!cluster.group(1).init_single("127.0.0.1:1").await.unwrap());
    for id in 0..10 {
        cluster.pin(id).await;
    }
    let before = cluster.group(1).read(|m| (m.digest(), m.time()));
    cluster.stop(1).await;
    let start = Instant::now();
    cluster.start(1).await;
    cluster.leader().await;
    // Nobody else could lead, so it does not wait for an election timeout.
    println!("leads {:?} after its start", start.elapsed());
    let state = cluster.group(1).read_linearizable(|m| (has_pins(m, 0..10), m.time()));
    let (all, time) = state.await.unwrap_or_else(|e| panic!("{e} after {:?}", start.elapsed()));
    assert!(all);
    assert_ne!(time.tenure.boot, before.1.tenure.boot);
    assert!(time.now_ms >= before.1.now_ms);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_lack_purged_entries_get_an_image() {
    let settings = Settings { snapshot_entries: 50, kept_entries: 5, ..Settings::default() };
    let mut cluster = Cluster::three(settings).await;
    let leader = cluster.leader().await;
    let behind = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
    cluster.stop(behind).await;
    for id in 0..300 {
        cluster.pin(id).await;
    }
    let leader = cluster.leader().await;
    let until = Instant::now() + SOON;
    while cluster.group(leader).status().snapshot.0 < 200 {
        assert!(Instant::now() < until, "no snapshot: {:?}", cluster.group(leader).status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.start(behind).await;
    cluster.agree().await;
    assert!(cluster.group(behind).status().snapshot.0 >= 200, "it replayed instead");

    // A member that is new altogether, too.
    cluster.start(4).await;
    let address = cluster.addresses[&4].to_string();
    cluster.group(leader).add_learner(NodeId(4), &address, 0).await.unwrap();
    cluster.group(leader).promote(NodeId(4), SOON).await.unwrap();
    cluster.pin(300).await;
    cluster.agree().await;
    assert!(cluster.group(4).read(|m| has_pins(m, 0..301)));

    // What was installed lasts over a restart.
    cluster.stop(4).await;
    cluster.start(4).await;
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_hand_over_the_lead() {
    let mut cluster = Cluster::three(Settings::default()).await;
    let leader = cluster.leader().await;
    let next = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
    cluster.pin(0).await;
    cluster.group(leader).transfer_leader(NodeId(next)).await.unwrap();
    cluster.pin(1).await;
    assert_eq!(cluster.leader().await, next);

    let group = cluster.group(next).clone();
    let taken = group.add_learner(NodeId(leader), "127.0.0.1:9", 0).await.unwrap_err();
    assert!(matches!(taken, MemberError::Exists { .. }), "{taken}");
    let absent = group.remove(NodeId(99)).await.unwrap_err();
    assert_eq!(absent, MemberError::Unknown { id: 99 });
    group.remove(NodeId(leader)).await.unwrap();
    cluster.stop(leader).await;
    assert_eq!(group.status().members.len(), 2);
    cluster.pin(2).await;
    // The leader may take itself out; the other one leads then.
    group.remove(NodeId(next)).await.unwrap();
    let last = *cluster.nodes.keys().find(|id| **id != next).unwrap();
    cluster.stop(next).await;
    assert_eq!(cluster.leader().await, last);
    assert_eq!(
        cluster.group(last).remove(NodeId(last)).await.unwrap_err(),
        MemberError::LastVoter { id: last }
    );
    assert!(cluster.group(last).read_linearizable(|m| has_pins(m, 0..3)).await.unwrap());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_promises_nothing() {
    let mut cluster = Cluster::three(Settings::default()).await;
    cluster.pin(0).await;
    let leader = cluster.leader().await;
    for id in [1, 2, 3].into_iter().filter(|id| *id != leader) {
        cluster.stop(id).await;
    }
    let group = cluster.group(leader);
    let until = Instant::now() + SOON;
    while group.leads() {
        assert!(Instant::now() < until, "still leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (write, read) =
        tokio::join!(group.propose(pin(1)), group.read_linearizable(|m| m.applied()));
    assert!(!matches!(write, Ok(_) | Err(ProposeError::Fatal(_))), "{write:?}");
    assert!(!matches!(read, Ok(_) | Err(ProposeError::Fatal(_))), "{read:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_up_is_not_called_in_a_busy_loop() {
    let cluster = Cluster::new(&[1, 2], Settings::default()).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut members = cluster.members();
    let address = dead.local_addr().unwrap().to_string();
    members.push(Founder { id: NodeId(3), address, instance: 0 });
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let hang_up = tokio::spawn(async move {
        while dead.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    cluster.group(1).initialise(&members).await.unwrap();
    cluster.leader().await;
    calls.store(0, Ordering::Relaxed);
    for id in 0..50 {
        cluster.pin(id).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = calls.load(Ordering::Relaxed);
    // Heartbeats are ten a second; a spin makes thousands.
    assert!(calls < 200, "{calls} calls");
    hang_up.abort();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_for_another_member_is_refused() {
    let cluster = Cluster::new(&[1], Settings::default()).await;
    let address = cluster.addresses[&1].to_string();
    let mut network = Network {
        own: Identity { id: 2, instance: 5 },
        instances: Arc::default(),
        connector: Arc::new(mainstay_proto::client::channel),
    };
    let option = openraft::network::RPCOption::new(Duration::from_secs(5));
    let vote = openraft::Vote::new(1_000, 2);
    let ask = |target| {
        let request = openraft::raft::VoteRequest::<TypeConfig>::new(vote, None);
        (target, request, option.clone())
    };
    use openraft::RaftNetworkFactory;
    use openraft::network::NetVote;
    for (target, request, option) in [ask(7), ask(1)] {
        let peer = Peer { address: address.clone(), instance: 0 };
        let mut client = network.new_client(target, &peer).await;
        let answer = client.pre_vote(request, option).await;
        assert_eq!(answer.is_ok(), target == 1, "{answer:?}");
    }
    assert_eq!(cluster.group(1).status().term, 0);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_means_nothing_ends_the_group_with_a_reason() {
    let cluster = Cluster::new(&[1], Settings::default()).await;
    let group = cluster.group(1);
    group.init_single("127.0.0.1:1").await.unwrap();
    cluster.pin(0).await;
    let mut ended = group.ended();
    assert!(ended.borrow().is_none());
    let _ = group.inner.raft.client_write(Body(Bytes::from_static(b"\xff\xff"))).await;
    let reason = tokio::time::timeout(SOON, ended.wait_for(Option::is_some)).await;
    let reason = reason.unwrap().unwrap().clone().unwrap();
    assert!(reason.contains("entry"), "{reason}");
    assert!(matches!(group.propose(pin(1)).await, Err(ProposeError::Fatal(_))));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proposals_go_through_in_batches_and_in_order() {
    let cluster = Cluster::new(&[1], Settings::default()).await;
    let group = cluster.group(1);
    group.init_single("127.0.0.1:1").await.unwrap();
    cluster.leader().await;
    let answers = group.propose_many((0..500).map(pin).collect()).await.unwrap();
    assert!(answers.windows(2).all(|w| w[0].0 < w[1].0));
    let first = answers[0].0;
    let Read::Entries(entries) = group.entries(first, 1000) else { panic!("entries are kept") };
    assert!(entries.len() >= 500);
    let too_many = group.propose_many(vec![Command::Tick; PROPOSALS_MAX + 1]).await;
    assert!(matches!(too_many, Err(ProposeError::TooLarge { .. })));
    cluster.end().await;
}

#[tokio::test]
async fn settings_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = async |change: fn(&mut GroupConfig), path: &Path| {
        let mut config = GroupConfig::new(NodeId(1), path);
        change(&mut config);
        Group::start(config).await.err().expect("must be refused").to_string()
    };
    let text = refuse(|c| c.node = NodeId(0), dir.path()).await;
    assert!(text.contains("must not be 0"), "{text}");
    let text = refuse(|c| c.settings.election_ms_max = 1, dir.path()).await;
    assert!(text.starts_with("settings"), "{text}");
    // Nothing was created for any of them.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
