//! Conversions between wire messages and [`mainstay_types`]. A malformed message is a typed error, never a
//! default: a hash of the wrong length must not become block 0.

pub mod responses;
pub mod tenants;

use bytes::Bytes;
use mainstay_types::command::{Command, FenceCause, ModelSpec, Proposal};
use mainstay_types::{
    BlockEvent, CutSource, Epoch, EventFrame, EventSequence, EventView, KeptTokens, NamespaceId,
    PinId, PinRequest, PinScope, Region, SequenceHash, SessionId, Stamp, StreamMark, TenantId,
    Tenure, Tier, WorkerId,
};

use crate::v1;

/// A message that does not mean anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A member is absent that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A member has a value that is not allowed.
    #[error("{0} is malformed")]
    Malformed(&'static str),
}

impl From<ConvertError> for tonic::Status {
    fn from(error: ConvertError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

type Result<T> = core::result::Result<T, ConvertError>;

/// 16 bytes, little-endian.
pub fn u128_from_wire(bytes: &[u8], what: &'static str) -> Result<u128> {
    bytes.try_into().map(u128::from_le_bytes).map_err(|_| ConvertError::Malformed(what))
}

/// The reverse of [`u128_from_wire`].
#[must_use]
pub fn u128_to_wire(value: u128) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

/// Unpacks a list of sequence hashes.
pub fn hashes_from_wire(bytes: &[u8], what: &'static str) -> Result<Vec<SequenceHash>> {
    let (chunks, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(ConvertError::Malformed(what));
    }
    Ok(chunks.iter().map(|c| SequenceHash(u128::from_le_bytes(*c))).collect())
}

/// Packs a list of sequence hashes.
#[must_use]
pub fn hashes_to_wire(hashes: &[SequenceHash]) -> Bytes {
    let mut out = Vec::with_capacity(hashes.len() * 16);
    for hash in hashes {
        out.extend_from_slice(&hash.0.to_le_bytes());
    }
    out.into()
}

fn tier(number: u32) -> Result<Tier> {
    Tier::from_number(number).ok_or(ConvertError::Malformed("tier"))
}

/// Reads one block event.
pub fn event_from_wire(event: &v1::BlockEvent) -> Result<BlockEvent> {
    use v1::block_event::Event;
    Ok(match event.event.as_ref().ok_or(ConvertError::Missing("event"))? {
        Event::Stored(s) => BlockEvent::Stored {
            namespace: NamespaceId(u128_from_wire(&s.namespace, "namespace")?),
            parent: SequenceHash(u128_from_wire(&s.parent, "parent")?),
            blocks: hashes_from_wire(&s.blocks, "blocks")?,
            tier: tier(s.tier)?,
        },
        Event::Removed(r) => BlockEvent::Removed {
            blocks: hashes_from_wire(&r.blocks, "blocks")?,
            tier: tier(r.tier)?,
        },
        Event::Truncated(t) => BlockEvent::Truncated {
            tail: SequenceHash(u128_from_wire(&t.tail, "tail")?),
            count: t.count,
            tier: tier(t.tier)?,
        },
        Event::Cleared(_) => BlockEvent::Cleared,
    })
}

/// Looks at a block event without copying its hashes.
fn event_view(event: &v1::BlockEvent) -> Result<EventView<'_>> {
    use v1::block_event::Event;
    Ok(match event.event.as_ref().ok_or(ConvertError::Missing("event"))? {
        Event::Stored(s) => EventView::Stored {
            namespace: NamespaceId(u128_from_wire(&s.namespace, "namespace")?),
            parent: SequenceHash(u128_from_wire(&s.parent, "parent")?),
            blocks: hashes_view(&s.blocks)?,
            tier: tier(s.tier)?,
        },
        Event::Removed(r) => {
            EventView::Removed { blocks: hashes_view(&r.blocks)?, tier: tier(r.tier)? }
        }
        Event::Truncated(t) => EventView::Truncated {
            tail: SequenceHash(u128_from_wire(&t.tail, "tail")?),
            count: t.count,
            tier: tier(t.tier)?,
        },
        Event::Cleared(_) => EventView::Cleared,
    })
}

/// Looks at a frame: whose it is, where it leaves the stream, and its events.
pub fn frame_view(
    frame: &v1::EventFrame,
) -> Result<(WorkerId, Epoch, StreamMark, Vec<EventView<'_>>)> {
    let sequence = EventSequence(frame.sequence);
    let mark = StreamMark { sequence, digest: frame.digest, blocks: frame.blocks };
    Ok((WorkerId(frame.worker), Epoch(frame.epoch), mark, events_view(&frame.events)?))
}

/// The same of a part of a snapshot.
pub fn snapshot_view(
    part: &v1::StreamSnapshot,
) -> Result<(WorkerId, Epoch, StreamMark, Vec<EventView<'_>>)> {
    let mark = mark_from_wire(part.mark.as_ref())?;
    Ok((WorkerId(part.worker), Epoch(part.epoch), mark, events_view(&part.events)?))
}

fn events_view(events: &[v1::BlockEvent]) -> Result<Vec<EventView<'_>>> {
    events.iter().map(event_view).collect()
}

