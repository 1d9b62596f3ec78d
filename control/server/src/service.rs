//! The `Control` service: checks what comes in, puts it through the log, answers with what the log said.
//!
//! Everything is checked for size and form before it costs the log anything. Whether a command is allowed is the
//! machine's to say: its refusals come out as gRPC codes.

mod members;
mod pin_writes;
mod pins;
mod responses;
mod tenants;
mod workers;

use std::sync::Arc;

use mainstay_identity::{Identity, caller};
use mainstay_proto::client::LEADER_METADATA;
use mainstay_proto::convert::tenants as wire;
use mainstay_proto::v1;
use mainstay_proto::v1::control_server::Control;
use mainstay_raft::{Connector, Group, MemberError, ProposeError};
use mainstay_state::Outcome;
use mainstay_trace::Parent;
use mainstay_types::{Command, ErrorCode, WorkerId};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::access;
use crate::freshness::Place;
use crate::leases::Leases;
use crate::watch::{Item, QUEUE, Watcher};
use pins::Form;

/// How many watchers one member serves.
const WATCHERS_MAX: usize = 1024;
/// How many streams of pins one member serves.
const WRITERS_MAX: usize = 1024;

#[derive(Clone)]
pub(crate) struct Service {
    group: Group,
    leases: Arc<Leases>,
    place: Arc<Place>,
    plain_index: bool,
    connector: Connector,
    identity: Option<Identity>,
    closes: watch::Receiver<bool>,
    watchers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(
        group: Group,
        leases: Arc<Leases>,
        place: Arc<Place>,
        plain_index: bool,
        connector: Connector,
        identity: Option<Identity>,
        closes: watch::Receiver<bool>,
    ) -> Self {
        let watchers = Arc::new(Semaphore::new(WATCHERS_MAX));
        let writers = Arc::new(Semaphore::new(WRITERS_MAX));
        Self { group, leases, place, plain_index, connector, identity, closes, watchers, writers }
    }
}

/// A proposal's failure as callers see it; the leader's address travels along where it is known.
fn refuse(error: ProposeError) -> Status {
    let text = error.to_string();
    match error {
        ProposeError::NotLeader { leader } => {
            let mut status = Status::unavailable(text);
            if let Some(address) = leader.and_then(|l| l.parse().ok()) {
                status.metadata_mut().insert(LEADER_METADATA, address);
            }
            status
        }
        ProposeError::TooLarge { .. } => Status::invalid_argument(text),
        ProposeError::Newer { .. } => Status::failed_precondition(text),
        ProposeError::Unavailable(_) | ProposeError::Fatal(_) => Status::unavailable(text),
    }
}

fn refuse_member(error: MemberError) -> Status {
    let text = error.to_string();
    match error {
        MemberError::Propose(error) => refuse(error),
        MemberError::Exists { .. } | MemberError::OtherInstance { .. } => {
            Status::already_exists(text)
        }
        MemberError::Unknown { .. } => Status::not_found(text),
        MemberError::Older { .. } => Status::failed_precondition(text),
        MemberError::Full { .. } => Status::resource_exhausted(text),
        MemberError::LastVoter { .. } | MemberError::Refused(_) => {
            Status::failed_precondition(text)
        }
    }
}

/// The machine's refusal as callers see it.
fn refused(code: ErrorCode, message: String) -> Status {
    Status::new(Code::from_i32(code.grpc()), message)
}

/// An outcome that does not fit its command: a fault of ours, not of the caller.
fn unexpected(outcome: &Outcome) -> Status {
    match outcome {
        Outcome::Refused { code, message } => refused(*code, message.clone()),
        _ => Status::internal("the log answered a different question"),
    }
}

#[tonic::async_trait]
impl Control for Service {
    async fn register(
        &self,
        request: Request<v1::RegisterWorker>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        access::own_name(caller(&request).as_deref(), &request.get_ref().name)?;
        self.register_worker(request.into_inner()).await.map(Response::new)
    }

