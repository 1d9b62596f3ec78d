//! Pins as the gateway makes them: from `cache_control` in requests, and through `/v1/pins`.
//!
//! A pin made by a request never fails it, and never delays more than its last bytes: when the control plane is
//! away or refuses, the request is served, the pin that is not there is counted and logged, and the answer ends
//! with a word about it. `/v1/pins` tells its caller instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_chat::PinNote;
use mainstay_proto::client::ControlPlane;
use mainstay_proto::convert::pin_to_wire;
use mainstay_proto::v1;
use mainstay_proto::v1::pin_write::Change;
use mainstay_trace::{Kind, Span};
use mainstay_types::{
    KeptTokens, NamespaceId, PinId, PinRequest, PinScope, Region, SequenceHash, SessionId, TenantId,
};

use crate::replica::Replica;

/// A leader's election fits in it.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How much later an answer may end so that it can tell what became of its pins.
const NOTE_WAIT: Duration = Duration::from_millis(50);
/// From here on a life counts as long, as Anthropic's usage tells the two apart.
const LONG_TTL_MS: u64 = 60 * 60 * 1_000;
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
    /// All tokens of the prefix, where it shall be computed again if its holders are lost.
    pub(crate) tokens: Option<KeptTokens>,
    /// Where copies have to be.
    pub(crate) scope: PinScope,
}

/// The scope that a client names: `global`, `region` for the gateway's own, or `region:NAME`; `None` for anything else.
pub(crate) fn scope_of(text: Option<&str>, own: &Region) -> Option<PinScope> {
    match text {
        None | Some("region") => Some(PinScope::Region(own.clone())),
        Some("") => None,
        Some(text) => PinScope::parse(text),
    }
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
    pub(crate) async fn make(
        &self,
        wish: Wish,
        request: &Span,
    ) -> Result<v1::PinReply, tonic::Status> {
        if let Some(id) = self.same_prefix(&wish) {
            let extend = v1::ExtendPin {
                id: mainstay_proto::convert::u128_to_wire(id.0),
                ttl_ms: wish.ttl_ms,
            };
            match self.write(Change::Extend(extend), request).await {
                // It ended meanwhile: the wish is for a new one.
                Err(status) if gone(&status) => {}
                other => return other,
            }
        }
        let put = pin_to_wire(&PinRequest {
            id: PinId(random_u128()?),
            tenant: wish.tenant,
            namespace: wish.namespace,
            owner: wish.owner,
            blocks: wish.blocks,
            prefix_tokens: wish.prefix_tokens,
            ttl_ms: wish.ttl_ms,
            priority: PIN_PRIORITY,
            copies_min: wish.copies_min.max(1),
            tokens: wish.tokens,
            scope: wish.scope,
        });
        self.write(Change::Put(put), request).await
    }

    /// Has the control plane write it, as a part of that request.
    async fn write(&self, change: Change, request: &Span) -> Result<v1::PinReply, tonic::Status> {
        let span = request.child("pin", Kind::Client);
        let trace = span.parent().header().unwrap_or_default();
        let written = self.control.write_pin_traced(CALL_DEADLINE, change, &trace).await;
        if written.is_err() {
            span.fail("no pin");
        }
        written
    }

    fn same_prefix(&self, wish: &Wish) -> Option<PinId> {
        let same = |p: &&mainstay_state::Pin| {
            p.is_live()
                && p.request.tenant == wish.tenant
                && p.request.namespace == wish.namespace
                && p.request.owner == wish.owner
                && p.request.copies_min >= wish.copies_min
                && (p.request.tokens.is_some() || wish.tokens.is_none())
                && p.request.scope == wish.scope
                && p.request.blocks == wish.blocks
        };
        self.replica.read(|machine| {
            let found = match &wish.owner {
                Some(owner) => {
                    machine.pins_of_owner(&wish.tenant, owner, wish.namespace).find(same)
                }
                // Few pins are nobody's: they are made by hand.
                None => machine.pins().find(same),
            };
            found.map(|p| p.request.id)
        })
    }

    /// Makes a pin beside a request. Whoever wants to know what became of it asks the answer at the end.
    pub(crate) fn make_in_background(
        &self,
        wish: Wish,
        request_id: String,
        request: &Span,
    ) -> MadeLater {
        let (pins, request) = (self.clone(), request.clone());
        let (prefix_tokens, ttl_ms) = (wish.prefix_tokens, wish.ttl_ms);
        let is_made = Arc::new(AtomicBool::new(false));
        let made_now = Arc::clone(&is_made);
        let task = tokio::spawn(async move {
            let made = pins.make(wish, &request).await;
            drop(request);
            let (outcome, reason) = match &made {
                Ok(_) => ("accepted", ""),
                Err(status) => (outcome_of(status), status.message()),
            };
            metrics::counter!("mainstay_gateway_pins_total", "outcome" => outcome).increment(1);
            let Err(status) = &made else {
                made_now.store(true, Ordering::Relaxed);
                return None;
            };
            tracing::warn!(request = %request_id, code = ?status.code(), reason, "no pin for this request");
            Some(PinNote { outcome, reason: reason.to_owned(), prefix_tokens, ttl_ms })
        });
        MadeLater { task, is_made, prefix_tokens, ttl_ms }
    }

    /// Lets a pin end later.
    pub(crate) async fn extend(
        &self,
        id: PinId,
        ttl_ms: u64,
        request: &Span,
    ) -> Result<v1::PinReply, tonic::Status> {
        let extend = v1::ExtendPin { id: mainstay_proto::convert::u128_to_wire(id.0), ttl_ms };
        self.write(Change::Extend(extend), request).await
    }

    /// Ends a pin.
    pub(crate) async fn release(
        &self,
        id: PinId,
        request: &Span,
    ) -> Result<v1::PinReply, tonic::Status> {
        let release = v1::ReleasePin { id: mainstay_proto::convert::u128_to_wire(id.0) };
        self.write(Change::Release(release), request).await
    }
}

