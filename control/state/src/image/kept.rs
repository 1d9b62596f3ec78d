//! The keeper's part of the image: what a pin's kept tokens amount to, its orders, and the tokens themselves.
//!
//! The tokens come in a section of their own behind the state, so that an image for readers that are no members
//! leaves them out and is the same otherwise; digests never cover them, but the sums that they must have.

use std::collections::BTreeMap;

use mainstay_types::{Epoch, KeptTokens, PinId, WorkerId};

use super::ImageError;
use super::read::read_text;
use super::sink::Sink;
use super::source::Source;
use crate::machine::Machine;
use crate::pins::{Keeping, Order, PIN_ORDERS_MAX};
use crate::workers::MODEL_BYTES_MAX;

const ORDER_BYTES: usize = 32;
const TOKENS_BYTES_MIN: usize = 25;

pub(super) fn write_mark(sink: &mut impl Sink, tokens: Option<&KeptTokens>) {
    sink.flag(tokens.is_some());
    let Some(tokens) = tokens else { return };
    sink.text(tokens.model());
    sink.text(tokens.revision());
    sink.u32(tokens.count());
    sink.u32(tokens.packed_bytes());
    sink.u128(tokens.sum());
}

pub(super) fn read_mark(source: &mut Source<'_>) -> Result<Option<KeptTokens>, ImageError> {
    if !source.flag("tokens of a pin")? {
        return Ok(None);
    }
    let model = read_text(source, "model of tokens", 1, MODEL_BYTES_MAX)?;
    let revision = read_text(source, "revision of tokens", 0, MODEL_BYTES_MAX)?;
    let (count, bytes, sum) = (source.u32()?, source.u32()?, source.u128()?);
    if count == 0 || bytes < count {
        return Err(ImageError::Invalid("count of tokens"));
    }
    Ok(Some(KeptTokens::withheld(&model, &revision, count, bytes, sum)))
}

pub(super) fn write_keeping(sink: &mut impl Sink, keeping: &Keeping) {
    sink.u32(keeping.attempts);
    sink.u64(keeping.ordered_ms);
    sink.u64(keeping.moved_ms);
    sink.count(keeping.orders.len());
    for (worker, order) in &keeping.orders {
        sink.u32(worker.0);
        sink.u64(order.epoch.0);
        sink.u64(order.since_ms);
        sink.u64(order.moved_ms);
        sink.u32(order.attempts);
    }
}

pub(super) fn read_keeping(source: &mut Source<'_>) -> Result<Keeping, ImageError> {
    let attempts = source.u32()?;
    let (ordered_ms, moved_ms) = (source.u64()?, source.u64()?);
    let count = source.count("orders of a pin", PIN_ORDERS_MAX as u64, ORDER_BYTES)?;
    let mut orders = BTreeMap::new();
    for _ in 0..count {
        let worker = WorkerId(source.u32()?);
        let epoch = Epoch(source.u64()?);
        let (since_ms, moved_ms) = (source.u64()?, source.u64()?);
        let order = Order { epoch, since_ms, moved_ms, attempts: source.u32()? };
        let next = orders.last_key_value().is_none_or(|(last, _)| *last < worker);
        if !next || since_ms > moved_ms || order.attempts == 0 {
            return Err(ImageError::Invalid("order of a pin"));
        }
        orders.insert(worker, order);
    }
    Ok(Keeping { orders, attempts, ordered_ms, moved_ms })
}

/// The tokens of all live pins that have them here.
pub(super) fn write_tokens(sink: &mut impl Sink, machine: &Machine) {
    let kept = || {
        let live = machine.pins.live();
        live.filter_map(|pin| Some((pin.request.id, pin.request.tokens.as_ref()?.packed()?)))
    };
    sink.count(kept().count());
    for (id, packed) in kept() {
        sink.u128(id.0);
        sink.count(packed.len());
        sink.put(packed);
    }
}

pub(super) fn read_tokens(
    source: &mut Source<'_>,
    machine: &mut Machine,
) -> Result<(), ImageError> {
    let limits = machine.limits;
    let count = source.count("kept tokens", u64::from(limits.pins_max), TOKENS_BYTES_MIN)?;
    let mut last = None;
    for _ in 0..count {
        let id = PinId(source.u128()?);
        let packed = source.bytes("tokens of a pin", limits.pin_token_bytes_max as usize)?;
        if last >= Some(id) || !machine.pins.restore_tokens(id, packed) {
            return Err(ImageError::Invalid("tokens of a pin"));
        }
        last = Some(id);
    }
    Ok(())
}
