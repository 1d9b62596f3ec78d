//! What admins ask about tenants and join tokens, and what a node asks that joins by one.
//!
//! Secrets come in hashed, but for the token of a node that joins. A certificate is made before its token is used up
//! and handed out after, so that nothing that can be refused costs a token.

use mainstay_identity::{Authority, Order, Request as CertificateRequest, Role, sha256};
use mainstay_proto::convert::tenants as wire;
use mainstay_proto::v1;
use mainstay_raft::ProposeError;
use mainstay_state::{JoinToken, Machine, Outcome, Tenant};
use mainstay_types::{Command, JoinRequest, JoinRole, LogIndex, SecretHash};
use tonic::Status;

use super::{Service, refuse, unexpected};

/// A token is shorter; what is longer is no token.
const TOKEN_BYTES_MAX: usize = 256;

impl Service {
    pub(super) async fn change_tenants(
        &self,
        command: Command,
    ) -> Result<v1::TenantsReply, Status> {
        let (LogIndex(log_index), outcome) = self.group.propose(command).await.map_err(refuse)?;
        let Outcome::Tenant { changed } = outcome else { return Err(unexpected(&outcome)) };
        let tenants = self.group.read(tenants_of);
        Ok(v1::TenantsReply { tenants, changed, log_index })
    }

    pub(super) async fn read_tenants(&self) -> Result<v1::TenantsReply, Status> {
        self.group.read_linearizable(|_| ()).await.map_err(refuse)?;
        let (LogIndex(log_index), tenants) = self.group.read(|m| (m.applied(), tenants_of(m)));
        Ok(v1::TenantsReply { tenants, changed: false, log_index })
    }

    pub(super) async fn change_join_tokens(
        &self,
        command: Command,
    ) -> Result<v1::JoinTokensReply, Status> {
        if self.identity.is_none() {
            return Err(plain());
        }
        let (_, outcome) = self.group.propose(command).await.map_err(refuse)?;
        let Outcome::JoinToken { changed } = outcome else { return Err(unexpected(&outcome)) };
        self.tell_join_tokens(changed).await
    }

    pub(super) async fn read_join_tokens(&self) -> Result<v1::JoinTokensReply, Status> {
        self.group.read_linearizable(|_| ()).await.map_err(refuse)?;
        self.tell_join_tokens(false).await
    }

    async fn tell_join_tokens(&self, changed: bool) -> Result<v1::JoinTokensReply, Status> {
        let identity = self.identity.as_ref().ok_or_else(plain)?;
        let signs = self.authority().await?.is_some();
        let tokens = self.group.read(|m| {
            let now_ms = m.time().now_ms;
            m.join_tokens().map(|token| token_on_wire(token, now_ms)).collect()
        });
        let authority = identity.fingerprint().to_vec().into();
        Ok(v1::JoinTokensReply { tokens, changed, authority, signs })
    }

    /// The authority, if this member has its key.
    async fn authority(&self) -> Result<Option<Authority>, Status> {
        let identity = self.identity.clone().ok_or_else(plain)?;
        // Files may lie on a slow disk.
        let read = tokio::task::spawn_blocking(move || identity.authority()).await;
        let read = read.map_err(|e| Status::internal(e.to_string()))?;
        read.map_err(|e| Status::failed_precondition(format!("this member can't sign: {e}")))
    }

