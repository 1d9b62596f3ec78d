//! Batches: what was taken from a lane, laid out as the C structs that the host reads.
//!
//! One allocation owns all arrays of a batch; its address travels in `opaque` until the host gives
//! the batch back. An empty batch owns nothing.

use std::ffi::c_void;
use std::ptr;

use super::lanes::{KvTaken, OpDone};
use super::types::{Cause, Finish, KvEvent, Output};
use crate::raw::{
    CAUSE_ADMIN, CAUSE_CAPACITY, CAUSE_EXPIRY, CAUSE_LIFECYCLE, CAUSE_NONE, FINISH_CANCELLED,
    FINISH_ERROR, FINISH_LENGTH, FINISH_NONE, FINISH_STOP, KV_PIN_EXPIRED, KV_REMOVED, KV_RESET,
    KV_SNAPSHOT, KV_STORED, LANE_KV, LANE_OP, LANE_OUT, MseBatch, MseHdr, MseKv, MseLogprob, MseOp,
    MseOut, MseU128, OUT_FINAL, OUT_FIRST,
};

/// The arrays behind one batch. Only one of the three item vectors is used.
#[derive(Default)]
struct Arrays {
    outs: Vec<MseOut>,
    kvs: Vec<MseKv>,
    ops: Vec<MseOp>,
    tokens: Vec<u32>,
    logprobs: Vec<MseLogprob>,
    blocks: Vec<MseU128>,
    bytes: Vec<u8>,
}

/// Lengths within a batch fit: the lanes stop a batch long before 2^32 entries, and one item beyond
/// that would be 16 GiB. Saturating keeps an absurd one wrong, not undefined: the host checks ranges.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Arrays {
    fn push_output(&mut self, output: Output) {
        let (token_off, logprob_off) = (length(self.tokens.len()), length(self.logprobs.len()));
        let msg_off = length(self.bytes.len());
        let (finish, rc) = match &output.finish {
            None => (FINISH_NONE, 0),
            Some(Finish::Stop) => (FINISH_STOP, 0),
            Some(Finish::Length) => (FINISH_LENGTH, 0),
            Some(Finish::Cancelled) => (FINISH_CANCELLED, 0),
            Some(Finish::Error { rc, message }) => {
                self.bytes.extend_from_slice(cut(message).as_bytes());
                (FINISH_ERROR, *rc)
            }
        };
        let first = if output.first { OUT_FIRST } else { 0 };
        let last = if finish == FINISH_NONE { 0 } else { OUT_FINAL };
        self.tokens.extend_from_slice(&output.tokens);
        self.logprobs.extend(output.logprobs.iter().map(|l| MseLogprob {
            token: l.token,
            logprob: l.logprob,
            position: l.position,
            rank: l.rank,
        }));
        self.outs.push(MseOut {
            id: output.id,
            token_off,
            token_len: length(output.tokens.len()),
            logprob_off,
            logprob_len: length(output.logprobs.len()),
            flags: first | last,
            finish,
            rc,
            cached_tokens: output.cached_tokens,
            msg_off,
            msg_len: length(self.bytes.len()) - msg_off,
            queue_us: output.queue_us,
            prefill_us: output.prefill_us,
        });
    }

    fn push_kv(&mut self, event: KvEvent) {
        let block_off = length(self.blocks.len());
        let mut item = MseKv { block_off, ..EMPTY_KV };
        match event {
            KvEvent::Stored { namespace, parent, blocks, tier, snapshot } => {
                item.r#type = KV_STORED;
                item.tier = tier;
                item.flags = if snapshot { KV_SNAPSHOT } else { 0 };
                item.block_len = length(blocks.len());
                item.parent = parent.into();
                item.namespace_id = namespace.into();
                self.blocks.extend(blocks.into_iter().map(MseU128::from));
            }
            KvEvent::Removed { blocks, tier, cause } => {
                item.r#type = KV_REMOVED;
                item.tier = tier;
                item.cause = match cause {
                    Cause::None => CAUSE_NONE,
                    Cause::Capacity => CAUSE_CAPACITY,
                    Cause::Expiry => CAUSE_EXPIRY,
                    Cause::Lifecycle => CAUSE_LIFECYCLE,
                    Cause::Admin => CAUSE_ADMIN,
                };
                item.block_len = length(blocks.len());
                self.blocks.extend(blocks.into_iter().map(MseU128::from));
            }
            KvEvent::PinExpired { pin_id } => {
                item.r#type = KV_PIN_EXPIRED;
                item.parent = pin_id.into();
            }
        }
        self.kvs.push(item);
    }

    /// Gives the arrays to the host: the returned batch owns them through `opaque`.
    fn into_batch(self, lane: u32, epoch: u64, first_seq: u64) -> MseBatch {
        let arrays = Box::new(self);
        let (items, stride, len) = match lane {
            LANE_OUT => view(&arrays.outs),
            LANE_KV => view(&arrays.kvs),
            _ => view(&arrays.ops),
        };
        let mut batch = MseBatch { lane, epoch, first_seq, ..empty(lane) };
        if len == 0 {
            return batch;
        }
        (batch.items, batch.stride, batch.len) = (items, stride, len);
        (batch.tokens, batch.tokens_len) = (arrays.tokens.as_ptr(), arrays.tokens.len() as u64);
        batch.logprobs = arrays.logprobs.as_ptr();
        batch.logprobs_len = arrays.logprobs.len() as u64;
        (batch.blocks, batch.blocks_len) = (arrays.blocks.as_ptr(), arrays.blocks.len() as u64);
        (batch.bytes, batch.bytes_len) = (arrays.bytes.as_ptr(), arrays.bytes.len() as u64);
        batch.opaque = Box::into_raw(arrays).cast();
        batch
    }
}

