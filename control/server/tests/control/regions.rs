//! Members in several regions: who is where, how old their answers are, and a learner that loses the others.

use mainstay_types::Region;

use super::cluster::free_port;
use super::*;

fn region(name: &str) -> Region {
    Region::new(name).unwrap()
}

async fn start_in(dir: &TempDir, id: u64, at: &str, name: &str, origin: Origin) -> ControlHandle {
    let mut config = ControlConfig::single(NodeId(id), dir.path().join(id.to_string()));
    config.listen = at.parse().unwrap();
    config.region = region(name);
    config.learner = matches!(origin, Origin::Join(_));
    config.origin = origin;
    start(config).await.unwrap()
}

async fn age(c: &mut ControlClient<Channel>) -> Option<u64> {
    c.freshness(v1::FreshnessRequest {}).await.unwrap().into_inner().age_ms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_reads_on_without_the_others_and_says_how_stale() {
    let dir = tempfile::tempdir().unwrap();
    let addresses: Vec<String> = (0..4).map(|_| free_port().to_string()).collect();
    let list: Vec<(NodeId, String)> = (1..).map(NodeId).zip(addresses[..2].to_vec()).collect();
    let names = ["a", "b", "far"];
    let mut voters = Vec::new();
    for n in 0..2 {
        let origin = Origin::Members(list.clone());
        voters.push(start_in(&dir, n as u64 + 1, &addresses[n], names[n], origin).await);
    }
    let origin = Origin::Join(addresses[..1].to_vec());
    let learner = start_in(&dir, 3, &addresses[2], names[2], origin).await;
    let mut far = client(&learner);
    // It joins, and knows where everybody is.
    eventually("a full table of members", async || {
        let status = far.clone().status(v1::StatusRequest::default()).await.ok()?.into_inner();
        let told: Vec<_> =
            status.members.iter().map(|m| (m.region.clone(), m.role.clone())).collect();
        let roles: Vec<&str> = told.iter().map(|(_, role)| role.as_str()).collect();
        let places: Vec<&str> = told.iter().map(|(place, _)| place.as_str()).collect();
        (places == names && roles.contains(&"leader") && roles[2] == "learner").then_some(())
    })
    .await;
    let mut leader =
        eventually("leading", async || voters.iter().find(|v| v.group().leads()).map(client)).await;
    eventually("a pin", async || leader.create_pin(pin(1, 600_000)).await.ok()).await;
    // All are fresh, and everybody shows the pin by itself.
    for handle in voters.iter().chain([&learner]) {
        let mut c = client(handle);
        eventually("freshness", async || age(&mut c).await.filter(|ms| *ms < 1_000)).await;
        let mine = v1::GetPinRequest { id: u128_to_wire(1), local: true };
        let shown = eventually("the pin", async || c.get_pin(mine.clone()).await.ok()).await;
        let shown = shown.into_inner();
        assert!(shown.age_ms.is_some() && shown.log_index > 0, "{shown:?}");
    }
    let strict = v1::GetPinRequest { id: u128_to_wire(1), local: false };
    assert_eq!(leader.get_pin(strict.clone()).await.unwrap().into_inner().age_ms, Some(0));
    let fresh = far.freshness(v1::FreshnessRequest {}).await.unwrap().into_inner();
    assert_eq!((fresh.region.as_str(), fresh.node, fresh.members.len()), ("far", 3, 3));
    // The others are lost.
    for voter in voters {
        voter.shutdown().await;
    }
    let lost = Instant::now();
    let before = age(&mut far).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let after = age(&mut far).await.unwrap();
    let grown = after.saturating_sub(before);
    assert!(grown >= 1_000, "age {before} and then {after} ms, lost {:?} ago", lost.elapsed());
    let mine = v1::GetPinRequest { id: u128_to_wire(1), local: true };
    let shown = far.get_pin(mine).await.unwrap().into_inner();
    assert!(shown.age_ms.unwrap() >= after, "{shown:?}");
    let status = far.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.age_ms.unwrap() >= after && status.region == "far");
    // Regions are remembered, also of members that can't be asked.
    let places: Vec<&str> = status.members.iter().map(|m| m.region.as_str()).collect();
    assert_eq!(places, names);
    for refused in [far.create_pin(pin(2, 60_000)).await, far.get_pin(strict).await] {
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    }
    learner.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_and_scopes_are_checked_at_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    assert_eq!(age(&mut c).await.map(|ms| ms < 1_000), Some(true));
    for odd in ["a b", &"x".repeat(65), "é"] {
        let refused = c.register(v1::RegisterWorker { region: odd.into(), ..worker("w", 1) }).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "{odd}");
    }
    for odd in ["everywhere", "region:", "region:a b"] {
        let refused = c.create_pin(v1::PutPin { scope: odd.into(), ..pin(1, 60_000) }).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "{odd}");
    }
    let near =
        register(&mut c, v1::RegisterWorker { region: "eu".into(), ..worker("w1", 1) }).await;
    let far = register(&mut c, v1::RegisterWorker { region: "us".into(), ..worker("w2", 1) }).await;
    let status = c.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    let places: Vec<&str> = status.workers.iter().map(|w| w.region.as_str()).collect();
    assert_eq!(places, ["eu", "us"]);
    c.create_pin(v1::PutPin { scope: "global".into(), ..pin(1, 60_000) }).await.unwrap();
    for (held_by, state) in [(&near, "partial"), (&far, "active")] {
        let report = v1::PinReport { id: u128_to_wire(1), blocks_held: 2 };
        let request = v1::PublishRequest { pins: vec![report], ..publish(held_by, vec![]) };
        c.publish(request).await.unwrap();
        let asked = v1::GetPinRequest { id: u128_to_wire(1), local: false };
        let shown = c.get_pin(asked).await.unwrap().into_inner().pin.unwrap();
        assert_eq!(shown.state, state);
        assert_eq!(shown.request.unwrap().scope, "global");
    }
    handle.shutdown().await;
}

#[tokio::test]
async fn a_learner_needs_a_group_to_join() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ControlConfig::single(NodeId(1), dir.path());
    config.learner = true;
    assert!(start(config).await.is_err());
}
