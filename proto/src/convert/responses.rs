//! Stored responses between the wire and [`mainstay_types`]. Whoever keeps none of what was said gets the same record
//! with the payload withheld.

use bytes::Bytes;
use mainstay_types::{Command, Payload, ResponseId, ResponseRecord, ResponseState, TenantId};

use super::{ConvertError, Result, u128_from_wire, u128_to_wire};
use crate::v1;

/// Reads a response's id.
pub fn response_id(text: &str) -> Result<ResponseId> {
    ResponseId::new(text).ok_or(ConvertError::Malformed("id of a response"))
}

fn tenant(text: &str) -> Result<TenantId> {
    TenantId::new(text).ok_or(ConvertError::Malformed("tenant"))
}

/// Reads a payload, or what it amounts to. Nothing at all is an empty payload.
pub fn payload_from_wire(payload: &v1::Payload) -> Result<Payload> {
    if payload.held.is_empty() && !payload.sum.is_empty() {
        let sum = u128_from_wire(&payload.sum, "sum of a payload")?;
        return Ok(Payload::withheld(payload.bytes, sum));
    }
    Payload::new(&payload.held).ok_or(ConvertError::Malformed("payload"))
}

/// Writes a payload, or what it amounts to where it is withheld.
#[must_use]
pub fn payload_to_wire(payload: &Payload) -> v1::Payload {
    v1::Payload {
        held: payload.held().map(Bytes::copy_from_slice).unwrap_or_default(),
        bytes: payload.bytes(),
        sum: u128_to_wire(payload.sum()),
    }
}

/// Takes what was said out of a record of ours that goes to somebody who keeps none.
pub fn withhold_payload(record: &mut v1::PutResponse) {
    if let Some(payload) = &mut record.payload {
        payload.held = Bytes::new();
    }
}

/// Reads a record.
pub fn record_from_wire(wire: &v1::PutResponse) -> Result<ResponseRecord> {
    let previous = match wire.previous.as_str() {
        "" => None,
        text => Some(response_id(text)?),
    };
    let payload = wire.payload.as_ref().ok_or(ConvertError::Missing("payload"))?;
    Ok(ResponseRecord {
        tenant: tenant(&wire.tenant)?,
        id: response_id(&wire.id)?,
        previous,
        ttl_ms: wire.ttl_ms,
        state: ResponseState::from_number(wire.state).ok_or(ConvertError::Malformed("state"))?,
        payload: payload_from_wire(payload)?,
    })
}

/// Writes a record.
#[must_use]
pub fn record_to_wire(record: &ResponseRecord) -> v1::PutResponse {
    v1::PutResponse {
        tenant: record.tenant.to_string(),
        id: record.id.to_string(),
        previous: record.previous.as_ref().map(ToString::to_string).unwrap_or_default(),
        ttl_ms: record.ttl_ms,
        state: u32::from(record.state.number()),
        payload: Some(payload_to_wire(&record.payload)),
    }
}

/// Reads the command that ends a response.
pub fn end_from_wire(wire: &v1::EndResponse) -> Result<Command> {
    let (tenant, id) = (tenant(&wire.tenant)?, response_id(&wire.id)?);
    Ok(Command::EndResponse { tenant, id, cancelled: wire.cancelled })
}

#[cfg(test)]
mod tests {
    use mainstay_types::{Proposal, Stamp};

    use super::*;
    use crate::convert::{proposal_from_wire, proposal_to_wire};

    fn record(held: &[u8]) -> ResponseRecord {
        ResponseRecord {
            tenant: TenantId::new("acme").expect("a name"),
            id: ResponseId::new("resp_2").expect("a name"),
            previous: ResponseId::new("resp_1"),
            ttl_ms: 5,
            state: ResponseState::Running,
            payload: Payload::new(held).expect("short"),
        }
    }

    #[test]
    fn commands_about_responses_round_trip() {
        let (tenant, id) = (record(b"").tenant, record(b"").id);
        for command in [
            Command::PutResponse(record(b"said")),
            Command::PutResponse(ResponseRecord { previous: None, ..record(b"") }),
            Command::EndResponse { tenant: tenant.clone(), id: id.clone(), cancelled: true },
            Command::EndResponse { tenant, id, cancelled: false },
        ] {
            let proposal = Proposal { stamp: Stamp::default(), command };
            assert_eq!(proposal_from_wire(&proposal_to_wire(&proposal)), Ok(proposal));
        }
    }

    #[test]
    fn a_withheld_payload_is_the_same_record_without_what_was_said() {
        let full = record(b"a secret");
        let mut wire = record_to_wire(&full);
        withhold_payload(&mut wire);
        let bare = record_from_wire(&wire).expect("well formed");
        assert_eq!((&bare, bare.payload.held()), (&full, None));
        // An empty payload has nothing to withhold and stays whole in meaning.
        let empty = record_from_wire(&record_to_wire(&record(b""))).expect("well formed");
        assert_eq!(empty, record(b""));
    }

    #[test]
    fn malformed_ones_are_refused() {
        let wire = record_to_wire(&record(b"x"));
        let bad = |change: fn(&mut v1::PutResponse)| {
            let mut wire = wire.clone();
            change(&mut wire);
            record_from_wire(&wire).expect_err("malformed")
        };
        assert_eq!(bad(|w| w.payload = None), ConvertError::Missing("payload"));
        assert_eq!(bad(|w| w.state = 9), ConvertError::Malformed("state"));
        assert_eq!(bad(|w| w.id.clear()), ConvertError::Malformed("id of a response"));
        assert_eq!(
            bad(|w| w.previous = "a\nb".into()),
            ConvertError::Malformed("id of a response")
        );
        assert_eq!(bad(|w| w.tenant.clear()), ConvertError::Malformed("tenant"));
    }
}
