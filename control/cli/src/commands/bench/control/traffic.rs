//! Frames made beforehand: the churn of agents, folded into numbered frames as a worker would.

use std::collections::HashMap;
use std::sync::Arc;

use mainstay_index::churn::{Churn, ChurnConfig, ChurnOp};
use mainstay_index::{BlockIndex, BlockKey};
use mainstay_proto::convert::event_to_wire;
use mainstay_proto::v1;
use mainstay_types::{BlockEvent, SequenceHash, Tier, WorkerId};

/// Neighbours from which a removal travels as a run record.
const RUN_FROM: usize = 3;

/// The stream of one worker.
pub(super) struct Stream {
    pub(super) frames: Arc<Vec<v1::EventFrame>>,
    /// Block operations up to and with each frame.
    pub(super) ops: Vec<u64>,
}

pub(super) struct Traffic {
    pub(super) streams: Vec<Stream>,
    pub(super) block_ops: u64,
    pub(super) wire_bytes: u64,
}

/// A key as the hash that it is the low half of.
fn hash(key: BlockKey) -> SequenceHash {
    let high = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    SequenceHash(u128::from(high) << 64 | u128::from(key.0))
}

fn parent_hash(parent: u64, namespace: u128) -> SequenceHash {
    if parent == namespace as u64 { SequenceHash(namespace) } else { hash(BlockKey(parent)) }
}

fn event(op: &ChurnOp<'_>, all_held: impl Fn(&[BlockKey]) -> bool) -> BlockEvent {
    let tier = Tier::Device;
    match *op {
        ChurnOp::Stored { namespace, parent, blocks, .. } => {
            let parent = parent_hash(parent, namespace.0);
            let blocks = blocks.iter().map(|b| hash(*b)).collect();
            BlockEvent::Stored { namespace, parent, blocks, tier }
        }
        // The churn names neighbours of one chain, deepest first, holes that were there before included.
        ChurnOp::Removed { blocks, .. } if blocks.len() >= RUN_FROM && all_held(blocks) => {
            let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
            BlockEvent::Truncated { tail: hash(blocks[0]), count, tier }
        }
        ChurnOp::Removed { blocks, .. } => {
            let blocks = blocks.iter().map(|b| hash(*b)).collect();
            BlockEvent::Removed { blocks, tier }
        }
        ChurnOp::Cleared { .. } => BlockEvent::Cleared,
    }
}

fn worker_of(op: &ChurnOp<'_>) -> WorkerId {
    match *op {
        ChurnOp::Stored { worker, .. }
        | ChurnOp::Removed { worker, .. }
        | ChurnOp::Cleared { worker } => worker,
    }
}

/// Makes about `block_ops` operations for the workers registered as `workers`.
pub(super) fn make(
    workers: &[v1::RegisterReply],
    block_ops: u64,
    frame_blocks: usize,
) -> anyhow::Result<Traffic> {
    let count = u32::try_from(workers.len()).unwrap_or(u32::MAX);
    let config = ChurnConfig { workers: count, sessions: count * 16, ..ChurnConfig::default() };
    let mut churn = Churn::new(config);
    let mut index = BlockIndex::new(u64::MAX);
    let mut slots: HashMap<WorkerId, usize> = HashMap::new();
    let empty = || Stream { frames: Arc::default(), ops: Vec::new() };
    let mut streams: Vec<Stream> = workers.iter().map(|_| empty()).collect();
    let mut open: Vec<(Vec<v1::BlockEvent>, usize, u64)> = vec![Default::default(); workers.len()];
    let (mut made, mut wire_bytes) = (0, 0);
    while made < block_ops {
        let op = churn.next_op();
        let ops = op.block_count();
        let next = slots.len();
        let slot = *slots.entry(worker_of(&op)).or_insert(next);
        anyhow::ensure!(slot < workers.len(), "the churn has more workers than it was asked for");
        let worker = WorkerId(workers[slot].worker);
        let event = event(&op, |keys| index.held_of(worker, keys) == keys.len() as u64);
        index.apply(worker, &event);
        made += ops;
        let (events, blocks, total) = &mut open[slot];
        *blocks += event.block_count();
        *total += ops;
        events.push(event_to_wire(&event));
        if *blocks < frame_blocks {
            continue;
        }
        let stream = &mut streams[slot];
        let frame = v1::EventFrame {
            worker: worker.0,
            epoch: workers[slot].epoch,
            sequence: stream.frames.len() as u64 + 1,
            events: core::mem::take(events),
            digest: index.digest(worker),
            blocks: index.worker_block_count(worker),
        };
        wire_bytes += prost_bytes(&frame);
        Arc::make_mut(&mut stream.frames).push(frame);
        stream.ops.push(*total);
        *blocks = 0;
    }
    let block_ops = streams.iter().filter_map(|s| s.ops.last()).sum();
    Ok(Traffic { streams, block_ops, wire_bytes })
}

fn prost_bytes(frame: &v1::EventFrame) -> u64 {
    use prost::Message;
    frame.encoded_len() as u64
}
