//! Batches from their C form into owned values; every offset and length is judged first.
//!
//! An engine whose batch does not add up has lost the thread: the error is text for
//! [`ExitReason::Broken`](crate::ExitReason), and the engine is given up.

use std::mem::MaybeUninit;

use mainstay_engine_abi::limits::{BATCH_ENTRIES_MAX, BATCH_ITEMS_MAX, STRUCT_BYTES_MAX};
use mainstay_engine_abi::raw::{
    CAUSE_ADMIN, CAUSE_CAPACITY, CAUSE_EXPIRY, CAUSE_LIFECYCLE, CAUSE_NONE, FINISH_CANCELLED,
    FINISH_ERROR, FINISH_LENGTH, FINISH_NONE, FINISH_STOP, KV_PIN_EXPIRED, KV_REMOVED, KV_RESET,
    KV_SNAPSHOT, KV_STORED, MseBatch, MseKv, MseLogprob, MseOp, MseOut, MseU128, OUT_FINAL,
    OUT_FIRST,
};
use mainstay_engine_abi::read;
use mainstay_engine_abi::sdk::{Cause, Finish, KvEvent, Logprob, OpDone, Output};

/// What is wrong with an engine's batch.
pub type Broken = String;

/// An item type for which all zero bytes are a value.
///
/// # Safety
/// `#[repr(C)]` of integers only.
unsafe trait Item: Copy {}
// SAFETY: integers only.
unsafe impl Item for MseOut {}
// SAFETY: integers only.
unsafe impl Item for MseKv {}
// SAFETY: integers only.
unsafe impl Item for MseOp {}

/// Copies the items out: each lies `stride` bytes behind the one before, whatever follows it there.
///
/// # Safety
/// The batch is one that the engine's `poll` filled and that is not released yet.
unsafe fn items<T: Item>(batch: &MseBatch) -> Result<Vec<T>, Broken> {
    if batch.len > BATCH_ITEMS_MAX {
        return Err(format!("a batch has {} items, more than {BATCH_ITEMS_MAX}", batch.len));
    }
    if batch.len == 0 {
        return Ok(Vec::new());
    }
    let stride = batch.stride;
    if stride > STRUCT_BYTES_MAX || !stride.is_multiple_of(8) || (stride as usize) < size_of::<T>()
    {
        return Err(format!("a batch has items of {stride} bytes"));
    }
    if batch.items.is_null() || !batch.items.cast::<u64>().is_aligned() {
        return Err("a batch's items are null or misaligned".into());
    }
    let mut copied = Vec::with_capacity(batch.len as usize);
    for index in 0..batch.len as usize {
        let mut item = MaybeUninit::<T>::zeroed();
        // SAFETY: the engine vouches for `len` items of `stride` bytes, of which this copies the
        // first `size_of::<T>()`; any bytes are a `T`.
        copied.push(unsafe {
            let from = batch.items.cast::<u8>().add(index * stride as usize);
            std::ptr::copy_nonoverlapping(from, item.as_mut_ptr().cast(), size_of::<T>());
            item.assume_init()
        });
    }
    Ok(copied)
}

fn part<'a, T>(whole: &'a [T], off: u32, len: u32, what: &str) -> Result<&'a [T], Broken> {
    let (off, len) = (off as usize, len as usize);
    whole
        .get(off..off + len)
        .ok_or_else(|| format!("{what} {off}+{len} lie outside the batch's {}", whole.len()))
}

/// # Safety
/// As for [`items`].
pub unsafe fn outputs(batch: &MseBatch) -> Result<Vec<Output>, Broken> {
    // SAFETY: the caller's promise; the engine vouches for arrays and lengths.
    let (outs, tokens, logprobs, bytes) = unsafe {
        (
            items::<MseOut>(batch)?,
            read::slice(batch.tokens, batch.tokens_len, BATCH_ENTRIES_MAX, "a batch's tokens"),
            read::slice(batch.logprobs, batch.logprobs_len, BATCH_ENTRIES_MAX, "logprobs"),
            read::slice(batch.bytes, batch.bytes_len, BATCH_ENTRIES_MAX, "a batch's bytes"),
        )
    };
    let tokens = tokens.map_err(|error| error.message)?;
    let logprobs = logprobs.map_err(|error| error.message)?;
    let bytes = bytes.map_err(|error| error.message)?;
    outs.iter().map(|out| output(out, tokens, logprobs, bytes)).collect()
}

