//! What owners of pins ask. Writes answer with the pin as it stands once the log has it; reads go through the
//! leader, which answers for everything acknowledged before, unless the caller settles for one member's view.

use std::time::{Duration, Instant};

use mainstay_proto::convert::{
    hashes_to_wire, pin_from_wire, pin_to_wire_in_short, u128_from_wire, u128_to_wire,
};
use mainstay_proto::v1;
use mainstay_raft::{ProposeError, Steps};
use mainstay_state::{Machine, Outcome, Pin};
use mainstay_trace::{Parent, Span};
use mainstay_types::{
    BlockHasher, Command, Epoch, HashKey, LogIndex, PinId, PinRequest, TenantId, WorkerId,
};
use tonic::Status;

use super::{Service, refuse, unexpected};

/// Cluster time that was not moved for longer says too little about pins; three ticks of a leader.
const STAMP_AGE_MAX: Duration = Duration::from_millis(300);
/// Pins in one answer.
const LIST_MAX: usize = 1000;

/// How much of a pin a write is answered with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    Whole,
    /// Without its blocks.
    Short,
}

impl Service {
    pub(super) async fn put_pin(
        &self,
        request: v1::PutPin,
        form: Form,
        parent: &Parent,
    ) -> Result<v1::PinReply, Status> {
        let span = begun(parent, "put");
        let request = pin_from_wire(&request)?;
        let blocks_max = self.group.read(|m| m.limits().pin_blocks_max) as usize;
        if request.blocks.len() > blocks_max {
            return Err(Status::invalid_argument(format!(
                "a pin of {} blocks is larger than {blocks_max}",
                request.blocks.len()
            )));
        }
        self.check_tokens(&request)?;
        let id = request.id;
        self.change(id, Command::PutPin(request), form, span).await
    }

    /// Kept tokens must be there, and be those of the blocks: others would be computed in vain for ever.
    fn check_tokens(&self, request: &PinRequest) -> Result<(), Status> {
        let Some(kept) = &request.tokens else { return Ok(()) };
        let invalid = |text: String| Err(Status::invalid_argument(text));
        let most = self.group.read(|m| m.limits().pin_token_bytes_max);
        if kept.packed_bytes() > most {
            let bytes = kept.packed_bytes();
            return invalid(format!(
                "recompute: the tokens take {bytes} bytes, at most {most} are kept of one pin; pin it without recompute"
            ));
        }
        let Some(tokens) = kept.tokens() else {
            return invalid("recompute: the tokens are withheld; send them all".into());
        };
        let key = self.group.read(Machine::hash_key);
        let key = key.ok_or_else(|| Status::unavailable("the cluster has no hash key yet"))?;
        if !are_of(key, request, &tokens) {
            return invalid(format!(
                "recompute: these {} tokens are not those of the pin's blocks",
                tokens.len()
            ));
        }
        Ok(())
    }

    /// The tokens of a pin, for the one worker that has been ordered to compute it.
    pub(super) fn tokens_of_order(
        &self,
        request: &v1::PinTokensRequest,
    ) -> Result<v1::PinTokensReply, Status> {
        let id = PinId(u128_from_wire(&request.id, "id")?);
        let (worker, epoch) = (WorkerId(request.worker), Epoch(request.epoch));
        let tokens = self.group.read(|m| {
            let pin = m.pin(id)?;
            let order = pin.keeping.orders.get(&worker)?;
            let kept = pin.request.tokens.as_ref().filter(|_| order.epoch == epoch)?;
            Some((pin.request.namespace, kept.packed()?.to_vec()))
        });
        match tokens {
            Some((namespace, packed)) => Ok(v1::PinTokensReply {
                namespace: u128_to_wire(namespace.0),
                packed: packed.into(),
            }),
            // The leader has applied every order that anybody can have seen.
            None if self.group.leads() => {
                Err(Status::not_found(format!("worker {worker} has no order for pin {id}")))
            }
            None => Err(Status::unavailable("this member knows of no such order; ask another")),
        }
    }