    pub(super) async fn let_in(&self, request: v1::JoinRequest) -> Result<v1::JoinReply, Status> {
        if self.identity.is_none() {
            return Err(plain());
        }
        let invalid = |text: String| Status::invalid_argument(text);
        if request.token.len() > TOKEN_BYTES_MAX {
            return Err(invalid("that is no join token".into()));
        }
        // A follower may be behind, and strangers must not cost anybody a signature; only the leader needs the key.
        if !self.group.leads() {
            return Err(refuse(ProposeError::NotLeader { leader: self.group.leader_address() }));
        }
        let token = SecretHash(sha256(request.token.as_bytes()));
        self.may_use(&token, &request)?;
        let csr = CertificateRequest::read(&request.request).map_err(|e| invalid(e.to_string()))?;
        let role = wire::join_role(&request.role)?;
        let key = SecretHash(csr.key_hash());
        let join = JoinRequest { token, role, node: request.node.clone(), key };
        let Some(authority) = self.authority().await? else {
            return Err(self.cannot_sign());
        };
        let mut order = Order::new(certified(role), request.node);
        if !request.hosts.is_empty() {
            order.hosts = request.hosts;
        }
        let given = authority.certify(&order, &csr).map_err(|e| invalid(e.to_string()))?;
        let (_, outcome) = self.group.propose(Command::UseJoinToken(join)).await.map_err(refuse)?;
        if outcome != Outcome::Joined {
            return Err(unexpected(&outcome));
        }
        tracing::info!(role = role.name(), node = order.node, "a node joined by a token");
        Ok(v1::JoinReply {
            certificate: given.certificate,
            authority: given.authority,
            admin_hash: given.admin_hash,
        })
    }

    /// Refuses an unknown token, and one that is bound to no name but is shown for a worker that is there already: its
    /// holder would take that worker's place.
    fn may_use(&self, token: &SecretHash, request: &v1::JoinRequest) -> Result<(), Status> {
        if request.hosts.iter().any(|host| host.contains('*')) {
            return Err(Status::invalid_argument("a host of one node has no * in it"));
        }
        self.group.read(|m| {
            let Some(known) = m.join_tokens().find(|t| t.request.hash == *token) else {
                return Err(Status::unauthenticated(
                    "unknown join token; make another with mainstay control token add",
                ));
            };
            let again = known.used.as_ref().is_some_and(|used| used.node == request.node);
            let taken = m.workers().any(|w| w.is_live() && w.name == request.node);
            if known.request.node.is_none() && !again && taken {
                return Err(Status::already_exists(format!(
                    "a worker {} is there already; choose another --name, or make a token for it with --name {}",
                    request.node, request.node
                )));
            }
            Ok(())
        })
    }

    fn cannot_sign(&self) -> Status {
        let id = self.group.node();
        Status::failed_precondition(format!(
            "member {id} has no key of the authority and can't sign; issue its certificate with `mainstay control \
             cert --sign`, or hand the lead to a member that can"
        ))
    }
}

fn plain() -> Status {
    Status::failed_precondition(
        "this cluster speaks plain text, so nobody needs a token to join it; start its members with --identity DIR",
    )
}

const fn certified(role: JoinRole) -> Role {
    match role {
        JoinRole::Control => Role::Control,
        JoinRole::Gateway => Role::Gateway,
        JoinRole::Worker => Role::Worker,
    }
}

fn tenants_of(machine: &Machine) -> Vec<v1::Tenant> {
    machine.tenants().map(|tenant| tenant_on_wire(machine, tenant)).collect()
}

fn tenant_on_wire(machine: &Machine, tenant: &Tenant) -> v1::Tenant {
    let keys = tenant
        .keys
        .iter()
        .map(|(id, key)| v1::TenantKey { key: id.to_string(), created_ms: key.created_ms });
    v1::Tenant {
        name: tenant.name.to_string(),
        quota: Some(wire::quota_to_wire(tenant.quota)),
        created_ms: tenant.created_ms,
        keys: keys.collect(),
        pinned_blocks: machine.tenant_pinned_blocks(&tenant.name),
    }
}

fn token_on_wire(token: &JoinToken, now_ms: u64) -> v1::JoinToken {
    let request = &token.request;
    let state = match (&token.used, token.is_open(now_ms)) {
        (Some(_), _) => "used",
        (None, true) => "open",
        (None, false) => "expired",
    };
    v1::JoinToken {
        id: request.id.to_string(),
        role: request.role.name().to_owned(),
        node: request.node.clone().unwrap_or_default(),
        created_ms: token.created_ms,
        ttl_left_ms: token.expires_ms.saturating_sub(now_ms),
        state: state.to_owned(),
        used_by: token.used.as_ref().map(|used| used.node.clone()).unwrap_or_default(),
    }
}
