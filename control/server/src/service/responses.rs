//! What gateways ask about stored responses. They are put through the log and read through the leader, so that a
//! response that was acknowledged through one gateway is there for a client that asks by another.

use mainstay_proto::convert::responses::{
    end_from_wire, record_from_wire, record_to_wire, response_id,
};
use mainstay_proto::convert::tenants::tenant;
use mainstay_proto::v1;
use mainstay_state::{Machine, Outcome, Response};
use mainstay_types::{Command, LogIndex, TenantId};
use tonic::Status;

use super::{Service, refuse, unexpected};

/// What was said in one answer at most: all that a tenant may keep, and a little more.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

impl Service {
    pub(super) async fn keep_response(
        &self,
        request: &v1::PutResponse,
    ) -> Result<v1::ResponseReply, Status> {
        let most = self.group.read(|m| m.limits().response_payload_bytes_max);
        // Before it is summed up, and before it costs the log anything.
        let bytes = request.payload.as_ref().map_or(0, |payload| payload.held.len());
        if bytes == 0 || bytes > most as usize {
            return Err(Status::invalid_argument(format!(
                "a response of {bytes} bytes; one may have 1 to {most}"
            )));
        }
        self.change_response(Command::PutResponse(record_from_wire(request)?)).await
    }

    pub(super) async fn finish_response(
        &self,
        request: &v1::EndResponse,
    ) -> Result<v1::ResponseReply, Status> {
        self.change_response(end_from_wire(request)?).await
    }

    async fn change_response(&self, command: Command) -> Result<v1::ResponseReply, Status> {
        let (LogIndex(log_index), outcome) = self.group.propose(command).await.map_err(refuse)?;
        let Outcome::Response { state, .. } = outcome else { return Err(unexpected(&outcome)) };
        let state = u32::from(state.number());
        Ok(v1::ResponseReply { responses: Vec::new(), state, log_index })
    }

    pub(super) async fn read_response(
        &self,
        request: v1::GetResponseRequest,
    ) -> Result<v1::ResponseReply, Status> {
        let tenant: TenantId = tenant(&request.tenant)?;
        let id = response_id(&request.id)?;
        self.group.read_linearizable(|_| ()).await.map_err(refuse)?;
        let (LogIndex(log_index), mut responses) = self.group.read(|m| {
            let most = if request.chain { m.limits().response_chain_max as usize } else { 1 };
            let mut bytes = 0;
            let chain = m.response_chain(&tenant, &id).take(most);
            let fits = chain.take_while(|response| {
                bytes += u64::from(response.record.payload.bytes());
                bytes <= ANSWER_BYTES_MAX
            });
            (m.applied(), fits.map(|response| on_wire(m, response)).collect::<Vec<_>>())
        });
        let Some(asked) = responses.first() else {
            return Err(Status::not_found(format!("no response {id}")));
        };
        let state = asked.record.as_ref().map_or(0, |record| record.state);
        responses.reverse();
        Ok(v1::ResponseReply { responses, state, log_index })
    }
}

fn on_wire(machine: &Machine, response: &Response) -> v1::StoredResponse {
    let now_ms = machine.time().now_ms;
    v1::StoredResponse {
        record: Some(record_to_wire(&response.record)),
        age_ms: now_ms.saturating_sub(response.created_ms),
        ttl_left_ms: response.expires_ms.saturating_sub(now_ms),
    }
}