const EMPTY_KV: MseKv = MseKv {
    r#type: KV_RESET,
    tier: 0,
    cause: CAUSE_NONE,
    flags: 0,
    block_off: 0,
    block_len: 0,
    parent: MseU128 { lo: 0, hi: 0 },
    namespace_id: MseU128 { lo: 0, hi: 0 },
};

/// Messages within outputs are short; a long one is cut at a character.
fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(1024)]
}

fn view<T>(items: &[T]) -> (*const c_void, u32, u32) {
    (items.as_ptr().cast(), size_of::<T>() as u32, length(items.len()))
}

/// A batch without items.
pub(super) fn empty(lane: u32) -> MseBatch {
    MseBatch {
        h: MseHdr::of::<MseBatch>(),
        lane,
        len: 0,
        epoch: 0,
        first_seq: 0,
        items: ptr::null(),
        stride: 0,
        _reserved: 0,
        tokens: ptr::null(),
        tokens_len: 0,
        logprobs: ptr::null(),
        logprobs_len: 0,
        blocks: ptr::null(),
        blocks_len: 0,
        bytes: ptr::null(),
        bytes_len: 0,
        opaque: ptr::null_mut(),
    }
}

pub(super) fn of_outputs((first_seq, outputs): (u64, Vec<Output>)) -> MseBatch {
    let mut arrays = Arrays::default();
    outputs.into_iter().for_each(|output| arrays.push_output(output));
    arrays.into_batch(LANE_OUT, 0, first_seq)
}

pub(super) fn of_kv(taken: KvTaken) -> MseBatch {
    let mut arrays = Arrays::default();
    if taken.reset {
        arrays.kvs.push(EMPTY_KV);
    }
    taken.events.into_iter().for_each(|event| arrays.push_kv(event));
    arrays.into_batch(LANE_KV, taken.epoch, taken.first_seq)
}

pub(super) fn of_ops((first_seq, ops): (u64, Vec<OpDone>)) -> MseBatch {
    let ops = ops.into_iter().map(|op| MseOp { op_id: op.op_id, rc: op.rc, done: op.done });
    let arrays = Arrays { ops: ops.collect(), ..Arrays::default() };
    arrays.into_batch(LANE_OP, 0, first_seq)
}

/// Frees what `opaque` owns; null is allowed.
///
/// # Safety
/// `opaque` is null or came from a batch of this module that was not released yet.
pub(super) unsafe fn release(opaque: *mut c_void) {
    if !opaque.is_null() {
        // SAFETY: made by `Box::into_raw` in `into_batch`, and given back once.
        drop(unsafe { Box::from_raw(opaque.cast::<Arrays>()) });
    }
}
