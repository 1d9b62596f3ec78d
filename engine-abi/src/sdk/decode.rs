//! Requests and pins from their C form into owned values, refusing what no engine should see.
//!
//! Checking here, once, spares every engine the same checks: lengths, token ids against the
//! vocabulary, finite and sensible sampling values, ranges that are ranges.

use super::types::{
    Guided, GuidedKind, Info, LeaseChange, LeaseEnd, Pin, Request, RetentionClass, RetentionRange,
    Sampling, TOKENS_TO_END,
};
use super::{Code, EngineError, Export, Import};
use crate::limits;
use crate::raw::{
    GUIDED_JSON_SCHEMA, GUIDED_LARK, GUIDED_REGEX, LEASE_AMEND, LEASE_COMPACT, LEASE_FINISH,
    LEASE_RELEASE, MseExport, MseGuided, MseImport, MseLease, MsePin, MseRange, MseRequest,
    MseSampling, MseU128, SAMPLING_IGNORE_EOS, SAMPLING_SEED,
};
use crate::read::{read_struct, slice};

fn invalid<T>(message: String) -> Result<T, EngineError> {
    Err(EngineError::invalid(message))
}

fn check_reserved(reserved: bool, name: &str) -> Result<(), EngineError> {
    if reserved {
        return Err(EngineError::new(Code::TooNew, format!("{name} sets a reserved field")));
    }
    Ok(())
}

/// # Safety
/// As the header says of `submit`: the request and all it points at are readable over the call.
pub(super) unsafe fn request(
    pointer: *const MseRequest,
    info: &Info,
) -> Result<Request, EngineError> {
    // SAFETY: the caller's promise, here and below.
    let raw = unsafe { read_struct(pointer)? };
    check_reserved(raw._reserved != 0, "mse_request")?;
    // SAFETY: as above.
    let tokens =
        unsafe { slice(raw.tokens, raw.tokens_len, limits::REQUEST_TOKENS_MAX, "the prompt")? };
    check_tokens(tokens, info)?;
    if u64::from(raw.sampled_before) > raw.tokens_len {
        return invalid(format!("sampled_before {} exceeds the prompt", raw.sampled_before));
    }
    // SAFETY: as above.
    let sampling = unsafe { sampling(raw.sampling, info)? };
    // SAFETY: as above.
    let ranges = unsafe { ranges(raw.ranges, raw.ranges_len)? };
    // SAFETY: as above.
    let leases =
        unsafe { slice(raw.leases, raw.leases_len, limits::LEASES_MAX, "the list of leases")? };
    if let Some(range) = ranges.iter().find(|range| usize::from(range.lease) > leases.len()) {
        let (number, there) = (range.lease, leases.len());
        return invalid(format!("a range is of lease {number}, and there are {there}"));
    }
    // SAFETY: as above.
    let guided = unsafe { guided(raw.guided)? };
    Ok(Request {
        id: raw.id,
        trace: raw.trace.into(),
        namespace: raw.namespace_id.into(),
        tokens: tokens.to_vec(),
        sampled_before: raw.sampled_before,
        priority: raw.priority,
        sampling,
        ranges,
        expected_output_tokens: raw.expected_output_tokens,
        guided,
        leases: leases.iter().map(|lease| u128::from(*lease)).collect(),
    })
}

/// Whether the engine can honour it is the shim's question, which knows the engine's capabilities.
unsafe fn guided(pointer: *const MseGuided) -> Result<Option<Guided>, EngineError> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise, here and below.
    let raw = unsafe { read_struct(pointer)? };
    check_reserved(raw._reserved != 0, "mse_guided")?;
    let kind = match raw.kind {
        GUIDED_JSON_SCHEMA => GuidedKind::JsonSchema,
        GUIDED_REGEX => GuidedKind::Regex,
        GUIDED_LARK => GuidedKind::Lark,
        // A form that is not understood must not become free text.
        other => {
            return Err(EngineError::new(Code::TooNew, format!("mse_guided has the kind {other}")));
        }
    };
    // SAFETY: as above.
    let spec = unsafe {
        slice(raw.spec.ptr, raw.spec.len, limits::GUIDED_BYTES_MAX, "the output's form")?
    };
    match std::str::from_utf8(spec) {
        Ok("") => invalid("the output's form is empty".into()),
        Ok(spec) => Ok(Some(Guided { kind, spec: spec.to_owned() })),
        Err(_) => invalid("the output's form is not UTF-8".into()),
    }
}

fn check_tokens(tokens: &[u32], info: &Info) -> Result<(), EngineError> {
    if tokens.is_empty() {
        return invalid("the prompt is empty".into());
    }
    if tokens.len() as u64 > u64::from(info.context_tokens_max) {
        let max = info.context_tokens_max;
        return invalid(format!("the prompt has {} tokens, more than {max}", tokens.len()));
    }
    match tokens.iter().find(|token| **token >= info.vocab) {
        Some(token) => invalid(format!("token {token} is not below the vocabulary {}", info.vocab)),
        None => Ok(()),
    }
}