fn output(
    out: &MseOut,
    tokens: &[u32],
    logprobs: &[MseLogprob],
    bytes: &[u8],
) -> Result<Output, Broken> {
    let finish = match out.finish {
        FINISH_NONE => None,
        FINISH_STOP => Some(Finish::Stop),
        FINISH_LENGTH => Some(Finish::Length),
        FINISH_CANCELLED => Some(Finish::Cancelled),
        FINISH_ERROR => {
            let message = part(bytes, out.msg_off, out.msg_len, "a message's bytes")?;
            let message = String::from_utf8_lossy(message).into_owned();
            Some(Finish::Error { rc: out.rc, message })
        }
        other => return Err(format!("request {} has the unknown finish {other}", out.id)),
    };
    if out.flags & !(OUT_FIRST | OUT_FINAL) != 0 {
        return Err(format!("request {} has the unknown flags {:#x}", out.id, out.flags));
    }
    if (out.flags & OUT_FINAL != 0) != finish.is_some() {
        return Err(format!("request {} has a finish without FINAL, or the reverse", out.id));
    }
    let tokens = part(tokens, out.token_off, out.token_len, "an output's tokens")?;
    let logprobs = part(logprobs, out.logprob_off, out.logprob_len, "an output's logprobs")?
        .iter()
        .map(|l| Logprob { token: l.token, logprob: l.logprob, position: l.position, rank: l.rank })
        .collect::<Vec<_>>();
    if let Some(wrong) = logprobs.iter().find(|l| l.position as usize >= tokens.len()) {
        return Err(format!("request {} has a logprob at position {}", out.id, wrong.position));
    }
    Ok(Output {
        id: out.id,
        tokens: tokens.to_vec(),
        logprobs,
        first: out.flags & OUT_FIRST != 0,
        finish,
        cached_tokens: out.cached_tokens,
        queue_us: out.queue_us,
        prefill_us: out.prefill_us,
    })
}

/// What a batch of cache events says: whether it begins with a RESET, and the events after that.
pub struct KvItems {
    /// All items, the RESET included.
    pub len: u32,
    pub reset: bool,
    pub events: Vec<KvEvent>,
}

/// # Safety
/// As for [`items`].
pub unsafe fn kv(batch: &MseBatch) -> Result<KvItems, Broken> {
    // SAFETY: the caller's promise; the engine vouches for arrays and lengths.
    let (kvs, blocks) = unsafe {
        (
            items::<MseKv>(batch)?,
            read::slice(batch.blocks, batch.blocks_len, BATCH_ENTRIES_MAX, "a batch's blocks"),
        )
    };
    let blocks = blocks.map_err(|error| error.message)?;
    let mut found = KvItems { len: batch.len, reset: false, events: Vec::with_capacity(kvs.len()) };
    for item in &kvs {
        match event(item, blocks)? {
            Some(event) => found.events.push(event),
            // Whatever came before a RESET is void.
            None => {
                found.reset = true;
                found.events.clear();
            }
        }
    }
    Ok(found)
}

fn event(item: &MseKv, blocks: &[MseU128]) -> Result<Option<KvEvent>, Broken> {
    if item.flags & !KV_SNAPSHOT != 0 {
        return Err(format!("a cache event has the unknown flags {:#x}", item.flags));
    }
    let blocks = || {
        let part = part(blocks, item.block_off, item.block_len, "an event's blocks")?;
        Ok::<_, Broken>(part.iter().map(|block| u128::from(*block)).collect::<Vec<_>>())
    };
    let tier = item.tier;
    Ok(Some(match item.r#type {
        KV_STORED => KvEvent::Stored {
            namespace: item.namespace_id.into(),
            parent: item.parent.into(),
            blocks: blocks()?,
            tier,
            snapshot: item.flags & KV_SNAPSHOT != 0,
        },
        KV_REMOVED => {
            let cause = match item.cause {
                CAUSE_NONE => Cause::None,
                CAUSE_CAPACITY => Cause::Capacity,
                CAUSE_EXPIRY => Cause::Expiry,
                CAUSE_LIFECYCLE => Cause::Lifecycle,
                CAUSE_ADMIN => Cause::Admin,
                other => return Err(format!("a cache event has the unknown cause {other}")),
            };
            KvEvent::Removed { blocks: blocks()?, tier, cause }
        }
        KV_RESET => return Ok(None),
        KV_PIN_EXPIRED => KvEvent::PinExpired { pin_id: item.parent.into() },
        other => return Err(format!("a cache event has the unknown type {other}")),
    }))
}

/// # Safety
/// As for [`items`].
pub unsafe fn ops(batch: &MseBatch) -> Result<Vec<OpDone>, Broken> {
    // SAFETY: the caller's promise.
    let ops = unsafe { items::<MseOp>(batch)? };
    Ok(ops.iter().map(|op| OpDone { op_id: op.op_id, rc: op.rc, done: op.done }).collect())
}

#[cfg(test)]
mod tests;
