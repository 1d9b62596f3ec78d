//! How the group stands, and who is in it. A member asks the others for what only they know; whoever does not
//! answer soon is shown as not reachable.

use std::time::{Duration, Instant};

use futures::future::join_all;
use mainstay_proto::convert::{model_to_wire, u128_to_wire};
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_raft::{GroupStatus, MemberError, MemberStatus, Role};
use mainstay_types::{LogIndex, NodeId};
use tonic::Status;

use super::{Service, refuse, refuse_member};
use crate::founding;
use crate::time_text::rfc3339;
use crate::versions::known;

const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a new member may take to catch up before it gets its vote.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(20);
const ADDRESS_BYTES_MAX: usize = 256;

impl Service {
    pub(super) fn say_how_fresh(&self) -> v1::FreshnessReply {
        let (LogIndex(log_index), age_ms) = self.place.age(&self.group);
        v1::FreshnessReply {
            log_index,
            age_ms,
            node: self.group.node().0,
            region: self.place.region.to_string(),
            members: self.group.status().members.into_iter().map(|m| m.address).collect(),
        }
    }

    pub(super) async fn describe(&self, request: v1::StatusRequest) -> v1::StatusReply {
        let status = self.group.status();
        let members = self.describe_members(&status, request.local_only).await;
        let now = Instant::now();
        let leads = status.role == Role::Leader;
        let plain = self.plain_index;
        // Before the lock is taken, which it takes itself.
        let (_, age_ms) = self.place.age(&self.group);
        self.group.read(|m| {
            let held = |worker| match plain {
                true => m.index().worker_block_count(worker),
                false => self.group.streams().look(|s| s.index().worker_block_count(worker)),
            };
            let workers = m.workers().map(|w| v1::WorkerStatus {
                worker: w.id.0,
                name: w.name.clone(),
                address: w.address.clone(),
                region: w.region.to_string(),
                epoch: w.epoch.0,
                state: w.state.name().to_owned(),
                model: Some(model_to_wire(&w.model)),
                blocks: held(w.id),
                blocks_total: w.blocks_total,
                // Leases are the leader's; another member does not know them.
                lease_left_ms: if leads && w.is_live() {
                    self.leases.left_ms(w.id, now)
                } else {
                    0
                },
            });
            let (digest, digest_index) = match request.with_digest {
                true => (u128_to_wire(m.digest()), m.applied().0),
                false => Default::default(),
            };
            v1::StatusReply {
                digest,
                digest_index,
                node: status.node.0,
                leader: status.leader.map_or(0, |id| id.0),
                term: status.term,
                last_log_index: status.last_log.0,
                applied_index: status.applied.0,
                members,
                workers: workers.collect(),
                pins_live: m.live_pin_count() as u64,
                index_blocks: match plain {
                    true => m.index().block_count(),
                    false => self.group.streams().look(|s| s.index().block_count()),
                },
                index_drift: self.group.streams().look(mainstay_state::Streams::drift),
                cluster_time: rfc3339(m.time().now_ms),
                instance: self.group.instance(),
                region: self.place.region.to_string(),
                age_ms,
                version: u32::from(self.group.knows()),
                cluster_version: u32::from(m.version()),
            }
        })
    }

    async fn describe_members(&self, status: &GroupStatus, local_only: bool) -> Vec<v1::Member> {
        let me = |member: &MemberStatus| v1::Member {
            id: member.id.0,
            address: member.address.clone(),
            role: status.role.name().to_owned(),
            last_log_index: status.last_log.0,
            applied_index: status.applied.0,
            lag: 0,
            reachable: true,
            instance: member.instance,
            region: self.place.region.to_string(),
            version: u32::from(self.group.knows()),
        };
        let mut members: Vec<v1::Member> = if local_only {
            status.members.iter().filter(|m| m.id == status.node).map(me).collect()
        } else {
            let others = status.members.iter().map(async |member| {
                if member.id == status.node { me(member) } else { self.ask(member).await }
            });
            join_all(others).await
        };
        self.place.keep_regions(|id| status.members.iter().any(|m| m.id.0 == id));
        // Behind whom: the leader if it is known, else whoever has most.
        let leader = members.iter().find(|m| Some(NodeId(m.id)) == status.leader && m.reachable);
        let head = leader
            .map(|m| m.last_log_index)
            .or_else(|| members.iter().map(|m| m.last_log_index).max())
            .unwrap_or(0);
        for member in members.iter_mut().filter(|m| m.reachable) {
            member.lag = head.saturating_sub(member.applied_index);
        }
        members
    }