fn hashes_view(bytes: &[u8]) -> Result<&[[u8; 16]]> {
    match bytes.as_chunks::<16>() {
        (hashes, []) => Ok(hashes),
        _ => Err(ConvertError::Malformed("blocks")),
    }
}

/// Reads where a stream stands.
pub fn mark_from_wire(mark: Option<&v1::StreamMark>) -> Result<StreamMark> {
    let mark = mark.ok_or(ConvertError::Missing("mark"))?;
    let sequence = EventSequence(mark.sequence);
    Ok(StreamMark { sequence, digest: mark.digest, blocks: mark.blocks })
}

/// Writes where a stream stands.
#[must_use]
pub fn mark_to_wire(mark: StreamMark) -> v1::StreamMark {
    v1::StreamMark { sequence: mark.sequence.0, digest: mark.digest, blocks: mark.blocks }
}

fn cut_source_from_wire(source: &v1::CutSource) -> Result<CutSource> {
    let mark = mark_from_wire(source.mark.as_ref())?;
    Ok(CutSource { worker: WorkerId(source.worker), epoch: Epoch(source.epoch), mark })
}

fn cut_source_to_wire(source: &CutSource) -> v1::CutSource {
    let mark = Some(mark_to_wire(source.mark));
    v1::CutSource { worker: source.worker.0, epoch: source.epoch.0, mark }
}

/// Writes one block event.
#[must_use]
pub fn event_to_wire(event: &BlockEvent) -> v1::BlockEvent {
    use v1::block_event::Event;
    let event = match event {
        BlockEvent::Stored { namespace, parent, blocks, tier } => Event::Stored(v1::Stored {
            namespace: u128_to_wire(namespace.0),
            parent: u128_to_wire(parent.0),
            blocks: hashes_to_wire(blocks),
            tier: tier.number(),
        }),
        BlockEvent::Removed { blocks, tier } => {
            Event::Removed(v1::Removed { blocks: hashes_to_wire(blocks), tier: tier.number() })
        }
        BlockEvent::Truncated { tail, count, tier } => Event::Truncated(v1::Truncated {
            tail: u128_to_wire(tail.0),
            count: *count,
            tier: tier.number(),
        }),
        BlockEvent::Cleared => Event::Cleared(v1::Cleared {}),
    };
    v1::BlockEvent { event: Some(event) }
}

/// Reads a frame.
pub fn frame_from_wire(frame: &v1::EventFrame) -> Result<EventFrame> {
    Ok(EventFrame {
        worker: WorkerId(frame.worker),
        epoch: Epoch(frame.epoch),
        sequence: EventSequence(frame.sequence),
        events: frame.events.iter().map(event_from_wire).collect::<Result<_>>()?,
    })
}

/// Writes a frame, without the digest that streams add.
#[must_use]
pub fn frame_to_wire(frame: &EventFrame) -> v1::EventFrame {
    v1::EventFrame {
        worker: frame.worker.0,
        epoch: frame.epoch.0,
        sequence: frame.sequence.0,
        events: frame.events.iter().map(event_to_wire).collect(),
        digest: 0,
        blocks: 0,
    }
}