    pub(super) async fn prolong_pin(
        &self,
        request: v1::ExtendPin,
        form: Form,
        parent: &Parent,
    ) -> Result<v1::PinReply, Status> {
        let span = begun(parent, "extend");
        let id = PinId(u128_from_wire(&request.id, "id")?);
        self.change(id, Command::ExtendPin { id, ttl_ms: request.ttl_ms }, form, span).await
    }

    pub(super) async fn give_pin_back(
        &self,
        request: v1::ReleasePin,
        form: Form,
        parent: &Parent,
    ) -> Result<v1::PinReply, Status> {
        let span = begun(parent, "release");
        let id = PinId(u128_from_wire(&request.id, "id")?);
        self.change(id, Command::ReleasePin { id }, form, span).await
    }

    async fn change(
        &self,
        id: PinId,
        command: Command,
        form: Form,
        span: Span,
    ) -> Result<v1::PinReply, Status> {
        let (at, outcome) = self.put_through(command, &span).await?;
        let Outcome::Pin { state, expires_ms, .. } = outcome else {
            return Err(unexpected(&outcome));
        };
        // The entry's own outcome counts, not what a later entry may have made of the pin meanwhile.
        let pin = self.group.read(|m| {
            m.pin(id).map(|pin| {
                let mut wire = match form {
                    Form::Whole => pin_on_wire(m, pin),
                    Form::Short => pin_in_short(m, pin),
                };
                state.name().clone_into(&mut wire.state);
                wire.ttl_left_ms = left_ms(m, pin.is_live(), expires_ms);
                wire
            })
        });
        let pin = pin.ok_or_else(|| Status::not_found(format!("pin {id} has ended meanwhile")))?;
        Ok(v1::PinReply { pin: Some(pin), log_index: at.0, age_ms: Some(0) })
    }

    /// Puts a command through the log, and tells its span where it went and when it got how far.
    async fn put_through(
        &self,
        command: Command,
        span: &Span,
    ) -> Result<(LogIndex, Outcome), Status> {
        let asked = Instant::now();
        let done = self.group.propose_timed(command).await;
        let (at, outcome, steps) = done.map_err(|error| {
            span.fail(match error {
                ProposeError::NotLeader { .. } => "another member leads",
                _ => "not written",
            });
            refuse(error)
        })?;
        if span.is_recorded() {
            span.set("mainstay.member", self.group.node().to_string());
            span.set("mainstay.term", signed(steps.term));
            span.set("mainstay.log_index", signed(at.0));
            let Steps { taken, applying, applied, .. } = steps;
            span.past("queue", asked, taken.into_std());
            span.past("commit", taken.into_std(), applying.into_std());
            span.past("apply", applying.into_std(), applied.into_std());
        }
        if matches!(outcome, Outcome::Refused { .. }) {
            span.fail("refused");
        }
        Ok((at, outcome))
    }

    pub(super) async fn read_pin(
        &self,
        request: v1::GetPinRequest,
    ) -> Result<v1::PinReply, Status> {
        let id = PinId(u128_from_wire(&request.id, "id")?);
        let look = |m: &Machine| (m.applied(), m.pin(id).map(|pin| pin_on_wire(m, pin)));
        let age_ms = self.age_of(request.local);
        let (at, pin) = self.look(request.local, look).await?;
        let pin = pin.ok_or_else(|| Status::not_found(format!("no pin {id}")))?;
        Ok(v1::PinReply { pin: Some(pin), log_index: at.0, age_ms })
    }