unsafe fn sampling(pointer: *const MseSampling, info: &Info) -> Result<Sampling, EngineError> {
    // SAFETY: the caller's promise, here and below.
    let raw = unsafe { read_struct(pointer)? };
    check_reserved(raw._reserved != 0, "mse_sampling")?;
    check_reserved(raw.flags & !(SAMPLING_SEED | SAMPLING_IGNORE_EOS) != 0, "mse_sampling.flags")?;
    // SAFETY: as above.
    let stop_tokens = unsafe {
        slice(raw.stop_tokens, raw.stop_tokens_len, limits::STOP_TOKENS_MAX, "the stop list")?
    };
    check_sampling(&raw)?;
    if let Some(token) = stop_tokens.iter().find(|token| **token >= info.vocab) {
        return invalid(format!("stop token {token} is not below the vocabulary {}", info.vocab));
    }
    Ok(Sampling {
        temperature: raw.temperature,
        top_p: raw.top_p,
        min_p: raw.min_p,
        repetition_penalty: raw.repetition_penalty,
        frequency_penalty: raw.frequency_penalty,
        presence_penalty: raw.presence_penalty,
        top_k: raw.top_k.unsigned_abs(), // not negative, checked
        tokens_max: raw.tokens_max,
        tokens_min: raw.tokens_min,
        logprobs: raw.logprobs,
        seed: (raw.flags & SAMPLING_SEED != 0).then_some(raw.seed),
        ignore_eos: raw.flags & SAMPLING_IGNORE_EOS != 0,
        stop_tokens: stop_tokens.to_vec(),
    })
}

fn check_sampling(raw: &MseSampling) -> Result<(), EngineError> {
    // Comparisons are written so that NaN fails them.
    let checks = [
        ("temperature", raw.temperature, raw.temperature >= 0.0),
        ("top_p", raw.top_p, raw.top_p > 0.0 && raw.top_p <= 1.0),
        ("min_p", raw.min_p, raw.min_p >= 0.0 && raw.min_p <= 1.0),
        ("repetition_penalty", raw.repetition_penalty, raw.repetition_penalty > 0.0),
        ("frequency_penalty", raw.frequency_penalty, true),
        ("presence_penalty", raw.presence_penalty, true),
    ];
    for (name, value, in_range) in checks {
        if !in_range || !value.is_finite() {
            return invalid(format!("{name} {value} is out of range"));
        }
    }
    if raw.top_k < 0 {
        return invalid(format!("top_k {} is negative", raw.top_k));
    }
    if raw.tokens_max == 0 || raw.tokens_min > raw.tokens_max {
        let (min, max) = (raw.tokens_min, raw.tokens_max);
        return invalid(format!("tokens_min {min} and tokens_max {max} leave nothing to generate"));
    }
    if raw.logprobs > limits::LOGPROBS_MAX {
        return invalid(format!("logprobs {} exceeds {}", raw.logprobs, limits::LOGPROBS_MAX));
    }
    Ok(())
}

fn range(raw: &MseRange) -> Result<RetentionRange, EngineError> {
    if raw.start >= raw.end {
        return invalid(format!("range {}..{} is empty", raw.start, raw.end));
    }
    if raw.priority > 100 {
        return invalid(format!("range priority {} exceeds 100", raw.priority));
    }
    let after = raw.after.checked_sub(1);
    if after.is_some_and(|after| after > raw.priority) {
        return invalid(format!("after its time a range is worth more than {}", raw.priority));
    }
    let Some(class) = RetentionClass::from_number(u32::from(raw.kind)) else {
        return Err(EngineError::new(Code::TooNew, format!("mse_range has the kind {}", raw.kind)));
    };
    let MseRange { start, end, priority, lease, duration_ms, .. } = *raw;
    Ok(RetentionRange { start, end, priority, after, class, lease, duration_ms })
}

unsafe fn ranges(pointer: *const MseRange, len: u64) -> Result<Vec<RetentionRange>, EngineError> {
    // SAFETY: the caller's promise.
    let raw = unsafe { slice(pointer, len, limits::RANGES_MAX, "the list of ranges")? };
    raw.iter().map(range).collect()
}

/// # Safety
/// As the header says of `lease`: the struct and its ranges are readable over the call.
pub(super) unsafe fn lease(pointer: *const MseLease) -> Result<LeaseChange, EngineError> {
    // SAFETY: the caller's promise, here and below.
    let raw = unsafe { read_struct(pointer)? };
    check_reserved(raw._reserved != 0, "mse_lease")?;
    // SAFETY: as above.
    let ranges = unsafe { ranges(raw.ranges, raw.ranges_len)? };
    let end = match raw.how {
        LEASE_AMEND => None,
        LEASE_RELEASE => Some(LeaseEnd::Released),
        LEASE_FINISH => Some(LeaseEnd::Finished),
        LEASE_COMPACT => Some(LeaseEnd::Compacted),
        other => return invalid(format!("mse_lease says {other}, which is no change")),
    };
    if ranges.is_empty() != end.is_some() {
        return invalid("a lease is amended by ranges, and ended without".into());
    }
    if ranges.iter().any(|r| (r.start, r.end, r.lease) != (0, TOKENS_TO_END, 0)) {
        return invalid("a lease is amended by kind, from 0 to the end".into());
    }
    let (namespace, lease_id) = (raw.namespace_id.into(), raw.lease_id.into());
    Ok(LeaseChange { namespace, lease_id, end, ranges })
}