/// A pin on its way.
pub(crate) struct MadeLater {
    task: tokio::task::JoinHandle<Option<PinNote>>,
    /// Whether the pin is there by now.
    is_made: Arc<AtomicBool>,
    prefix_tokens: u32,
    ttl_ms: u64,
}

/// The prefixes that a request has got pinned: its longest one, and the longest that is kept for long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pinned {
    tokens: u64,
    long_tokens: u64,
}

impl Pinned {
    fn add(&mut self, prefix_tokens: u32, ttl_ms: u64) {
        let tokens = u64::from(prefix_tokens);
        self.tokens = self.tokens.max(tokens);
        if ttl_ms >= LONG_TTL_MS {
            self.long_tokens = self.long_tokens.max(tokens);
        }
    }

    /// Prompt tokens that were written to the cache to be kept: those pinned beyond what was found there. The second
    /// number counts those that are kept for long.
    pub(crate) fn created(self, cached_tokens: u64) -> (u64, u64) {
        (self.tokens.saturating_sub(cached_tokens), self.long_tokens.saturating_sub(cached_tokens))
    }
}

/// What is pinned by now, without waiting.
pub(crate) fn pinned_so_far(pins: &[MadeLater]) -> Pinned {
    let mut pinned = Pinned::default();
    for pin in pins.iter().filter(|pin| pin.is_made.load(Ordering::Relaxed)) {
        pinned.add(pin.prefix_tokens, pin.ttl_ms);
    }
    pinned
}