/// Reads a model's specification.
#[must_use]
pub fn model_from_wire(model: &v1::ModelSpec) -> ModelSpec {
    ModelSpec {
        name: model.name.clone(),
        revision: model.revision.clone(),
        block_tokens: model.block_tokens,
        context_tokens_max: model.context_tokens_max,
    }
}

/// Writes a model's specification.
#[must_use]
pub fn model_to_wire(model: &ModelSpec) -> v1::ModelSpec {
    v1::ModelSpec {
        name: model.name.clone(),
        revision: model.revision.clone(),
        block_tokens: model.block_tokens,
        context_tokens_max: model.context_tokens_max,
    }
}

/// Reads a pin request. An empty owner is no owner.
pub fn pin_from_wire(pin: &v1::PutPin) -> Result<PinRequest> {
    let owner = match pin.owner.as_str() {
        "" => None,
        text => Some(SessionId::new(text).ok_or(ConvertError::Malformed("owner"))?),
    };
    Ok(PinRequest {
        id: PinId(u128_from_wire(&pin.id, "id")?),
        tenant: TenantId::new(&pin.tenant).ok_or(ConvertError::Malformed("tenant"))?,
        namespace: NamespaceId(u128_from_wire(&pin.namespace, "namespace")?),
        owner,
        blocks: hashes_from_wire(&pin.blocks, "blocks")?,
        prefix_tokens: pin.prefix_tokens,
        ttl_ms: pin.ttl_ms,
        priority: u8::try_from(pin.priority).map_err(|_| ConvertError::Malformed("priority"))?,
        copies_min: pin.copies_min,
        tokens: pin.tokens.as_deref().map(kept_from_wire).transpose()?,
        scope: PinScope::parse(&pin.scope).ok_or(ConvertError::Malformed("scope"))?,
    })
}

/// Reads kept tokens, or what they amount to.
pub fn kept_from_wire(kept: &v1::KeptTokens) -> Result<KeptTokens> {
    if kept.packed.is_empty() {
        let sum = u128_from_wire(&kept.sum, "sum of tokens")?;
        let (count, bytes) = (kept.count, kept.packed_bytes);
        return Ok(KeptTokens::withheld(&kept.model, &kept.revision, count, bytes, sum));
    }
    KeptTokens::from_packed(&kept.model, &kept.revision, &kept.packed)
        .ok_or(ConvertError::Malformed("tokens"))
}

/// Writes kept tokens, or what they amount to where they are withheld.
#[must_use]
pub fn kept_to_wire(kept: &KeptTokens) -> v1::KeptTokens {
    v1::KeptTokens {
        packed: kept.packed().map(Bytes::copy_from_slice).unwrap_or_default(),
        ..kept_to_wire_withheld(kept)
    }
}

fn kept_to_wire_withheld(kept: &KeptTokens) -> v1::KeptTokens {
    v1::KeptTokens {
        model: kept.model().to_owned(),
        revision: kept.revision().to_owned(),
        packed: Bytes::new(),
        count: kept.count(),
        packed_bytes: kept.packed_bytes(),
        sum: u128_to_wire(kept.sum()),
    }
}

/// Takes the tokens themselves out of a pin request of ours that goes to somebody who keeps none.
pub fn withhold_tokens(pin: &mut v1::PutPin) {
    if let Some(kept) = &mut pin.tokens {
        kept.packed = Bytes::new();
    }
}

/// Writes a pin request.
#[must_use]
pub fn pin_to_wire(pin: &PinRequest) -> v1::PutPin {
    v1::PutPin {
        blocks: hashes_to_wire(&pin.blocks),
        tokens: pin.tokens.as_ref().map(|tokens| Box::new(kept_to_wire(tokens))),
        ..pin_to_wire_in_short(pin)
    }
}

