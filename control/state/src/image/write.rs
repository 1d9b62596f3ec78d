//! The writing half of the image: the same order as `read`, field by field.

use mainstay_index::{BlockIndex, RunSnapshot};
use mainstay_types::{FenceCause, PinState};

use super::kept;
use super::regions::{write_region, write_scope};
use super::responses;
use super::sink::Sink;
use super::tenants;
use crate::machine::Machine;
use crate::pins::Pin;
use crate::version::TENANTS_AND_REGIONS;
use crate::workers::{Worker, WorkerState};

pub(super) const WORKER_LIVE: u8 = 0;
pub(super) const WORKER_LEASE_EXPIRED: u8 = 1;
pub(super) const WORKER_LEFT: u8 = 2;

/// Everything but the block index, as far as `version` has words for it.
pub(super) fn state(sink: &mut impl Sink, machine: &Machine, version: u8) {
    let all = version >= TENANTS_AND_REGIONS;
    sink.u64(machine.applied.0);
    let time = machine.time;
    for value in [time.now_ms, time.tenure.term, time.tenure.node, time.tenure.boot, time.mono_ms] {
        sink.u64(value);
    }
    sink.flag(machine.hash_key.is_some());
    if let Some(key) = machine.hash_key {
        sink.put(&key.0);
    }
    sink.u32(machine.workers.last_id());
    sink.count(machine.workers.len());
    for worker in machine.workers.iter() {
        write_worker(sink, worker);
        if all {
            write_region(sink, &worker.region);
        }
    }
    sink.count(machine.pins.live_count());
    for pin in machine.pins.live() {
        write_pin(sink, pin, all);
    }
    sink.count(machine.pins.ended().len());
    for pin in machine.pins.ended().filter_map(|id| machine.pins.get(*id)) {
        write_pin(sink, pin, all);
        sink.flag(pin.state == PinState::Released);
        sink.text(&pin.reason);
    }
    if all {
        tenants::write(sink, machine);
        responses::write(sink, machine);
        sink.u64(machine.raised.0);
    }
}

fn write_worker(sink: &mut impl Sink, worker: &Worker) {
    sink.u32(worker.id.0);
    sink.text(&worker.name);
    sink.text(&worker.address);
    sink.u64(worker.epoch.0);
    sink.u64(worker.incarnation);
    sink.text(&worker.model.name);
    sink.text(&worker.model.revision);
    sink.u32(worker.model.block_tokens);
    sink.u32(worker.model.context_tokens_max);
    sink.u64(worker.blocks_total);
    sink.u8(match worker.state {
        WorkerState::Live => WORKER_LIVE,
        WorkerState::Fenced(FenceCause::LeaseExpired) => WORKER_LEASE_EXPIRED,
        WorkerState::Fenced(FenceCause::Left) => WORKER_LEFT,
    });
    sink.u64(worker.next_sequence.0);
    sink.flag(worker.cut.is_some());
    if let Some(mark) = worker.cut {
        sink.u64(mark.sequence.0);
        sink.u64(mark.digest);
        sink.u64(mark.blocks);
    }
    sink.u64(worker.changed_index.0);
}

/// What live and ended pins have in common. A live pin's state follows from its holders and is not written.
fn write_pin(sink: &mut impl Sink, pin: &Pin, all: bool) {
    let request = &pin.request;
    sink.u128(request.id.0);
    sink.text(request.tenant.as_str());
    sink.u128(request.namespace.0);
    sink.flag(request.owner.is_some());
    if let Some(owner) = &request.owner {
        sink.text(owner.as_str());
    }
    sink.count(request.blocks.len());
    for hash in &request.blocks {
        sink.u128(hash.0);
    }
    sink.u32(request.prefix_tokens);
    sink.u64(request.ttl_ms);
    sink.u8(request.priority);
    sink.u32(request.copies_min);
    if all {
        write_scope(sink, &request.scope);
    }
    for value in [pin.created_ms, pin.expires_ms, pin.created_index.0, pin.changed_index.0] {
        sink.u64(value);
    }
    // Without scopes, enough whole copies anywhere make a pin active, and readers insist on it.
    let copies = || pin.is_live() && pin.copies() >= request.copies_min as usize;
    sink.flag(pin.ever_active || !all && copies());
    sink.count(pin.holders.len());
    for (worker, held) in &pin.holders {
        sink.u32(worker.0);
        sink.u32(*held);
    }
    if all {
        kept::write_mark(sink, pin.request.tokens.as_ref());
        kept::write_keeping(sink, &pin.keeping);
    }
}

/// The block index, run by run.
pub(super) fn blocks(sink: &mut impl Sink, index: &BlockIndex) {
    sink.u64(index.refused_blocks());
    let runs = index.snapshot();
    sink.count(runs.len());
    for run in &runs {
        write_run(sink, run);
    }
}

pub(super) fn write_run(sink: &mut impl Sink, run: &RunSnapshot) {
    sink.u128(run.namespace.0);
    sink.u64(run.parent);
    sink.count(run.keys.len());
    for key in &run.keys {
        sink.u64(key.0);
    }
    sink.count(run.holders.len());
    for (worker, held) in &run.holders {
        sink.u32(worker.0);
        sink.count(held.len());
        for stretch in held {
            sink.u32(stretch.from);
            sink.u32(stretch.to);
            sink.u8(stretch.tiers.bits());
        }
    }
}

/// What stands for the block index in a digest.
pub(super) fn block_digests(sink: &mut impl Sink, index: &BlockIndex) {
    sink.u64(index.refused_blocks());
    for worker in index.workers() {
        sink.u32(worker.0);
        sink.u64(index.worker_block_count(worker));
        sink.u64(index.digest(worker));
    }
}