/// # Safety
/// As the header says of `pin`: the struct and its blocks are readable over the call.
pub(super) unsafe fn pin(pointer: *const MsePin) -> Result<Pin, EngineError> {
    // SAFETY: the caller's promise, here and below.
    let raw = unsafe { read_struct(pointer)? };
    check_reserved(raw._reserved != 0, "mse_pin")?;
    // SAFETY: as above.
    let blocks = unsafe {
        slice(raw.blocks, raw.blocks_len, limits::PIN_BLOCKS_MAX, "the pin's list of blocks")?
    };
    if blocks.is_empty() {
        return invalid("the pin has no blocks".into());
    }
    if raw.ttl_ms == 0 {
        return invalid("the pin has no ttl_ms".into());
    }
    if raw.priority > 100 {
        return invalid(format!("pin priority {} exceeds 100", raw.priority));
    }
    Ok(Pin {
        op_id: raw.op_id,
        pin_id: raw.pin_id.into(),
        blocks: blocks.iter().map(|block| u128::from(*block)).collect(),
        ttl_ms: raw.ttl_ms,
        priority: raw.priority,
    })
}

/// # Safety
/// As the header says of `kv_export`: the struct and its blocks are readable over the call, its bytes writable and the
/// engine's until the op ends.
pub(super) unsafe fn export(pointer: *const MseExport, info: &Info) -> Result<Export, EngineError> {
    // SAFETY: the caller's promise, here and below.
    let raw = unsafe { read_struct(pointer)? };
    // SAFETY: as above.
    let blocks = unsafe { transferred(raw.blocks, raw.blocks_len)? };
    let bytes = check_bytes(raw.bytes.cast_const(), raw.bytes_len, blocks.len(), info)?;
    // SAFETY: the caller lends them until the op ends (R4).
    Ok(unsafe { Export::new(raw.op_id, blocks, raw.bytes, bytes) })
}

/// # Safety
/// As the header says of `kv_import`: the struct and its blocks are readable over the call, its bytes until the op
/// ends.
pub(super) unsafe fn import(pointer: *const MseImport, info: &Info) -> Result<Import, EngineError> {
    // SAFETY: the caller's promise, here and below.
    let raw = unsafe { read_struct(pointer)? };
    // SAFETY: as above.
    let blocks = unsafe { transferred(raw.blocks, raw.blocks_len)? };
    let bytes = check_bytes(raw.bytes, raw.bytes_len, blocks.len(), info)?;
    if raw.kv_layout != info.kv_layout {
        let (theirs, ours) = (raw.kv_layout, info.kv_layout);
        let message = format!("blocks of layout {theirs:#x} can't be read by layout {ours:#x}");
        return Err(EngineError::new(Code::Precondition, message));
    }
    let priority = u8::try_from(raw.priority).ok().filter(|priority| *priority <= 100);
    let Some(priority) = priority else {
        return invalid(format!("import priority {} exceeds 100", raw.priority));
    };
    let place = (raw.namespace_id.into(), raw.parent.into());
    // SAFETY: the caller lends them until the op ends (R4).
    Ok(unsafe {
        Import::new(raw.op_id, place, blocks, (priority, raw.duration_ms), (raw.bytes, bytes))
    })
}

/// # Safety
/// The array is readable over the call.
unsafe fn transferred(blocks: *const MseU128, len: u64) -> Result<Vec<u128>, EngineError> {
    // SAFETY: the caller's promise.
    let blocks =
        unsafe { slice(blocks, len, limits::TRANSFER_BLOCKS_MAX, "the transfer's blocks")? };
    if blocks.is_empty() {
        return invalid("the transfer has no blocks".into());
    }
    Ok(blocks.iter().map(|block| u128::from(*block)).collect())
}

/// Bytes fit blocks, and are there.
fn check_bytes(
    bytes: *const u8,
    len: u64,
    blocks: usize,
    info: &Info,
) -> Result<usize, EngineError> {
    let due = info.block_bytes.checked_mul(blocks as u64);
    if due != Some(len) || len > limits::TRANSFER_BYTES_MAX {
        let of = info.block_bytes;
        return invalid(format!("{len} bytes for {blocks} blocks of {of}"));
    }
    if bytes.is_null() {
        return invalid("the transfer's bytes are null".into());
    }
    usize::try_from(len).map_err(|_| EngineError::invalid("the transfer is too long"))
}