/// Writes a pin request without its blocks, and with its tokens withheld.
#[must_use]
pub fn pin_to_wire_in_short(pin: &PinRequest) -> v1::PutPin {
    v1::PutPin {
        id: u128_to_wire(pin.id.0),
        tenant: pin.tenant.as_str().to_owned(),
        namespace: u128_to_wire(pin.namespace.0),
        owner: pin.owner.as_ref().map(|o| o.as_str().to_owned()).unwrap_or_default(),
        prefix_tokens: pin.prefix_tokens,
        ttl_ms: pin.ttl_ms,
        priority: u32::from(pin.priority),
        copies_min: pin.copies_min,
        scope: pin.scope.to_string(),
        blocks: Bytes::new(),
        tokens: pin.tokens.as_ref().map(|tokens| Box::new(kept_to_wire_withheld(tokens))),
    }
}

/// Reads a proposal, as it stands in the log.
pub fn proposal_from_wire(proposal: &v1::Proposal) -> Result<Proposal> {
    let stamp = proposal.stamp.as_ref().ok_or(ConvertError::Missing("stamp"))?;
    let command = proposal.command.as_ref().ok_or(ConvertError::Missing("command"))?;
    Ok(Proposal {
        stamp: Stamp {
            tenure: Tenure { term: stamp.term, node: stamp.node, boot: stamp.boot },
            mono_ms: stamp.mono_ms,
            wall_ms: stamp.wall_ms,
        },
        command: command_from_wire(command)?,
    })
}

fn command_from_wire(command: &v1::Command) -> Result<Command> {
    use v1::command::Command as Wire;
    Ok(match command.command.as_ref().ok_or(ConvertError::Missing("command"))? {
        Wire::Tick(_) => Command::Tick,
        Wire::Bootstrap(b) => Command::Bootstrap {
            hash_key: b
                .hash_key
                .as_ref()
                .try_into()
                .map_err(|_| ConvertError::Malformed("hash_key"))?,
        },
        Wire::RegisterWorker(r) => Command::RegisterWorker {
            name: r.name.clone(),
            address: r.address.clone(),
            incarnation: r.incarnation,
            model: model_from_wire(r.model.as_ref().ok_or(ConvertError::Missing("model"))?),
            blocks_total: r.blocks_total,
            region: Region::or_local(&r.region).ok_or(ConvertError::Malformed("region"))?,
        },
        Wire::FenceWorker(f) => Command::FenceWorker {
            worker: WorkerId(f.worker),
            epoch: Epoch(f.epoch),
            cause: match f.cause() {
                v1::FenceCause::LeaseExpired => FenceCause::LeaseExpired,
                v1::FenceCause::Left => FenceCause::Left,
                v1::FenceCause::Unspecified => return Err(ConvertError::Malformed("cause")),
            },
        },
        Wire::Blocks(frame) => Command::Blocks(frame_from_wire(frame)?),
        Wire::Cut(cut) => {
            let sources = cut.sources.iter().map(cut_source_from_wire);
            Command::Cut(sources.collect::<Result<_>>()?)
        }
        Wire::PutPin(pin) => Command::PutPin(pin_from_wire(pin)?),
        Wire::ExtendPin(e) => {
            Command::ExtendPin { id: PinId(u128_from_wire(&e.id, "id")?), ttl_ms: e.ttl_ms }
        }
        Wire::ReleasePin(r) => Command::ReleasePin { id: PinId(u128_from_wire(&r.id, "id")?) },
        Wire::ReportPin(r) => Command::ReportPin {
            worker: WorkerId(r.worker),
            epoch: Epoch(r.epoch),
            id: PinId(u128_from_wire(&r.id, "id")?),
            blocks_held: r.blocks_held,
        },
        Wire::OrderPin(o) => order_from_wire(o)?,
        Wire::PutTenant(t) => tenants::put_tenant(t)?,
        Wire::RemoveTenant(t) => Command::RemoveTenant { name: tenants::tenant(&t.name)? },
        Wire::PutKey(k) => tenants::put_key(k)?,
        Wire::RemoveKey(k) => tenants::remove_key(k)?,
        Wire::PutJoinToken(t) => tenants::put_join_token(t)?,
        Wire::UseJoinToken(j) => tenants::use_join_token(j)?,
        Wire::RemoveJoinToken(t) => Command::RemoveJoinToken { id: tenants::key_id(&t.id)? },
        Wire::RaiseVersion(r) => Command::RaiseVersion {
            version: u8::try_from(r.version).map_err(|_| ConvertError::Malformed("version"))?,
        },
        Wire::PutResponse(r) => Command::PutResponse(responses::record_from_wire(r)?),
        Wire::EndResponse(r) => responses::end_from_wire(r)?,
    })
}

