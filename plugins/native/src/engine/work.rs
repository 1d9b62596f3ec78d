//! The engine's thread: commands in, steps, events and outputs out.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{Code, Finish, KvEvent, Lanes, Output};

use super::{Command, Shared};
use crate::scheduler::{Scheduler, Step};

/// How often a full OUT lane is looked at again.
const HELD_WAIT: Duration = Duration::from_millis(1);

/// Works until the engine is dropped. Times are counted from `started`.
pub(super) fn run(mut scheduler: Scheduler, shared: &Shared, lanes: &Lanes, started: Instant) {
    let clock = || started.elapsed().as_micros() as u64;
    let mut step = Step::Idle;
    // One a step: they copy megabytes, and those that decode would wait for all of them.
    let mut transfers = VecDeque::new();
    loop {
        let wait = match step {
            _ if !transfers.is_empty() => Some(Duration::ZERO),
            Step::Worked => Some(Duration::ZERO),
            Step::Held => Some(HELD_WAIT),
            Step::Idle => scheduler
                .next_expiry_us()
                .map(|at| Duration::from_micros(at.saturating_sub(clock()))),
        };
        let Some(commands) = take(shared, wait) else { break };
        for command in commands {
            if matches!(command, Command::Export(_) | Command::Import(_)) {
                transfers.push_back(command);
            } else {
                obey(command, &mut scheduler, lanes, clock());
            }
        }
        if let Some(transfer) = transfers.pop_front() {
            obey(transfer, &mut scheduler, lanes, clock());
        }
        step = scheduler.step(&clock, lanes.output_has_room());
        report(&mut scheduler, shared, lanes);
    }
    let left = std::mem::take(&mut shared.lock().commands);
    for command in transfers.into_iter().chain(left) {
        refuse(command, lanes);
    }
    scheduler.end_all(&Finish::Cancelled, clock());
    report(&mut scheduler, shared, lanes);
    end_left(shared, lanes, &Finish::Cancelled);
}

/// The queued commands; waits for some where there is nothing else to do. `None` when the engine is
/// dropped.
fn take(shared: &Shared, wait: Option<Duration>) -> Option<VecDeque<Command>> {
    let mut inbox = shared.lock();
    if inbox.commands.is_empty() && !inbox.stopping {
        inbox = match wait {
            Some(Duration::ZERO) => inbox,
            Some(wait) => {
                shared.bell.wait_timeout(inbox, wait).unwrap_or_else(PoisonError::into_inner).0
            }
            None => shared.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner),
        };
    }
    (!inbox.stopping).then(|| std::mem::take(&mut inbox.commands))
}

fn obey(command: Command, scheduler: &mut Scheduler, lanes: &Lanes, now_us: u64) {
    match command {
        Command::Submit(request, guide) => {
            scheduler.submit_guided(*request, guide.map(|guide| *guide), now_us);
        }
        Command::Refuse(id, finish) => scheduler.refuse(id, finish),
        Command::Cancel(id) => scheduler.cancel(id, now_us),
        Command::Pin(pin) => match scheduler.pin(pin.pin_id, &pin.blocks, pin.ttl_ms, now_us) {
            Ok(held) => lanes.op(pin.op_id, 0, held),
            Err(_) => lanes.op(pin.op_id, Code::Exhausted.rc(), 0),
        },
        Command::Unpin { op_id, pin_id } => match scheduler.unpin(pin_id) {
            Some(held) => lanes.op(op_id, 0, held),
            None => lanes.op(op_id, Code::NotFound.rc(), 0),
        },
        Command::Lease(change) => scheduler.lease(&change, now_us),
        Command::Snapshot { op_id } => {
            let count = snapshot(scheduler, lanes);
            lanes.op(op_id, 0, count);
        }
        Command::Export(mut export) => {
            let blocks = export.blocks().to_vec();
            let copied = scheduler.export(&blocks, export.bytes_mut());
            export.end(lanes, 0, copied);
        }
        Command::Import(import) => match scheduler.import(&import, now_us) {
            Ok(held) => {
                // What was taken in is told before the host hears that it is there.
                tell(scheduler, lanes);
                import.end(lanes, 0, held);
            }
            Err(code) => import.end(lanes, code.rc(), 0),
        },
    }
}

fn snapshot(scheduler: &mut Scheduler, lanes: &Lanes) -> u32 {
    lanes.begin_snapshot();
    scheduler.snapshot(|event| lanes.kv(event))
}

/// Carries events away.
fn tell(scheduler: &mut Scheduler, lanes: &Lanes) {
    if lanes.kv_overflowed() || scheduler.has_lost_events() {
        snapshot(scheduler, lanes);
    }
    for event in scheduler.drain_events() {
        debug_assert!(
            !matches!(event, KvEvent::Stored { snapshot: true, .. }),
            "news are no snapshot"
        );
        lanes.kv(event);
    }
}

/// Carries events and outputs away and publishes the figures.
fn report(scheduler: &mut Scheduler, shared: &Shared, lanes: &Lanes) {
    tell(scheduler, lanes);
    let (stats, backlog_ms) = (scheduler.stats(), scheduler.backlog_ms());
    let outputs = scheduler.drain_outputs();
    let mut inbox = shared.lock();
    inbox.stats = stats;
    inbox.backlog_ms = backlog_ms;
    // An id is free before its final output can be seen, so that it can be used again at once.
    for output in outputs.as_slice().iter().filter(|output| output.finish.is_some()) {
        if let Some(live) = inbox.live.remove(&output.id) {
            inbox.live_tokens -= live.tokens;
        }
    }
    let quiet = inbox.live.is_empty();
    // Under the lock, so that whoever sees the engine quiet finds every final in the lane.
    outputs.for_each(|output| lanes.output(output));
    drop(inbox);
    if quiet {
        shared.quiet.notify_all();
    }
}

/// Ends the requests that the scheduler never saw.
fn end_left(shared: &Shared, lanes: &Lanes, finish: &Finish) {
    let mut inbox = shared.lock();
    for id in std::mem::take(&mut inbox.live).into_keys() {
        lanes.output(Output { id, finish: Some(finish.clone()), ..Output::default() });
    }
    drop(inbox);
    shared.quiet.notify_all();
}

fn refuse(command: Command, lanes: &Lanes) {
    match command {
        Command::Submit(..) | Command::Refuse(..) | Command::Cancel(_) | Command::Lease(_) => {}
        Command::Pin(pin) => lanes.op(pin.op_id, Code::Unavailable.rc(), 0),
        Command::Unpin { op_id, .. } | Command::Snapshot { op_id } => {
            lanes.op(op_id, Code::Unavailable.rc(), 0);
        }
        Command::Export(export) => export.end(lanes, Code::Unavailable.rc(), 0),
        Command::Import(import) => import.end(lanes, Code::Unavailable.rc(), 0),
    }
}

/// The thread has panicked: nobody may wait for it any more.
pub(super) fn die(shared: &Shared, lanes: &Lanes) {
    let mut inbox = shared.lock();
    inbox.dead = true;
    shared.forms_bell.notify_one();
    let commands = std::mem::take(&mut inbox.commands);
    drop(inbox);
    commands.into_iter().for_each(|command| refuse(command, lanes));
    let message = "the engine's thread has died".to_owned();
    end_left(shared, lanes, &Finish::Error { rc: Code::Internal.rc(), message });
    lanes.close();
}
