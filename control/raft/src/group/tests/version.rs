//! What a group proposes before and after its version is raised, and what stays of that over restarts.

use mainstay_state::{VERSION_NEWEST, VERSION_OLDEST};
use mainstay_types::{KeptTokens, Quota};

use super::*;

fn tenant() -> Command {
    let quota = Quota::default();
    Command::PutTenant { name: TenantId::new("acme").unwrap(), quota }
}

fn kept(id: u128) -> Command {
    let Command::PutPin(request) = pin(id) else { unreachable!("that is what it makes") };
    let tokens = Some(KeptTokens::new("tiny", "1", &[7; 32]));
    Command::PutPin(PinRequest { tokens, scope: PinScope::Global, ..request })
}

fn request_of(group: &Group, id: u128) -> PinRequest {
    group.read(|m| m.pin(PinId(id)).unwrap().request.clone())
}

fn format(cluster: &Cluster, id: u64) -> String {
    let marker = std::fs::read_to_string(cluster.folder(id).join("MEMBER")).unwrap();
    marker.split(' ').nth(2).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_command_waits_until_the_version_is_raised() {
    let mut cluster = Cluster::three(Settings::default()).await;
    let leader = cluster.group(cluster.leader().await).clone();
    assert_eq!(leader.version(), VERSION_OLDEST);
    // Nobody has looked at the members yet: trying again may help.
    let unknown = leader.propose(tenant()).await.unwrap_err();
    assert!(matches!(unknown, ProposeError::Unavailable(_)), "{unknown}");
    leader.note_held_back(Some("member 2 runs version 3; upgrade it".into()));
    let refused = leader.propose(tenant()).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "this needs version 4 of the cluster, which is at version 3: member 2 runs version 3; upgrade it"
    );
    let follower = cluster.nodes.values().find(|n| n.group.node() != leader.node()).unwrap();
    let elsewhere = follower.group.propose(tenant()).await.unwrap_err();
    assert!(matches!(elsewhere, ProposeError::NotLeader { .. }), "{elsewhere}");
    leader.propose(kept(1)).await.unwrap();
    let plain = request_of(&leader, 1);
    assert_eq!((plain.tokens, plain.scope), (None, PinScope::default()));
    assert_eq!(format(&cluster, leader.node().0), "1");

    assert_eq!(leader.raise_version(VERSION_NEWEST).await.unwrap(), VERSION_NEWEST);
    leader.propose(tenant()).await.unwrap();
    leader.propose(kept(2)).await.unwrap();
    assert_eq!(request_of(&leader, 2).scope, PinScope::Global);
    leader.propose(kept(1)).await.expect("a retry finds what it made");
    cluster.agree().await;
    for id in 1..=3 {
        assert_eq!(cluster.group(id).version(), VERSION_NEWEST);
        assert_eq!(format(&cluster, id), "2");
    }

    // Whoever comes back reads it out of its log or its snapshot, and a new leader goes by what was agreed.
    cluster.group(3).snapshot().await.unwrap();
    for id in 1..=3 {
        cluster.stop(id).await;
        cluster.start(id).await;
    }
    let leader = cluster.group(cluster.leader().await).clone();
    leader.propose(kept(3)).await.unwrap();
    assert_eq!(request_of(&leader, 3).scope, PinScope::Global);
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_others_speaks_its_own_version() {
    let cluster = Cluster::new(&[1], Settings::default()).await;
    cluster.group(1).init_single(&cluster.addresses[&1].to_string()).await.unwrap();
    cluster.leader().await;
    assert_eq!(cluster.group(1).version(), VERSION_NEWEST);
    cluster.group(1).propose(tenant()).await.unwrap();
    cluster.end().await;
}
