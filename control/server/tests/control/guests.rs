//! Callers without a certificate: an operator with the admin token, and nodes that join by a token.

use mainstay_identity::{
    Applicant, Authority, ClusterSecret, Given, Guest, Identity, JOIN_PREFIX, Order, Role,
};
use mainstay_proto::client::connector;
use mainstay_proto::v1::raft_client::RaftClient;
use tonic::Request;

use super::*;

/// One member that signs, and the admin token.
struct Signing {
    dir: TempDir,
    authority: Authority,
    admin: ClusterSecret,
    handle: ControlHandle,
}

fn shown<T>(message: T, secret: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
    request
}

impl Signing {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = Authority::create("home").unwrap();
        let admin = authority.new_admin_token().unwrap();
        let issued = authority.issue(&Order::new(Role::Control, "m1")).unwrap();
        issued.signing(&authority).save(&dir.path().join("m1")).unwrap();
        let mut config = ControlConfig::single(NodeId(1), dir.path().join("data"));
        config.identity = Some(Identity::load(&dir.path().join("m1")).unwrap());
        let handle = start(config).await.unwrap();
        eventually("leading", async || handle.group().leads().then_some(())).await;
        Self { dir, authority, admin, handle }
    }

    fn channel(&self, token: &ClusterSecret) -> Channel {
        let guest = Guest::new(token).unwrap();
        let open = connector(move |to| guest.channel(to, Role::Control));
        open(&self.handle.address().to_string()).unwrap()
    }

    fn guest(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel(&self.admin))
    }

    async fn token(&self, id: &str, role: Role) -> ClusterSecret {
        let token = ClusterSecret::create(JOIN_PREFIX, &self.authority.fingerprint()).unwrap();
        let request = v1::PutJoinToken {
            id: id.into(),
            hash: token.hash().to_vec().into(),
            role: role.name().into(),
            node: String::new(),
            ttl_ms: 60_000,
        };
        let mut c = self.guest();
        let made = c.put_join_token(shown(request, self.admin.secret())).await.unwrap();
        let made = made.into_inner();
        assert!(made.changed && made.signs);
        assert_eq!(made.authority.as_ref(), self.authority.fingerprint());
        token
    }
}