    pub(super) async fn read_pins(
        &self,
        request: v1::ListPinsRequest,
    ) -> Result<v1::ListPinsReply, Status> {
        let tenant = match request.tenant.as_str() {
            "" => None,
            text => {
                Some(TenantId::new(text).ok_or(Status::invalid_argument("tenant is malformed"))?)
            }
        };
        let limit = match request.limit as usize {
            0 => LIST_MAX,
            asked => asked.min(LIST_MAX),
        };
        let look = |m: &Machine| {
            let pins = m.pins().filter(|pin| {
                (request.all_states || pin.is_live())
                    && tenant.as_ref().is_none_or(|t| *t == pin.request.tenant)
            });
            (m.applied(), pins.take(limit).map(|pin| pin_on_wire(m, pin)).collect())
        };
        let age_ms = self.age_of(request.local);
        let (LogIndex(log_index), pins) = self.look(request.local, look).await?;
        Ok(v1::ListPinsReply { pins, log_index, age_ms })
    }

    /// Taken before the state is looked at: what comes in between makes it younger only.
    fn age_of(&self, local: bool) -> Option<u64> {
        if local { self.place.age(&self.group).1 } else { Some(0) }
    }

    async fn look<T>(&self, local: bool, look: impl FnOnce(&Machine) -> T) -> Result<T, Status> {
        if local {
            return Ok(self.group.read(look));
        }
        self.group.read_linearizable(|_| ()).await.map_err(refuse)?;
        // A quorum that was out of reach for a while answers the read before it takes another tick: pins that ended
        // meanwhile would be shown as live.
        let stale = self.group.stamp_age().is_none_or(|age| age > STAMP_AGE_MAX);
        if stale && self.group.read(Machine::live_pin_count) > 0 {
            self.group.propose(Command::Tick).await.map_err(refuse)?;
        }
        Ok(self.group.read(look))
    }
}

/// The span of a write that is part of a trace.
fn begun(parent: &Parent, change: &'static str) -> Span {
    let span = Span::serve("write pin", parent);
    span.set("mainstay.change", change);
    span
}

/// As spans have numbers.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Whether the blocks of a pin are those of its tokens.
fn are_of(key: HashKey, request: &PinRequest, tokens: &[u32]) -> bool {
    let blocks = &request.blocks;
    let Some(block_tokens) = tokens.len().checked_div(blocks.len()) else { return false };
    let Ok(block_tokens @ 1..) = u32::try_from(block_tokens) else { return false };
    BlockHasher::hash_prompt(key, request.namespace, block_tokens, tokens) == *blocks
}

fn left_ms(machine: &Machine, live: bool, expires_ms: u64) -> u64 {
    if live { expires_ms.saturating_sub(machine.time().now_ms) } else { 0 }
}

fn pin_on_wire(machine: &Machine, pin: &Pin) -> v1::Pin {
    let mut wire = pin_in_short(machine, pin);
    if let Some(request) = &mut wire.request {
        request.blocks = hashes_to_wire(&pin.request.blocks);
    }
    wire
}

/// The pin without its blocks, for its owner, who has them. Tokens are a prompt; who asks how a pin is does not ask
/// for that.
fn pin_in_short(machine: &Machine, pin: &Pin) -> v1::Pin {
    let holders = pin.holders.iter().map(|(worker, blocks_held)| v1::PinHolder {
        worker: worker.0,
        name: machine.worker_name(*worker),
        blocks_held: *blocks_held,
    });
    let now_ms = machine.time().now_ms;
    let orders = pin.keeping.orders.iter().map(|(worker, order)| v1::PinOrder {
        worker: worker.0,
        name: machine.worker_name(*worker),
        epoch: order.epoch.0,
        age_ms: now_ms.saturating_sub(order.since_ms),
        attempts: order.attempts,
    });
    v1::Pin {
        request: Some(pin_to_wire_in_short(&pin.request)),
        state: pin.state.name().to_owned(),
        ttl_left_ms: left_ms(machine, pin.is_live(), pin.expires_ms),
        holders: holders.collect(),
        created_index: pin.created_index.0,
        reason: pin.reason.clone(),
        orders: orders.collect(),
        order_attempts: pin.keeping.attempts,
        blocks: u32::try_from(pin.request.blocks.len()).unwrap_or(u32::MAX),
        last_block: pin.request.blocks.last().map(|b| u128_to_wire(b.0)).unwrap_or_default(),
    }
}
