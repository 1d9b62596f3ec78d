//! Pins as the gateway makes them: from `cache_control` in requests, and through `/v1/pins`.
//!
//! A pin made by a request never delays or fails it: when the control plane is away the request is served and
//! the missing pin is counted and logged. `/v1/pins` tells its caller instead.

use std::time::Duration;

use mainstay_proto::client::ControlPlane;
use mainstay_proto::convert::pin_to_wire;
use mainstay_proto::v1;
use mainstay_types::{NamespaceId, PinId, PinRequest, SequenceHash, SessionId, TenantId};

use crate::replica::Replica;

/// A leader's election fits in it.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Retention of pinned blocks among others, 0 to 100.
const PIN_PRIORITY: u8 = 90;

/// A prefix to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) tenant: TenantId,
    pub(crate) namespace: NamespaceId,
    pub(crate) owner: Option<SessionId>,
    pub(crate) blocks: Vec<SequenceHash>,
    pub(crate) prefix_tokens: u32,
    pub(crate) ttl_ms: u64,
    pub(crate) copies_min: u32,
}

/// Makes and ends pins.
#[derive(Clone)]
pub(crate) struct Pins {
    control: ControlPlane,
    replica: Replica,
}

impl Pins {
    pub(crate) fn new(control: ControlPlane, replica: Replica) -> Self {
        Self { control, replica }
    }

    /// Makes a pin, or renews the live one that has the same prefix and owner: a client that repeats its
    /// breakpoint wants the lease to start anew, not a second lease.
    pub(crate) async fn make(&self, wish: Wish) -> Result<v1::PinReply, tonic::Status> {
        if let Some(id) = self.same_prefix(&wish) {
            let request = v1::ExtendPin {
                id: mainstay_proto::convert::u128_to_wire(id.0),
                ttl_ms: wish.ttl_ms,
            };
            let extended = self.control.call(CALL_DEADLINE, |mut c| {
                let request = request.clone();
                async move { c.extend_pin(request).await }
            });
            match extended.await {
                // It ended meanwhile: the wish is for a new one.
                Err(status) if gone(&status) => {}
                other => return other,
            }
        }
        let request = pin_to_wire(&PinRequest {
            id: PinId(random_u128()?),
            tenant: wish.tenant,
            namespace: wish.namespace,
            owner: wish.owner,
            blocks: wish.blocks,
            prefix_tokens: wish.prefix_tokens,
            ttl_ms: wish.ttl_ms,
            priority: PIN_PRIORITY,
            copies_min: wish.copies_min.max(1),
        });
        self.control
            .call(CALL_DEADLINE, |mut c| {
                let request = request.clone();
                async move { c.create_pin(request).await }
            })
            .await
    }

    fn same_prefix(&self, wish: &Wish) -> Option<PinId> {
        self.replica.read(|machine| {
            let mut live = machine.pins().filter(|p| p.is_live());
            live.find(|p| {
                p.request.tenant == wish.tenant
                    && p.request.namespace == wish.namespace
                    && p.request.owner == wish.owner
                    && p.request.copies_min >= wish.copies_min
                    && p.request.blocks == wish.blocks
            })
            .map(|p| p.request.id)
        })
    }

    /// Makes a pin beside a request, without anybody waiting for it.
    pub(crate) fn make_in_background(&self, wish: Wish, request_id: String) {
        if wish.blocks.is_empty() {
            return;
        }
        let pins = self.clone();
        tokio::spawn(async move {
            match pins.make(wish).await {
                Ok(_) => metrics::counter!("mainstay_gateway_pins_total", "outcome" => "accepted")
                    .increment(1),
                Err(status) => {
                    metrics::counter!("mainstay_gateway_pins_total", "outcome" => "refused")
                        .increment(1);
                    tracing::warn!(request = %request_id, code = ?status.code(), reason = status.message(), "no pin for this request");
                }
            }
        });
    }

    /// Lets a pin end later.
    pub(crate) async fn extend(
        &self,
        id: PinId,
        ttl_ms: u64,
    ) -> Result<v1::PinReply, tonic::Status> {
        let request = v1::ExtendPin { id: mainstay_proto::convert::u128_to_wire(id.0), ttl_ms };
        self.control
            .call(CALL_DEADLINE, |mut c| {
                let request = request.clone();
                async move { c.extend_pin(request).await }
            })
            .await
    }

    /// Ends a pin.
    pub(crate) async fn release(&self, id: PinId) -> Result<v1::PinReply, tonic::Status> {
        let request = v1::ReleasePin { id: mainstay_proto::convert::u128_to_wire(id.0) };
        self.control
            .call(CALL_DEADLINE, |mut c| {
                let request = request.clone();
                async move { c.release_pin(request).await }
            })
            .await
    }
}

fn gone(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::NotFound | tonic::Code::FailedPrecondition)
}

fn random_u128() -> Result<u128, tonic::Status> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| tonic::Status::internal(format!("no random numbers: {e}")))?;
    Ok(u128::from_le_bytes(bytes))
}
