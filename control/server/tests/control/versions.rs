//! Members of two versions in one group: what is refused and left out meanwhile, and what the last upgrade opens.

use mainstay_state::{VERSION_NEWEST, VERSION_OLDEST};
use mainstay_types::{Command, Region};

use super::cluster::Cluster;
use super::*;

fn tenant() -> v1::PutTenant {
    v1::PutTenant { name: "acme".into(), quota: Some(v1::Quota::default()) }
}

fn global(id: u128) -> v1::PutPin {
    v1::PutPin { scope: "global".into(), ..pin(id, 600_000) }
}

async fn status(cluster: &Cluster) -> v1::StatusReply {
    let status = async |mut c: ControlClient<Channel>| c.status(v1::StatusRequest::default()).await;
    cluster.plane().call(SOON, status).await.unwrap()
}

/// Two members of this version and a third of the one before.
async fn mixed() -> Cluster {
    let mut cluster = Cluster::of_three();
    let list = Origin::Members(cluster.members.clone());
    // The older one first, so that whoever founds the group finds it.
    cluster.start_as(3, list.clone(), VERSION_OLDEST).await;
    for id in [2, 1] {
        cluster.start(id, list.clone()).await;
    }
    cluster
}

/// Why a tenant can't be made, once the leader knows.
async fn refusal(cluster: &Cluster) -> Status {
    eventually("a reason", async || {
        let asked = cluster.plane().call(SOON, async |mut c| c.put_tenant(tenant()).await).await;
        Some(asked.unwrap_err()).filter(|s| s.code() == Code::FailedPrecondition)
    })
    .await
}

/// What a watcher of that version sees of a member, from an image or from the first entry on: up to the last entry.
async fn watch(
    handle: &ControlHandle,
    version: u8,
    from_log_index: u64,
) -> (Machine, Vec<Command>) {
    let version = u32::from(version);
    let request = v1::WatchRequest { version, from_log_index, ..Default::default() };
    let until = *handle.group().watch_applied().borrow();
    let mut stream = client(handle).watch(request).await.unwrap().into_inner();
    let (mut machine, mut commands) = (Machine::new(Limits::standard()), Vec::new());
    let mut seen = 0;
    while seen < until {
        let event = tokio::time::timeout(SOON, stream.message()).await.unwrap().unwrap();
        match event.unwrap().event.unwrap() {
            Event::Image(image) => {
                assert_eq!(image.version, u32::from(image.state[0]));
                machine = Machine::decode(&image.state, Limits::standard()).unwrap();
                seen = image.log_index;
            }
            Event::Entry(entry) => {
                let proposal = proposal_from_wire(&entry.proposal.unwrap()).unwrap();
                machine.apply(LogIndex(entry.log_index), &proposal);
                commands.push(proposal.command);
                seen = entry.log_index;
            }
            Event::Progress(progress) => seen = progress.log_index,
            Event::Index(_) | Event::Items(_) => {}
        }
    }
    (machine, commands)
}

fn is_newer(command: &Command) -> bool {
    let newer = mainstay_state::fit(VERSION_OLDEST, command).is_err();
    newer || matches!(command, Command::RaiseVersion { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_member_can_not_read_waits_until_it_is_upgraded() {
    let mut cluster = mixed().await;
    let plane = cluster.plane();
    let mut far = worker("w", 1);
    far.region = "far".into();
    let me = plane.call(SOON, async |mut c| c.register(far.clone()).await).await.unwrap();
    let made = plane.call(SOON, async |mut c| c.create_pin(global(1)).await).await.unwrap();
    assert_eq!(made.pin.unwrap().request.unwrap().scope, "region:local", "it says what it is");
    let refused = refusal(&cluster).await;
    let (why, cure) = ("member 3 at", "runs version 3, upgrade it");
    assert!(refused.message().contains(why) && refused.message().contains(cure), "{refused}");

    let table = status(&cluster).await;
    let versions: Vec<u32> = table.members.iter().map(|m| m.version).collect();
    assert_eq!((versions, table.cluster_version), (vec![4, 4, 3], 3));
    assert_eq!(table.workers[0].region, Region::LOCAL);
    cluster.agree().await;

    // A member that is down may come back as it was.
    cluster.running.remove(&3).unwrap().shutdown().await;
    eventually("another reason", async || {
        let refused = refusal(&cluster).await;
        refused.message().contains("mainstay control members rm 3").then_some(())
    })
    .await;
    cluster.start_as(3, Origin::Members(cluster.members.clone()), VERSION_OLDEST).await;
    cluster.agree().await;

    cluster.running.remove(&3).unwrap().shutdown().await;
    cluster.start(3, Origin::Members(cluster.members.clone())).await;
    eventually("the new version", async || {
        (status(&cluster).await.cluster_version == u32::from(VERSION_NEWEST)).then_some(())
    })
    .await;
    plane.call(SOON, async |mut c| c.put_tenant(tenant()).await).await.unwrap();
    // A retry, a worker that comes again, and pins of all kinds.
    let again = plane.call(SOON, async |mut c| c.create_pin(global(1)).await).await.unwrap();
    assert_eq!(again.pin.unwrap().request.unwrap().scope, "region:local");
    let made = plane.call(SOON, async |mut c| c.create_pin(global(2)).await).await.unwrap();
    assert_eq!(made.pin.unwrap().request.unwrap().scope, "global");
    far.incarnation = 2;
    let anew = plane.call(SOON, async |mut c| c.register(far.clone()).await).await.unwrap();
    assert_eq!((anew.worker, anew.epoch), (me.worker, me.epoch + 1));
    assert_eq!(status(&cluster).await.workers[0].region, "far");
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_watchers_see_their_version_and_older_members_can_not_join() {
    let mut cluster = Cluster::of_three();
    let list = Origin::Members(cluster.members.clone());
    for id in [3, 2, 1] {
        cluster.start(id, list.clone()).await;
    }
    let plane = cluster.plane();
    plane.call(SOON, async |mut c| c.register(worker("w", 1)).await).await.unwrap();
    plane.call(SOON, async |mut c| c.put_tenant(tenant()).await).await.unwrap();
    plane.call(SOON, async |mut c| c.create_pin(global(1)).await).await.unwrap();
    cluster.agree().await;
    assert_eq!(status(&cluster).await.cluster_version, u32::from(VERSION_NEWEST));
    let handle = &cluster.running[&2];
    for from in [0, 1] {
        let (machine, commands) = watch(handle, VERSION_NEWEST, from).await;
        assert_eq!((machine.version(), machine.tenants().len()), (VERSION_NEWEST, 1));
        assert_eq!(commands.iter().any(is_newer), from == 1);
        // Version 0 is that of programs which knew of none.
        for version in [0, VERSION_OLDEST] {
            let (older, commands) = watch(handle, version, from).await;
            assert_eq!((older.version(), older.tenants().len()), (VERSION_OLDEST, 0));
            assert!(!commands.iter().any(is_newer), "{commands:?}");
            assert!(older.pin(PinId(1)).is_some() && older.workers().count() == 1);
            assert_eq!(older.time().tenure, machine.time().tenure);
        }
    }

    let address = cluster::free_port().to_string();
    let mut request = v1::AddMemberRequest { id: 4, address, instance: 7, ..Default::default() };
    for version in [0, u32::from(VERSION_OLDEST)] {
        request.version = version;
        let asked = plane.call(SOON, async |mut c| c.add_member(request.clone()).await).await;
        let refused = asked.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("member 4 runs version 3"), "{refused}");
    }
    cluster.end().await;
}