    async fn publish(
        &self,
        request: Request<v1::PublishRequest>,
    ) -> Result<Response<v1::PublishReply>, Status> {
        let worker = WorkerId(request.get_ref().worker);
        access::own_worker(caller(&request).as_deref(), &self.group, worker)?;
        self.publish_events(request.into_inner()).await.map(Response::new)
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveReply>, Status> {
        let worker = WorkerId(request.get_ref().worker);
        access::own_worker(caller(&request).as_deref(), &self.group, worker)?;
        self.leave_cluster(request.into_inner()).await.map(Response::new)
    }

    async fn create_pin(
        &self,
        request: Request<v1::PutPin>,
    ) -> Result<Response<v1::PinReply>, Status> {
        let parent = Parent::from_metadata(request.metadata());
        self.put_pin(request.into_inner(), Form::Whole, &parent).await.map(Response::new)
    }

    async fn extend_pin(
        &self,
        request: Request<v1::ExtendPin>,
    ) -> Result<Response<v1::PinReply>, Status> {
        let parent = Parent::from_metadata(request.metadata());
        self.prolong_pin(request.into_inner(), Form::Whole, &parent).await.map(Response::new)
    }

    async fn release_pin(
        &self,
        request: Request<v1::ReleasePin>,
    ) -> Result<Response<v1::PinReply>, Status> {
        let parent = Parent::from_metadata(request.metadata());
        self.give_pin_back(request.into_inner(), Form::Whole, &parent).await.map(Response::new)
    }

    type WritePinsStream = ReceiverStream<Result<v1::PinWritten, Status>>;

    async fn write_pins(
        &self,
        request: Request<Streaming<v1::PinWrite>>,
    ) -> Result<Response<Self::WritePinsStream>, Status> {
        let permit = Arc::clone(&self.writers).try_acquire_owned().map_err(|_| {
            // Not a budget of the caller's: another member, or a later time, will do.
            Status::unavailable(format!("this member serves {WRITERS_MAX} streams of pins already"))
        })?;
        let (answers, out) = mpsc::channel(pin_writes::ANSWERS_MAX);
        let serving =
            pin_writes::serve(self.clone(), request.into_inner(), answers, self.closes.clone());
        tokio::spawn(async move {
            let _permit = permit;
            serving.await;
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn get_pin(
        &self,
        request: Request<v1::GetPinRequest>,
    ) -> Result<Response<v1::PinReply>, Status> {
        self.read_pin(request.into_inner()).await.map(Response::new)
    }

    async fn list_pins(
        &self,
        request: Request<v1::ListPinsRequest>,
    ) -> Result<Response<v1::ListPinsReply>, Status> {
        self.read_pins(request.into_inner()).await.map(Response::new)
    }

    async fn pin_tokens(
        &self,
        request: Request<v1::PinTokensRequest>,
    ) -> Result<Response<v1::PinTokensReply>, Status> {
        let worker = WorkerId(request.get_ref().worker);
        access::own_worker(caller(&request).as_deref(), &self.group, worker)?;
        self.tokens_of_order(&request.into_inner()).map(Response::new)
    }

    async fn put_response(
        &self,
        request: Request<v1::PutResponse>,
    ) -> Result<Response<v1::ResponseReply>, Status> {
        self.keep_response(&request.into_inner()).await.map(Response::new)
    }

    async fn get_response(
        &self,
        request: Request<v1::GetResponseRequest>,
    ) -> Result<Response<v1::ResponseReply>, Status> {
        self.read_response(request.into_inner()).await.map(Response::new)
    }

    async fn end_response(
        &self,
        request: Request<v1::EndResponse>,
    ) -> Result<Response<v1::ResponseReply>, Status> {
        self.finish_response(&request.into_inner()).await.map(Response::new)
    }

    type WatchStream = ReceiverStream<Item>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let permit = Arc::clone(&self.watchers).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "this member serves {WATCHERS_MAX} watchers already"
            ))
        })?;
        let (out, events) = mpsc::channel(QUEUE);
        let watcher = Watcher {
            group: self.group.clone(),
            request: request.into_inner(),
            plain_index: self.plain_index,
            out,
            closes: self.closes.clone(),
        };
        tokio::spawn(async move {
            let _permit = permit;
            watcher.run().await;
        });
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn freshness(
        &self,
        _: Request<v1::FreshnessRequest>,
    ) -> Result<Response<v1::FreshnessReply>, Status> {
        Ok(Response::new(self.say_how_fresh()))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        Ok(Response::new(self.describe(request.into_inner()).await))
    }

    async fn add_member(
        &self,
        request: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        self.take_in(request.into_inner()).await.map(Response::new)
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        self.take_out(request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        self.hand_over(request.into_inner()).await.map(Response::new)
    }

    async fn put_tenant(
        &self,
        request: Request<v1::PutTenant>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        let command = wire::put_tenant(request.get_ref())?;
        self.change_tenants(command).await.map(Response::new)
    }

    async fn remove_tenant(
        &self,
        request: Request<v1::RemoveTenant>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        let name = wire::tenant(&request.get_ref().name)?;
        self.change_tenants(Command::RemoveTenant { name }).await.map(Response::new)
    }

    async fn list_tenants(
        &self,
        _request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        self.read_tenants().await.map(Response::new)
    }

    async fn put_key(
        &self,
        request: Request<v1::PutKey>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        let command = wire::put_key(request.get_ref())?;
        self.change_tenants(command).await.map(Response::new)
    }

    async fn remove_key(
        &self,
        request: Request<v1::RemoveKey>,
    ) -> Result<Response<v1::TenantsReply>, Status> {
        let command = wire::remove_key(request.get_ref())?;
        self.change_tenants(command).await.map(Response::new)
    }

    async fn put_join_token(
        &self,
        request: Request<v1::PutJoinToken>,
    ) -> Result<Response<v1::JoinTokensReply>, Status> {
        let command = wire::put_join_token(request.get_ref())?;
        self.change_join_tokens(command).await.map(Response::new)
    }

    async fn list_join_tokens(
        &self,
        _request: Request<v1::ListJoinTokensRequest>,
    ) -> Result<Response<v1::JoinTokensReply>, Status> {
        self.read_join_tokens().await.map(Response::new)
    }

    async fn remove_join_token(
        &self,
        request: Request<v1::RemoveJoinToken>,
    ) -> Result<Response<v1::JoinTokensReply>, Status> {
        let id = wire::key_id(&request.get_ref().id)?;
        self.change_join_tokens(Command::RemoveJoinToken { id }).await.map(Response::new)
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        self.let_in(request.into_inner()).await.map(Response::new)
    }
}