    async fn ask(&self, member: &MemberStatus) -> v1::Member {
        let asked = async {
            let channel = (self.connector)(&member.address).ok()?;
            let mut client = ControlClient::new(channel);
            let reply = client
                .status(v1::StatusRequest { local_only: true, ..v1::StatusRequest::default() })
                .await
                .ok()?;
            Some(reply.into_inner())
        };
        let reply = tokio::time::timeout(ASK_TIMEOUT, asked).await.ok().flatten();
        // The address may have been given to somebody else.
        let reply = reply.filter(|r| r.node == member.id.0);
        if let Some(reply) = &reply {
            self.place.note_region(reply.node, &reply.region);
        }
        let own = reply.as_ref().and_then(|r| r.members.iter().find(|m| m.id == member.id.0));
        let role = match (own, &reply, member.voter) {
            (Some(own), ..) => own.role.clone(),
            (None, Some(_), true) => Role::Follower.name().to_owned(),
            (None, _, false) => Role::Learner.name().to_owned(),
            (None, None, true) => Role::Down.name().to_owned(),
        };
        v1::Member {
            id: member.id.0,
            address: member.address.clone(),
            role,
            last_log_index: reply
                .as_ref()
                .map_or(member.matched.map_or(0, |at| at.0), |r| r.last_log_index),
            applied_index: reply.as_ref().map_or(0, |r| r.applied_index),
            lag: 0,
            reachable: reply.is_some(),
            instance: member.instance,
            region: self.place.region_of(member.id.0),
            version: reply.as_ref().map_or(0, |r| u32::from(known(r.version))),
        }
    }

    pub(super) async fn take_in(
        &self,
        request: v1::AddMemberRequest,
    ) -> Result<v1::MembersReply, Status> {
        let id = NodeId(request.id);
        if id.0 == 0 {
            return Err(Status::invalid_argument("a member's id must not be 0"));
        }
        let address = request.address.as_str();
        if !(1..=ADDRESS_BYTES_MAX).contains(&address.len()) || (self.connector)(address).is_err() {
            return Err(Status::invalid_argument("address must be HOST:PORT"));
        }
        let (instance, knows) = match request.instance {
            // Whoever adds it may know only where it is. One that does not answer is looked for later.
            0 => {
                let answer = founding::ask(&self.connector, address).await;
                let answer = answer.filter(|a| a.node == id.0);
                answer.map_or((0, None), |a| (a.instance, Some(known(a.version))))
            }
            told => (told, Some(known(request.version))),
        };
        // Only a leader that serves is sure of the cluster's version, and only the leader takes members in: one that has
        // yet to apply what was agreed before its term might take in a member that can't read the log.
        let version = self.group.read_linearizable(|_| ()).await.map(|()| self.group.version());
        let version = version.map_err(refuse)?;
        if let Some(knows) = knows.filter(|knows| *knows < version) {
            return Err(refuse_member(MemberError::Older { id: id.0, knows, version }));
        }
        self.group.add_learner(id, address, instance).await.map_err(refuse_member)?;
        if !request.learner_only {
            self.group.promote(id, PROMOTE_PATIENCE).await.map_err(refuse_member)?;
        }
        tracing::info!(member = %id, address, "member added");
        Ok(self.members().await)
    }

    pub(super) async fn take_out(
        &self,
        request: v1::RemoveMemberRequest,
    ) -> Result<v1::MembersReply, Status> {
        let id = NodeId(request.id);
        self.group.remove(id).await.map_err(refuse_member)?;
        tracing::info!(member = %id, "member removed");
        Ok(self.members().await)
    }

    pub(super) async fn hand_over(
        &self,
        request: v1::TransferLeaderRequest,
    ) -> Result<v1::MembersReply, Status> {
        let to = NodeId(request.id);
        self.group.transfer_leader(to).await.map_err(refuse_member)?;
        tracing::info!(member = %to, "the lead was handed over");
        Ok(self.members().await)
    }

    async fn members(&self) -> v1::MembersReply {
        let status = self.group.status();
        v1::MembersReply {
            members: self.describe_members(&status, false).await,
            cluster_version: u32::from(self.group.version()),
        }
    }
}
