//! Stored responses in an image, both halves side by side.
//!
//! Payloads come in a section of their own behind the state, like the tokens that pins keep: an image for readers
//! that are no members leaves them out, and digests cover their sums.

use mainstay_types::{
    ClusterTime, LogIndex, Payload, ResponseId, ResponseRecord, ResponseState, TenantId,
};

use super::ImageError;
use super::sink::Sink;
use super::source::Source;
use crate::limits::Limits;
use crate::machine::Machine;
use crate::responses::{RESPONSE_BYTES, Response, Responses};

/// The least that one element takes, with the shortest texts that are allowed.
const RESPONSE_BYTES_MIN: usize = 80;
const PAYLOAD_BYTES_MIN: usize = 27;

pub(super) fn write(sink: &mut impl Sink, machine: &Machine) {
    let responses = machine.responses.iter();
    sink.count(responses.len());
    for response in responses {
        let record = &response.record;
        sink.text(record.tenant.as_str());
        sink.text(record.id.as_str());
        sink.flag(record.previous.is_some());
        if let Some(previous) = &record.previous {
            sink.text(previous.as_str());
        }
        sink.u64(record.ttl_ms);
        sink.u8(record.state.number());
        sink.u32(record.payload.bytes());
        sink.u128(record.payload.sum());
        for value in [response.created_ms, response.expires_ms] {
            sink.u64(value);
        }
        for index in [response.created_index, response.touched_index] {
            sink.u64(index.0);
        }
    }
}

/// How many there can be: each is charged more than its payload.
fn responses_max(limits: &Limits) -> u64 {
    limits.response_bytes_max / RESPONSE_BYTES
}

pub(super) fn read(
    source: &mut Source<'_>,
    limits: &Limits,
    applied: LogIndex,
    time: ClusterTime,
) -> Result<Responses, ImageError> {
    let count = source.count("responses", responses_max(limits), RESPONSE_BYTES_MIN)?;
    let mut responses: Vec<Response> = Vec::with_capacity(count);
    for _ in 0..count {
        let response = read_response(source, limits)?;
        let indexes =
            response.created_index <= response.touched_index && response.touched_index <= applied;
        if !indexes || response.expires_ms <= time.now_ms {
            return Err(ImageError::Invalid("response"));
        }
        responses.push(response);
    }
    let key = |response: &Response| (response.record.tenant.clone(), response.record.id.clone());
    if !responses.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])) {
        return Err(ImageError::Invalid("order of responses"));
    }
    let restored = Responses::restore(responses);
    let restored = restored.ok_or(ImageError::Invalid("response, it is there twice"))?;
    let (bytes, limit) = (restored.bytes(), limits.response_bytes_max);
    if bytes > limit {
        return Err(ImageError::TooMany { what: "bytes of responses", count: bytes, limit });
    }
    Ok(restored)
}

fn read_id(source: &mut Source<'_>) -> Result<ResponseId, ImageError> {
    let id = ResponseId::new(source.text("id of a response", ResponseId::BYTES_MAX)?);
    id.ok_or(ImageError::Invalid("id of a response"))
}

fn read_tenant(source: &mut Source<'_>) -> Result<TenantId, ImageError> {
    let tenant = TenantId::new(source.text("tenant", TenantId::BYTES_MAX)?);
    tenant.ok_or(ImageError::Invalid("tenant"))
}

fn read_response(source: &mut Source<'_>, limits: &Limits) -> Result<Response, ImageError> {
    let tenant = read_tenant(source)?;
    let id = read_id(source)?;
    let previous = match source.flag("response before")? {
        true => Some(read_id(source)?),
        false => None,
    };
    let ttl_ms = source.u64()?;
    let state = ResponseState::from_number(u32::from(source.u8()?));
    let state = state.ok_or(ImageError::Invalid("state of a response"))?;
    let bytes = source.u32()?;
    let payload = Payload::withheld(bytes, source.u128()?);
    let (created_ms, expires_ms) = (source.u64()?, source.u64()?);
    let (created_index, touched_index) = (LogIndex(source.u64()?), LogIndex(source.u64()?));
    let sized = (1..=limits.response_payload_bytes_max).contains(&bytes);
    if !sized || !(1..=limits.ttl_ms_max).contains(&ttl_ms) {
        return Err(ImageError::Invalid("response"));
    }
    let record = ResponseRecord { tenant, id, previous, ttl_ms, state, payload };
    Ok(Response { record, created_ms, expires_ms, created_index, touched_index })
}

/// The payloads of all responses that have them here.
pub(super) fn write_payloads(sink: &mut impl Sink, machine: &Machine) {
    let held = || {
        let all = machine.responses.iter();
        all.filter_map(|response| Some((&response.record, response.record.payload.held()?)))
    };
    sink.count(held().count());
    for (record, bytes) in held() {
        sink.text(record.tenant.as_str());
        sink.text(record.id.as_str());
        sink.count(bytes.len());
        sink.put(bytes);
    }
}

pub(super) fn read_payloads(
    source: &mut Source<'_>,
    machine: &mut Machine,
) -> Result<(), ImageError> {
    let limits = machine.limits;
    let count = source.count("payloads", responses_max(&limits), PAYLOAD_BYTES_MIN)?;
    let mut last = None;
    for _ in 0..count {
        let key = (read_tenant(source)?, read_id(source)?);
        let bytes = source.bytes("payload", limits.response_payload_bytes_max as usize)?;
        let next = last.as_ref().is_none_or(|last| *last < key);
        if !next || !machine.responses.restore_payload(&key.0, &key.1, bytes) {
            return Err(ImageError::Invalid("payload of a response"));
        }
        last = Some(key);
    }
    Ok(())
}
