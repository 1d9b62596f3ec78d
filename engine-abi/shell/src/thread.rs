//! The engine's thread: commands in, steps, events and outputs out.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, HostLog, KvEvent, Lanes};

use crate::door::{Ask, Command, Door};
use crate::{Wake, Work};

/// How often a full OUT lane is looked at again.
const HELD_WAIT: Duration = Duration::from_millis(1);

/// A door with its thread. Dropping it ends and joins the thread.
#[derive(Debug)]
pub struct Shell<W: Work> {
    /// Where the host knocks.
    pub door: Arc<Door<W>>,
    thread: Option<JoinHandle<()>>,
}

impl<W: Work + Send + 'static> Shell<W> {
    /// Starts the thread of the engine `name`. `requests_max` run at a time; times are counted from `started`.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn open(
        name: &'static str,
        work: W,
        requests_max: usize,
        started: Instant,
        lanes: Arc<Lanes>,
        log: HostLog,
    ) -> Result<Self, EngineError> {
        let door = Arc::new(Door::new(work.stats(), requests_max));
        let theirs = Arc::clone(&door);
        let body = move || {
            let works = AssertUnwindSafe(|| run(work, &theirs, &lanes, started));
            let why = match catch_unwind(works) {
                Ok(None) => return,
                Ok(Some(broken)) => broken,
                Err(_) => "the engine's thread has panicked".to_owned(),
            };
            log.error(name, &why);
            die(&theirs, &lanes, why);
        };
        let thread = std::thread::Builder::new().name(format!("{name}-engine")).spawn(body);
        let thread =
            thread.map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))?;
        Ok(Self { door, thread: Some(thread) })
    }
}

impl<W: Work> Drop for Shell<W> {
    fn drop(&mut self) {
        self.door.stop();
        if let Some(thread) = self.thread.take() {
            // Its panics are caught inside; there is nothing more to learn from it.
            let _ = thread.join();
        }
    }
}

/// Works until the engine is dropped, or is broken: then it says why.
fn run<W: Work>(mut work: W, door: &Door<W>, lanes: &Lanes, started: Instant) -> Option<String> {
    let clock = || started.elapsed().as_micros() as u64;
    let mut wake = Wake::Idle;
    // One a step: they copy megabytes, and those that decode would wait for all of them.
    let mut transfers = VecDeque::new();
    loop {
        let wait = match wake {
            _ if !transfers.is_empty() => Some(Duration::ZERO),
            Wake::Now => Some(Duration::ZERO),
            Wake::Held => Some(HELD_WAIT),
            Wake::At(at_us) => Some(Duration::from_micros(at_us.saturating_sub(clock()))),
            Wake::Idle => None,
        };
        let Some(commands) = door.take(wait) else { break };
        for command in commands {
            match command {
                Command::Ask(ask @ (Ask::Export(_) | Ask::Import(_))) => transfers.push_back(ask),
                command => obey(command, &mut work, door, lanes, clock()),
            }
        }
        if let Some(transfer) = transfers.pop_front() {
            answer(transfer, &mut work, lanes, clock());
        }
        wake = work.step(&clock, lanes.output_has_room());
        report(&mut work, door, lanes, clock());
        if let Some(why) = work.broken() {
            let why = why.to_owned();
            transfers.into_iter().for_each(|ask| refuse(Command::<W>::Ask(ask), lanes));
            return Some(why);
        }
    }
    let left = std::mem::take(&mut door.lock().commands);
    for command in transfers.into_iter().map(Command::Ask).chain(left) {
        refuse(command, lanes);
    }
    work.cancel_all(clock());
    report(&mut work, door, lanes, clock());
    door.end_left(lanes, &Finish::Cancelled);
    None
}

fn obey<W: Work>(command: Command<W>, work: &mut W, door: &Door<W>, lanes: &Lanes, now_us: u64) {
    match command {
        Command::Submit(request) => work.submit(*request, now_us),
        Command::HandIn(submit) => submit(work, now_us),
        Command::End(id, finish) => door.end_one(id, finish, lanes),
        Command::Cancel(id) => work.cancel(id, now_us),
        Command::Ask(ask) => answer(ask, work, lanes, now_us),
    }
}

fn answer<W: Work>(ask: Ask, work: &mut W, lanes: &Lanes, now_us: u64) {
    match ask {
        Ask::Pin(pin) => match work.pin(pin.pin_id, &pin.blocks, pin.ttl_ms, now_us) {
            Ok(held) => lanes.op(pin.op_id, 0, held),
            Err(_) => lanes.op(pin.op_id, Code::Exhausted.rc(), 0),
        },
        Ask::Unpin(op_id, pin_id) => match work.unpin(pin_id) {
            Some(held) => lanes.op(op_id, 0, held),
            None => lanes.op(op_id, Code::NotFound.rc(), 0),
        },
        Ask::Lease(change) => work.lease(&change, now_us),
        Ask::Snapshot(op_id) => {
            let count = snapshot(work, lanes);
            lanes.op(op_id, 0, count);
        }
        Ask::Export(mut export) => {
            let blocks = export.blocks().to_vec();
            let copied = work.export(&blocks, export.bytes_mut());
            export.end(lanes, 0, copied);
        }
        Ask::Import(import) => match work.import(&import, now_us) {
            Ok(held) => {
                // What was taken in is told before the host hears that it is there.
                tell(work, lanes);
                import.end(lanes, 0, held);
            }
            Err(code) => import.end(lanes, code.rc(), 0),
        },
    }
}

fn snapshot<W: Work>(work: &mut W, lanes: &Lanes) -> u32 {
    lanes.begin_snapshot();
    work.snapshot(|event| lanes.kv(event))
}

/// Carries events away.
fn tell<W: Work>(work: &mut W, lanes: &Lanes) {
    if lanes.kv_overflowed() || work.blocks().has_lost_events() {
        snapshot(work, lanes);
    }
    for event in work.drain_events() {
        debug_assert!(
            !matches!(event, KvEvent::Stored { snapshot: true, .. }),
            "news are no snapshot"
        );
        lanes.kv(event);
    }
}

/// Carries events and outputs away and publishes the figures.
fn report<W: Work>(work: &mut W, door: &Door<W>, lanes: &Lanes, now_us: u64) {
    tell(work, lanes);
    let figures = (work.stats(), work.backlog_ms(now_us));
    door.report(figures, work.drain_outputs(), lanes);
}

fn refuse<W>(command: Command<W>, lanes: &Lanes) {
    let rc = Code::Unavailable.rc();
    // Requests that are live have their ends from whoever refuses.
    let Command::Ask(ask) = command else { return };
    match ask {
        Ask::Lease(_) => {}
        Ask::Pin(pin) => lanes.op(pin.op_id, rc, 0),
        Ask::Unpin(op_id, _) | Ask::Snapshot(op_id) => lanes.op(op_id, rc, 0),
        Ask::Export(export) => export.end(lanes, rc, 0),
        Ask::Import(import) => import.end(lanes, rc, 0),
    }
}

/// The thread has panicked or its work is broken: nobody may wait for it any more.
fn die<W: Work>(door: &Door<W>, lanes: &Lanes, why: String) {
    let mut inbox = door.lock();
    inbox.is_dead = true;
    let commands = std::mem::take(&mut inbox.commands);
    drop(inbox);
    commands.into_iter().for_each(|command| refuse(command, lanes));
    door.end_left(lanes, &Finish::Error { rc: Code::Internal.rc(), message: why });
    lanes.close();
}
