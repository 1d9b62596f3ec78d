//! Members whose disk was lost, and what the group knows of data directories.

use openraft::RaftNetworkFactory;
use openraft::network::NetVote;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lost_its_disk_does_not_take_the_leader_down() {
    let mut cluster = Cluster::three(Settings::default()).await;
    for id in 0..10 {
        cluster.pin(id).await;
    }
    cluster.agree().await;
    let leader = cluster.leader().await;
    let wiped = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
    cluster.stop(wiped).await;
    std::fs::remove_dir_all(cluster.folder(wiped)).unwrap();
    cluster.start(wiped).await;
    for id in 10..30 {
        cluster.pin(id).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its peers tell it nothing: it must acknowledge no entry and give no vote that it has forgotten giving.
    let blank = cluster.group(wiped).status();
    assert_eq!((blank.last_log, blank.term), (LogIndex(0), 0));
    for (id, node) in &cluster.nodes {
        assert!(node.group.ended().borrow().is_none(), "{id}: {:?}", node.group.ended().borrow());
    }
    assert_eq!(cluster.leader().await, leader);
    // It has forgotten what it voted for, so it counts for nothing; the way back is under another id.
    let group = cluster.group(leader).clone();
    group.remove(NodeId(wiped)).await.unwrap();
    cluster.stop(wiped).await;
    cluster.start(4).await;
    let fresh = cluster.group(4).instance();
    group.add_learner(NodeId(4), &cluster.addresses[&4].to_string(), fresh).await.unwrap();
    group.promote(NodeId(4), SOON).await.unwrap();
    cluster.agree().await;
    assert!(cluster.group(4).read(|m| has_pins(m, 0..30)));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_voter_gives_no_quorum_and_its_own_disk_does() {
    let mut cluster = Cluster::three(Settings::default()).await;
    cluster.pin(0).await;
    cluster.agree().await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    let (wiped, away) = (others[0], others[1]);
    cluster.stop(wiped).await;
    let (folder, kept) = (cluster.folder(wiped), cluster.dir.path().join("kept"));
    std::fs::rename(&folder, &kept).unwrap();
    cluster.start(wiped).await;
    cluster.stop(away).await;
    // Two of three run, but one of them is nobody: neither the leader nor an election gets a majority.
    let group = cluster.group(leader).clone();
    assert!(matches!(group.propose(pin(1)).await, Err(ProposeError::Unavailable(_))));
    assert!(!group.leads());
    // What it would have to say is refused as well.
    let mut network = Network {
        own: Identity { id: wiped, instance: cluster.group(wiped).instance() },
        instances: Arc::default(),
        connector: Arc::new(mainstay_proto::client::channel),
    };
    let address = cluster.addresses[&leader].to_string();
    let peer = Peer { address, instance: 0 };
    let mut client = network.new_client(leader, &peer).await;
    let request = openraft::raft::VoteRequest::new(openraft::Vote::new(1_000, wiped), None);
    let option = openraft::network::RPCOption::new(Duration::from_secs(5));
    let refusal = client.pre_vote(request, option).await.unwrap_err().to_string();
    let cure = format!("mainstay control members rm {wiped}");
    assert!(refusal.contains(&cure), "{refusal}");
    let known = MemberError::OtherInstance { id: wiped };
    let joining = cluster.addresses[&wiped].to_string();
    let instance = cluster.group(wiped).instance();

    // With its own disk it is itself again.
    cluster.stop(wiped).await;
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(&kept, &folder).unwrap();
    cluster.start(wiped).await;
    cluster.pin(2).await;
    let group = cluster.group(cluster.leader().await).clone();
    let refused = group.add_learner(NodeId(wiped), &joining, instance).await;
    assert_eq!(refused.unwrap_err(), known);
    let own = cluster.group(wiped).instance();
    group.add_learner(NodeId(wiped), &joining, own).await.unwrap();
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_not_told_is_learnt_once() {
    let mut cluster = Cluster::new(&[1, 2, 3], Settings::default()).await;
    let mut members = cluster.members();
    members.iter_mut().for_each(|m| m.instance = 0);
    cluster.group(1).initialise(&members).await.unwrap();
    let leader = cluster.leader().await;
    let group = cluster.group(leader).clone();
    for id in [1, 2, 3] {
        let instance = cluster.group(id).instance();
        group.learn_instance(NodeId(id), instance).await.unwrap();
        let other = group.learn_instance(NodeId(id), instance ^ 1).await.unwrap_err();
        assert_eq!(other, MemberError::OtherInstance { id });
    }
    let known: Vec<u64> = group.status().members.iter().map(|m| m.instance).collect();
    assert_eq!(known, [1, 2, 3].map(|id| cluster.group(id).instance()));
    // Connections from before are held to it, too.
    let wiped = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
    cluster.agree().await;
    cluster.stop(wiped).await;
    std::fs::remove_dir_all(cluster.folder(wiped)).unwrap();
    cluster.start(wiped).await;
    for id in 0..20 {
        cluster.pin(id).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.group(wiped).status().last_log, LogIndex(0));
    cluster.end().await;
}