/// What there is to tell of a request's pins now that its answer ends, and what is pinned. Pins that are still on
/// their way are given a moment, and go on after it.
pub(crate) async fn settled(pins: Vec<MadeLater>) -> (Vec<PinNote>, Pinned) {
    let until = tokio::time::Instant::now() + NOTE_WAIT;
    let (mut notes, mut pinned) = (Vec::new(), Pinned::default());
    for MadeLater { task, prefix_tokens, ttl_ms, .. } in pins {
        match tokio::time::timeout_at(until, task).await {
            Ok(Ok(None)) => pinned.add(prefix_tokens, ttl_ms),
            Ok(Ok(Some(note))) => notes.push(note),
            // The gateway is going down.
            Ok(Err(_)) => {}
            Err(_) => {
                let reason = "the control plane has not answered yet".to_owned();
                notes.push(PinNote { outcome: "deferred", reason, prefix_tokens, ttl_ms });
            }
        }
    }
    (notes, pinned)
}

/// The word for a pin that was not made: `rejected` says that asking again in the same way is no use.
fn outcome_of(status: &tonic::Status) -> &'static str {
    use tonic::Code;
    match status.code() {
        Code::ResourceExhausted
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::AlreadyExists => "rejected",
        _ => "missing",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_the_gateways_region_unless_it_says_otherwise() {
        let own = Region::new("eu").expect("a name");
        for (text, scope) in [
            (None, Some("region:eu")),
            (Some("region"), Some("region:eu")),
            (Some("region:us"), Some("region:us")),
            (Some("global"), Some("global")),
            (Some(""), None),
            (Some("everywhere"), None),
            (Some("region:"), None),
        ] {
            let got = scope_of(text, &own).map(|s| s.to_string());
            assert_eq!(got.as_deref(), scope, "{text:?}");
        }
    }

    fn later(note: Option<PinNote>, after: Duration) -> MadeLater {
        let is_made = Arc::new(AtomicBool::new(false));
        let made_now = Arc::clone(&is_made);
        let task = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            made_now.store(note.is_none(), Ordering::Relaxed);
            note
        });
        MadeLater { task, is_made, prefix_tokens: 16, ttl_ms: 1_000 }
    }

    fn rejection() -> PinNote {
        PinNote {
            outcome: outcome_of(&tonic::Status::resource_exhausted("eight")),
            reason: "eight".to_owned(),
            prefix_tokens: 16,
            ttl_ms: 1_000,
        }
    }

    #[tokio::test]
    async fn an_answer_tells_what_was_not_pinned_and_waits_for_nothing_long() {
        let rejected = rejection();
        assert_eq!(rejected.outcome, "rejected");
        assert_eq!(outcome_of(&tonic::Status::unavailable("gone")), "missing");
        let begun = std::time::Instant::now();
        let (told, _) = settled(vec![
            later(None, Duration::ZERO),
            later(Some(rejected.clone()), Duration::from_millis(1)),
            later(None, Duration::from_secs(60)),
        ])
        .await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(told[0], rejected);
        assert_eq!(told.iter().map(|n| n.outcome).collect::<Vec<_>>(), ["rejected", "deferred"]);
        assert_eq!(settled(Vec::new()).await, (Vec::new(), Pinned::default()));
    }

    #[tokio::test]
    async fn only_what_was_pinned_counts_as_written() {
        let pin = |note, prefix_tokens, ttl_ms, after| {
            let later = later(note, after);
            MadeLater { prefix_tokens, ttl_ms, ..later }
        };
        let at_once = Duration::ZERO;
        // The deepest was refused and the next is on its way: only the two that are there count.
        let wishes = vec![
            pin(Some(rejection()), 960, LONG_TTL_MS, at_once),
            pin(None, 640, LONG_TTL_MS, Duration::from_secs(60)),
            pin(None, 480, 300_000, at_once),
            pin(None, 320, LONG_TTL_MS, at_once),
        ];
        assert_eq!(pinned_so_far(&wishes), Pinned::default());
        let (notes, pinned) = settled(wishes).await;
        assert_eq!(notes.len(), 2);
        assert_eq!(pinned, Pinned { tokens: 480, long_tokens: 320 });
        assert_eq!(pinned.created(0), (480, 320));
        assert_eq!(pinned.created(400), (80, 0), "what was found there is not written");
        assert_eq!(pinned.created(1_000), (0, 0));
    }
}
