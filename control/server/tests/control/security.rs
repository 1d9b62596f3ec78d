//! A group over TLS: it works as in plain text, and whoever has no business there is told why.

use std::path::Path;

use mainstay_identity::{Authority, Identity, Order, Role};
use mainstay_proto::client::{ControlPlane, connector};
use mainstay_proto::v1::raft_client::RaftClient;

use super::cluster::free_port;
use super::*;

/// Three members with certificates, and the authority that can make more.
struct Secured {
    dir: TempDir,
    authority: Authority,
    addresses: Vec<String>,
    running: Vec<ControlHandle>,
}

impl Secured {
    async fn three() -> Self {
        let authority = Authority::create("home").unwrap();
        let addresses: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
        let mut this = Self {
            dir: tempfile::tempdir().unwrap(),
            authority,
            addresses: addresses.clone(),
            running: Vec::new(),
        };
        let list: Vec<_> = (1..).map(NodeId).zip(addresses.clone()).collect();
        for (id, address) in &list {
            let path = this.dir.path().join(format!("data-{id}"));
            let mut config = ControlConfig::single(*id, path);
            config.listen = address.parse().unwrap();
            config.origin = Origin::Members(list.clone());
            config.identity = Some(this.identity(Role::Control, &format!("member-{}", id.0)));
            this.running.push(start(config).await.unwrap());
        }
        this
    }

    fn folder(&self, role: Role, node: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("{role}-{node}"))
    }

    fn issue(&self, order: &Order) -> std::path::PathBuf {
        let dir = self.folder(order.role, &order.node);
        self.authority.issue(order).unwrap().save(&dir).unwrap();
        dir
    }

    fn identity(&self, role: Role, node: &str) -> Identity {
        Identity::load(&self.issue(&Order::new(role, node))).unwrap()
    }

    fn plane(&self, identity: Identity) -> ControlPlane {
        let secured = connector(move |to| identity.channel(to, Role::Control));
        ControlPlane::with_connector(&self.addresses, secured).unwrap()
    }

    fn as_role(&self, role: Role, node: &str) -> ControlPlane {
        self.plane(self.identity(role, node))
    }

    async fn end(self) {
        for handle in self.running {
            handle.shutdown().await;
        }
    }
}

async fn refused<T: std::fmt::Debug>(
    plane: &ControlPlane,
    call: impl AsyncFn(ControlClient<Channel>) -> Result<tonic::Response<T>, Status>,
) -> Status {
    // One member says it; nothing needs a leader for that.
    call(plane.current()).await.unwrap_err()
}

