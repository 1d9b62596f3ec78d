//! Requests and pins from the SDK's words into their C form, borrowed for one call.

use mainstay_engine_abi::raw::{
    GUIDED_JSON_SCHEMA, GUIDED_LARK, GUIDED_REGEX, LEASE_AMEND, LEASE_COMPACT, LEASE_FINISH,
    LEASE_RELEASE, MseGuided, MseHdr, MseLease, MsePin, MseRange, MseRequest, MseSampling, MseStr,
    MseU128, SAMPLING_IGNORE_EOS, SAMPLING_SEED,
};
use mainstay_engine_abi::sdk::{
    Guided, GuidedKind, LeaseChange, LeaseEnd, Pin, Request, RetentionRange, Sampling,
};

fn sampling(from: &Sampling) -> MseSampling {
    let seed = if from.seed.is_some() { SAMPLING_SEED } else { 0 };
    let ignore_eos = if from.ignore_eos { SAMPLING_IGNORE_EOS } else { 0 };
    MseSampling {
        h: MseHdr::of::<MseSampling>(),
        temperature: from.temperature,
        top_p: from.top_p,
        min_p: from.min_p,
        repetition_penalty: from.repetition_penalty,
        frequency_penalty: from.frequency_penalty,
        presence_penalty: from.presence_penalty,
        // Above the vocabulary it is off in all but name, so clamping changes nothing.
        top_k: i32::try_from(from.top_k).unwrap_or(i32::MAX),
        tokens_max: from.tokens_max,
        tokens_min: from.tokens_min,
        logprobs: from.logprobs,
        seed: from.seed.unwrap_or(0),
        flags: seed | ignore_eos,
        _reserved: 0,
        stop_tokens: from.stop_tokens.as_ptr(),
        stop_tokens_len: from.stop_tokens.len() as u64,
    }
}

fn guided(from: &Guided) -> MseGuided {
    MseGuided {
        h: MseHdr::of::<MseGuided>(),
        kind: match from.kind {
            GuidedKind::JsonSchema => GUIDED_JSON_SCHEMA,
            GuidedKind::Regex => GUIDED_REGEX,
            GuidedKind::Lark => GUIDED_LARK,
        },
        _reserved: 0,
        spec: MseStr::of(&from.spec),
    }
}

/// Calls `call` with the C form of `from`; the pointer is good for the call only.
pub fn request<T>(from: &Request, call: impl FnOnce(&MseRequest) -> T) -> T {
    let sampling = sampling(&from.sampling);
    let guided = from.guided.as_ref().map(guided);
    let ranges = ranges(&from.ranges);
    let leases: Vec<MseU128> = from.leases.iter().map(|lease| MseU128::from(*lease)).collect();
    call(&MseRequest {
        h: MseHdr::of::<MseRequest>(),
        id: from.id,
        trace: from.trace.into(),
        namespace_id: from.namespace.into(),
        tokens: from.tokens.as_ptr(),
        tokens_len: from.tokens.len() as u64,
        sampled_before: from.sampled_before,
        priority: from.priority,
        sampling: &raw const sampling,
        ranges: ranges.as_ptr(),
        ranges_len: ranges.len() as u64,
        expected_output_tokens: from.expected_output_tokens,
        _reserved: 0,
        guided: guided.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        leases: leases.as_ptr(),
        leases_len: leases.len() as u64,
    })
}

fn ranges(from: &[RetentionRange]) -> Vec<MseRange> {
    let range = |range: &RetentionRange| MseRange {
        start: range.start,
        end: range.end,
        priority: range.priority,
        after: range.after.map_or(0, |after| after.saturating_add(1)),
        kind: range.class as u8,
        lease: range.lease,
        duration_ms: range.duration_ms,
    };
    from.iter().map(range).collect()
}

/// Calls `call` with the C form of `from`; the pointer is good for the call only.
pub fn lease<T>(from: &LeaseChange, call: impl FnOnce(&MseLease) -> T) -> T {
    let ranges = ranges(&from.ranges);
    call(&MseLease {
        h: MseHdr::of::<MseLease>(),
        namespace_id: from.namespace.into(),
        lease_id: from.lease_id.into(),
        how: match from.end {
            None => LEASE_AMEND,
            Some(LeaseEnd::Released) => LEASE_RELEASE,
            Some(LeaseEnd::Finished) => LEASE_FINISH,
            Some(LeaseEnd::Compacted) => LEASE_COMPACT,
        },
        _reserved: 0,
        ranges: ranges.as_ptr(),
        ranges_len: ranges.len() as u64,
    })
}

/// Calls `call` with the C form of `from`; the pointer is good for the call only.
pub fn pin<T>(from: &Pin, call: impl FnOnce(&MsePin) -> T) -> T {
    let blocks: Vec<MseU128> = from.blocks.iter().map(|block| MseU128::from(*block)).collect();
    call(&MsePin {
        h: MseHdr::of::<MsePin>(),
        op_id: from.op_id,
        pin_id: from.pin_id.into(),
        blocks: blocks.as_ptr(),
        blocks_len: blocks.len() as u64,
        ttl_ms: from.ttl_ms,
        priority: from.priority,
        _reserved: 0,
    })
}