/// Writes a proposal for the log.
#[must_use]
pub fn proposal_to_wire(proposal: &Proposal) -> v1::Proposal {
    let stamp = proposal.stamp;
    v1::Proposal {
        stamp: Some(v1::Stamp {
            term: stamp.tenure.term,
            node: stamp.tenure.node,
            boot: stamp.tenure.boot,
            mono_ms: stamp.mono_ms,
            wall_ms: stamp.wall_ms,
        }),
        command: Some(v1::Command { command: Some(command_to_wire(&proposal.command)) }),
    }
}

fn command_to_wire(command: &Command) -> v1::command::Command {
    use v1::command::Command as Wire;
    match command {
        Command::Tick => Wire::Tick(v1::Tick {}),
        Command::Bootstrap { hash_key } => {
            Wire::Bootstrap(v1::Bootstrap { hash_key: Bytes::copy_from_slice(hash_key) })
        }
        Command::RegisterWorker { name, address, incarnation, model, blocks_total, region } => {
            Wire::RegisterWorker(v1::RegisterWorker {
                name: name.clone(),
                address: address.clone(),
                incarnation: *incarnation,
                model: Some(model_to_wire(model)),
                blocks_total: *blocks_total,
                region: region.as_str().to_owned(),
            })
        }
        Command::FenceWorker { worker, epoch, cause } => Wire::FenceWorker(v1::FenceWorker {
            worker: worker.0,
            epoch: epoch.0,
            cause: match cause {
                FenceCause::LeaseExpired => v1::FenceCause::LeaseExpired,
                FenceCause::Left => v1::FenceCause::Left,
            }
            .into(),
        }),
        Command::Blocks(frame) => Wire::Blocks(frame_to_wire(frame)),
        Command::Cut(sources) => {
            Wire::Cut(v1::Cut { sources: sources.iter().map(cut_source_to_wire).collect() })
        }
        Command::PutPin(pin) => Wire::PutPin(pin_to_wire(pin)),
        Command::ExtendPin { id, ttl_ms } => {
            Wire::ExtendPin(v1::ExtendPin { id: u128_to_wire(id.0), ttl_ms: *ttl_ms })
        }
        Command::ReleasePin { id } => Wire::ReleasePin(v1::ReleasePin { id: u128_to_wire(id.0) }),
        Command::ReportPin { worker, epoch, id, blocks_held } => Wire::ReportPin(v1::ReportPin {
            worker: worker.0,
            epoch: epoch.0,
            id: u128_to_wire(id.0),
            blocks_held: *blocks_held,
        }),
        Command::OrderPin { id, worker, epoch } => Wire::OrderPin(v1::OrderPin {
            id: u128_to_wire(id.0),
            worker: worker.0,
            epoch: epoch.0,
        }),
        Command::RaiseVersion { version } => {
            Wire::RaiseVersion(v1::RaiseVersion { version: u32::from(*version) })
        }
        Command::PutTenant { .. }
        | Command::RemoveTenant { .. }
        | Command::PutKey { .. }
        | Command::RemoveKey { .. }
        | Command::PutJoinToken(_)
        | Command::UseJoinToken(_)
        | Command::RemoveJoinToken { .. } => tenants::to_wire(command),
        Command::PutResponse(record) => Wire::PutResponse(responses::record_to_wire(record)),
        Command::EndResponse { tenant, id, cancelled } => Wire::EndResponse(v1::EndResponse {
            tenant: tenant.to_string(),
            id: id.to_string(),
            cancelled: *cancelled,
        }),
    }
}

fn order_from_wire(order: &v1::OrderPin) -> Result<Command> {
    Ok(Command::OrderPin {
        id: PinId(u128_from_wire(&order.id, "id")?),
        worker: WorkerId(order.worker),
        epoch: Epoch(order.epoch),
    })
}