fn stranger(dir: &Path) -> Identity {
    let authority = Authority::create("home").unwrap();
    authority.issue(&Order::new(Role::Admin, "eve")).unwrap().save(dir).unwrap();
    Identity::load(dir).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_over_tls_serves_each_role_what_it_may_have() {
    let cluster = Secured::three().await;
    let (gateway, w1) = (cluster.as_role(Role::Gateway, "g1"), cluster.as_role(Role::Worker, "w1"));
    let me = w1.call(SOON, async |mut c| c.register(worker("w1", 1)).await).await.unwrap();
    gateway.call(SOON, async |mut c| c.create_pin(pin(1, 600_000)).await).await.unwrap();
    w1.call(SOON, async |mut c| c.publish(publish(&me, vec![])).await).await.unwrap();

    let table = gateway.call(SOON, async |mut c| c.status(v1::StatusRequest::default()).await);
    let table = table.await.unwrap();
    assert_eq!((table.pins_live, table.members.len()), (1, 3));
    eventually("agreement", async || {
        let states: Vec<_> = cluster.running.iter().map(state_of).collect();
        (states[0] == states[1] && states[1] == states[2]).then_some(())
    })
    .await;

    // Another's name, another's life, another's work.
    let text = |status: Status| {
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        status.message().to_owned()
    };
    let other = refused(&w1, async |mut c| c.register(worker("w2", 1)).await).await;
    assert!(text(other).contains("--name w1"));
    let w2 = cluster.as_role(Role::Worker, "w2");
    eventually("one member knows w1", async || {
        let status = refused(&w2, async |mut c| c.publish(publish(&me, vec![])).await).await;
        w2.rotate();
        (status.code() == Code::PermissionDenied).then_some(())
    })
    .await;
    let pins = refused(&w1, async |mut c| c.create_pin(pin(2, 1_000)).await).await;
    assert!(text(pins).contains("CreatePin is for gateway or admin"));
    let register = refused(&gateway, async |mut c| c.register(worker("g1", 1)).await).await;
    assert!(text(register).contains("Register is for worker"));
    for plane in [&gateway, &w1] {
        let taken = v1::RemoveMemberRequest { id: 2 };
        let members = refused(plane, async |mut c| c.remove_member(taken).await).await;
        assert!(text(members).contains("control or admin"));
    }
    let unknown = v1::RemoveMemberRequest { id: 9 };
    let admin = cluster.as_role(Role::Admin, "ada");
    let status = admin.call(SOON, async |mut c| c.remove_member(unknown).await).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "an admin gets through: {status:?}");

    let own = cluster.identity(Role::Worker, "w1");
    let secured = connector(move |to| own.channel(to, Role::Control));
    let mut raft = RaftClient::new(secured(&cluster.addresses[0]).unwrap());
    let vote = raft.vote(v1::RaftMessage::default()).await.unwrap_err();
    assert!(text(vote).contains("Vote is for control, and the caller w1 is a worker"));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_new_certificates_need_no_restart() {
    let cluster = Secured::three().await;
    let status = async |plane: &ControlPlane| {
        let asked = plane
            .current()
            .status(v1::StatusRequest { local_only: true, ..v1::StatusRequest::default() })
            .await;
        asked.map(|reply| reply.into_inner())
    };
    let plain = ControlPlane::new(&cluster.addresses).unwrap();
    // The answer may lose a race with the end of its connection, but nobody gets in.
    eventually("a refusal in words", async || {
        let error = status(&plain).await.unwrap_err();
        (error.code() == Code::PermissionDenied).then_some(())
    })
    .await;
    let eve = cluster.plane(stranger(&cluster.dir.path().join("eve")));
    let error = status(&eve).await.unwrap_err();
    assert!(error.message().contains("another authority"), "{error:?}");

    // One that ends while its holder runs, and one for another role on the other side.
    let from = std::time::SystemTime::now() - Duration::from_secs(60);
    let short = Order { from, lifetime: Duration::from_secs(66), ..Order::new(Role::Worker, "w1") };
    let folder = cluster.issue(&short);
    let identity = Identity::load(&folder).unwrap();
    assert!(
        status(&cluster.plane(identity.clone())).await.unwrap_err().code()
            == Code::PermissionDenied
    );
    tokio::time::sleep(identity.remaining() + Duration::from_millis(1_100)).await;
    let error = status(&cluster.plane(identity.clone())).await.unwrap_err();
    assert!(error.message().contains("has expired; issue another"), "{error:?}");
    cluster.issue(&Order::new(Role::Worker, "w1"));
    assert!(identity.reload().unwrap());
    let plane = cluster.plane(identity);
    plane.call(SOON, async |mut c| c.register(worker("w1", 7)).await).await.unwrap();
    cluster.end().await;
}

#[tokio::test]
async fn a_member_that_others_can_reach_needs_an_identity_or_to_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ControlConfig::single(NodeId(1), dir.path());
    config.listen = ([0, 0, 0, 0], 0).into();
    config.advertise = Some("127.0.0.1:1".into());
    let text = start(config.clone()).await.err().unwrap().to_string();
    assert!(text.contains("--identity DIR") && text.contains("--insecure"), "{text}");
    config.insecure = true;
    start(config).await.unwrap().shutdown().await;
}