fn joining(token: &ClusterSecret, node: &str, request: &[u8]) -> v1::JoinRequest {
    v1::JoinRequest {
        token: token.secret().into(),
        role: "worker".into(),
        node: node.into(),
        hosts: Vec::new(),
        request: request.to_vec().into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_with_the_admin_token_may_do_what_an_admin_may() {
    let cluster = Signing::start().await;
    let mut c = cluster.guest();
    let status = v1::StatusRequest { local_only: true, ..v1::StatusRequest::default() };
    let error = c.status(status).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(error.message().contains("--admin-token-file"), "{error}");
    for wrong in ["", "x", &cluster.admin.to_string(), &cluster.admin.secret()[1..]] {
        let error = c.status(shown(status, wrong)).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{wrong}");
        assert!(error.message().contains("the admin token is wrong"), "{error}");
    }
    let right = cluster.admin.secret();
    c.status(shown(status, right)).await.unwrap();
    let put = v1::PutTenant { name: "acme".into(), quota: None };
    let reply = c.put_tenant(shown(put.clone(), right)).await.unwrap().into_inner();
    assert!(reply.changed && reply.tenants.len() == 1);
    assert!(!c.put_tenant(shown(put, right)).await.unwrap().into_inner().changed);
    let error = c.register(shown(worker("w", 1), right)).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let mut raft = RaftClient::new(cluster.channel(&cluster.admin));
    let error = raft.vote(shown(v1::RaftMessage::default(), right)).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);

    // A token of another cluster never gets as far as being shown.
    let other = Authority::create("home").unwrap().new_admin_token().unwrap();
    let mut stranger = ControlClient::new(cluster.channel(&other));
    let error = stranger.status(shown(status, right)).await.unwrap_err();
    assert!(error.message().contains("another authority"), "{error}");

    // A tenant's key that is malformed never gets into the log.
    let key = v1::PutKey { tenant: "acme".into(), key: "k".into(), hash: vec![1; 31].into() };
    let error = c.put_key(shown(key, right)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    // A certificate of another role does not help.
    let issued = cluster.authority.issue(&Order::new(Role::Gateway, "g1")).unwrap();
    let gateway = Identity::in_process(&issued).unwrap();
    let open = connector(move |to| gateway.channel(to, Role::Control));
    let mut c = ControlClient::new(open(&cluster.handle.address().to_string()).unwrap());
    let error = c.list_tenants(v1::ListTenantsRequest {}).await.unwrap_err();
    assert!(error.message().contains("ListTenants is for admin"), "{error}");
    cluster.handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_a_certificate_for_its_token_and_once() {
    let cluster = Signing::start().await;
    let token = cluster.token("t1", Role::Worker).await;
    let mut c = ControlClient::new(cluster.channel(&token));
    let applicant = Applicant::create().unwrap();
    // What is wrong with a request costs no token.
    let mut forged = applicant.request().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    for bad in [&b"nonsense"[..], &forged, &vec![0; 60_000]] {
        let error = c.join(joining(&token, "w1", bad)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    // Who has no name yet may not make the member decode much.
    let error = c.join(joining(&token, "w1", &vec![0; 100_000])).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    let mut request = joining(&token, "w1", applicant.request());
    request.hosts = vec!["*.example".into()];
    assert_eq!(c.join(request).await.unwrap_err().code(), Code::InvalidArgument);
    let request = joining(&token, "a b/c", applicant.request());
    assert_eq!(c.join(request).await.unwrap_err().code(), Code::InvalidArgument);

    let request = joining(&token, "w1", applicant.request());
    let reply = c.join(request.clone()).await.unwrap().into_inner();
    assert_eq!(reply.admin_hash, "", "no business of a worker");
    c.join(request).await.expect("its answer may have been lost");
    for node in ["w1", "w2"] {
        let another = Applicant::create().unwrap();
        let error = c.join(joining(&token, node, another.request())).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated);
        assert!(error.message().contains("was used already, by w1"), "{error}");
    }

    let given = Given {
        certificate: reply.certificate,
        authority: reply.authority,
        admin_hash: reply.admin_hash,
    };
    let dir = cluster.dir.path().join("w1");
    assert!(Applicant::create().unwrap().save(&dir, &token, (Role::Worker, "w1"), &given).is_err());
    assert!(applicant.save(&dir, &token, (Role::Gateway, "w1"), &given).is_err());
    let other = ClusterSecret::create(JOIN_PREFIX, &[0; 32]).unwrap();
    assert!(applicant.save(&dir, &other, (Role::Worker, "w1"), &given).is_err());
    assert!(!dir.exists(), "what does not fit is not written");
    applicant.save(&dir, &token, (Role::Worker, "w1"), &given).unwrap();
    let own = Identity::load_as(&dir, Role::Worker).unwrap();
    let open = connector(move |to| own.channel(to, Role::Control));
    let mut w1 = ControlClient::new(open(&cluster.handle.address().to_string()).unwrap());
    register(&mut w1, worker("w1", 1)).await;
    // A token that names nobody does not let its holder take a living worker's place.
    let token = cluster.token("t3", Role::Worker).await;
    let another = Applicant::create().unwrap();
    let error = c.join(joining(&token, "w1", another.request())).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");

    // Strangers cost the log nothing; a member without the key signs nothing.
    let unknown = ClusterSecret::create(JOIN_PREFIX, &cluster.authority.fingerprint()).unwrap();
    let error = c.join(joining(&unknown, "w3", applicant.request())).await.unwrap_err();
    assert!(error.message().contains("unknown join token"), "{error}");
    let token = cluster.token("t2", Role::Worker).await;
    std::fs::remove_file(cluster.dir.path().join("m1/ca-key.pem")).unwrap();
    let error = c.join(joining(&token, "w3", applicant.request())).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("--sign"), "{error}");
    cluster.handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_in_plain_text_has_tenants_and_no_join_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    c.put_tenant(v1::PutTenant { name: "acme".into(), quota: None }).await.unwrap();
    let error = c.list_join_tokens(v1::ListJoinTokensRequest {}).await.unwrap_err();
    assert!(error.message().contains("plain text"), "{error}");
    let error = c.join(v1::JoinRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    handle.shutdown().await;
}
