//! Batches that lie: any offsets, lengths, strides, kinds and flags over real memory.

use mainstay_engine_abi::raw::{LANE_KV, LANE_OUT, MseHdr};
use proptest::prelude::*;

use super::*;

fn batch_of<T>(items: &[T]) -> MseBatch {
    // SAFETY: all zero is a valid mse_batch.
    let mut batch: MseBatch = unsafe { std::mem::zeroed() };
    batch.h = MseHdr::of::<MseBatch>();
    batch.len = items.len() as u32;
    batch.items = items.as_ptr().cast();
    batch.stride = size_of::<T>() as u32;
    batch
}

/// Small numbers mostly, so that some of the cases are in range.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..6_u32, 1 => Just(u32::MAX), 1 => any::<u32>()]
}

proptest! {
    #[test]
    fn outputs_are_within_their_arrays_or_refused(
        raw in prop::collection::vec(prop::array::uniform12(number()), 0..5),
    ) {
        let outs: Vec<MseOut> = raw.iter().map(|n| MseOut {
            id: u64::from(n[0]),
            token_off: n[1], token_len: n[2], logprob_off: n[3], logprob_len: n[4],
            flags: n[5], finish: n[6], rc: n[7] as i32, cached_tokens: n[8],
            msg_off: n[9], msg_len: n[10], queue_us: 0, prefill_us: u64::from(n[11]),
        }).collect();
        let tokens = [1_u32, 2, 3, 4];
        let logprobs: Vec<MseLogprob> = (0..4)
            .map(|n| MseLogprob { token: n, logprob: -1.0, position: n, rank: 0 })
            .collect();
        let mut batch = batch_of(&outs);
        batch.lane = LANE_OUT;
        (batch.tokens, batch.tokens_len) = (tokens.as_ptr(), 4);
        (batch.logprobs, batch.logprobs_len) = (logprobs.as_ptr(), 4);
        (batch.bytes, batch.bytes_len) = (b"\xffabc".as_ptr(), 4);
        // SAFETY: the arrays are as long as the batch says.
        if let Ok(outputs) = unsafe { outputs(&batch) } {
            prop_assert_eq!(outputs.len(), outs.len());
            for output in outputs {
                prop_assert!(output.tokens.len() <= 4);
                prop_assert!(output.logprobs.iter().all(|l| (l.position as usize) < output.tokens.len()));
            }
        }
    }

    #[test]
    fn events_are_within_their_arrays_or_refused(
        raw in prop::collection::vec(prop::array::uniform6(number()), 0..5),
    ) {
        let kvs: Vec<MseKv> = raw.iter().map(|n| MseKv {
            r#type: n[0], tier: n[1], cause: n[2], flags: n[3], block_off: n[4], block_len: n[5],
            parent: 1.into(), namespace_id: 2.into(),
        }).collect();
        let blocks: [MseU128; 4] = [1.into(), 2.into(), 3.into(), 4.into()];
        let mut batch = batch_of(&kvs);
        batch.lane = LANE_KV;
        (batch.blocks, batch.blocks_len) = (blocks.as_ptr(), 4);
        // SAFETY: the array is as long as the batch says.
        if let Ok(items) = unsafe { kv(&batch) } {
            let resets = kvs.iter().any(|item| item.r#type == KV_RESET);
            prop_assert_eq!(items.reset, resets);
            prop_assert!(resets || items.events.len() == kvs.len());
        }
    }
}

#[test]
fn impossible_arrays_are_refused_unread() {
    // SAFETY: all zero is a valid mse_out; the arrays are refused before they are read.
    unsafe {
        let outs: [MseOut; 1] = std::mem::zeroed();
        let good = batch_of(&outs);
        assert_eq!(outputs(&good).unwrap().len(), 1);
        for bad in [
            MseBatch { len: u32::MAX, ..good },
            MseBatch { stride: 0, ..good },
            MseBatch { stride: 8, ..good },
            MseBatch { stride: 65, ..good },
            MseBatch { stride: u32::MAX, ..good },
            MseBatch { items: std::ptr::null(), ..good },
            MseBatch { items: std::ptr::without_provenance(0x1001), ..good },
            MseBatch { tokens_len: u64::MAX, ..good },
            MseBatch { tokens_len: 1, ..good },
            MseBatch { logprobs_len: 1 << 40, ..good },
            MseBatch { bytes_len: 1, ..good },
        ] {
            assert!(outputs(&bad).is_err(), "{bad:?}");
        }
    }
}

#[test]
fn items_may_be_longer_than_this_side_knows() {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct LongerOp {
        op: MseOp,
        more: u64,
    }
    let items = [1, 2].map(|op_id| LongerOp { op: MseOp { op_id, rc: 0, done: 3 }, more: 9 });
    // SAFETY: the batch describes the array as it is.
    let found = unsafe { ops(&batch_of(&items)) }.unwrap();
    assert_eq!(found.iter().map(|op| op.op_id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(items[1].more, 9);
}

#[test]
fn what_came_before_a_reset_is_void() {
    let expired = MseKv {
        r#type: KV_PIN_EXPIRED,
        tier: 0,
        cause: 0,
        flags: 0,
        block_off: 0,
        block_len: 0,
        parent: 5.into(),
        namespace_id: 0.into(),
    };
    let reset = MseKv { r#type: KV_RESET, ..expired };
    let kvs = [expired, reset, MseKv { parent: 6.into(), ..expired }];
    // SAFETY: the batch describes the array as it is.
    let items = unsafe { kv(&batch_of(&kvs)) }.unwrap();
    assert_eq!((items.len, items.reset), (3, true));
    assert_eq!(items.events, [KvEvent::PinExpired { pin_id: 6 }]);
}
