//! The engine's three threads: one sends requests to the executor, one blocks for its responses, one for its cache's
//! events. None of them polls: each call blocks until there is something, or for a moment, so that the end is seen.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{Code, Finish, HostLog, Lanes, Output, Request, Stats};
use mainstay_engine_proxy::{Command, Desk, Teller};

use crate::bridge::{Executor, Fault, Said, Told};
use crate::event::{Reader, Step};
use crate::flights::{Flight, Flights};
use crate::options::Options;
use crate::request::{Manner, ask, tokens_max};
use crate::salt::SaltIds;

/// How long a call into the executor blocks, and so how late an end is seen.
const WAIT_MS: u32 = 100;
/// How often a full OUT lane is looked at again.
const HELD_WAIT: Duration = Duration::from_millis(1);
/// How often the executor's figures are fetched.
const FIGURES_EVERY: Duration = Duration::from_millis(50);

pub(crate) const TARGET: &str = "trtllm";

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) executor: Executor,
    pub(crate) desk: Arc<Desk>,
    pub(crate) teller: Teller,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) log: HostLog,
    pub(crate) manner: Manner,
    pub(crate) vocab: u32,
    pub(crate) block_tokens: u32,
    pub(crate) blocks: u64,
    flights: Mutex<Flights>,
    has_stopped: AtomicBool,
    blocks_used: AtomicU64,
    paused: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        executor: Executor,
        options: &Options,
        blocks: u64,
        desk: Arc<Desk>,
        teller: Teller,
        lanes: Arc<Lanes>,
        log: HostLog,
    ) -> Self {
        Self {
            executor,
            desk,
            teller,
            lanes,
            log,
            manner: Manner {
                ends: options.ends.clone(),
                allotted_ms: options.allotted_ms,
                context_tokens_max: options.context_tokens_max,
            },
            vocab: options.vocab,
            block_tokens: options.block_tokens,
            blocks,
            flights: Mutex::default(),
            has_stopped: AtomicBool::new(false),
            blocks_used: AtomicU64::new(0),
            paused: AtomicU64::new(0),
        }
    }

    // Each change under the lock is one whole step, so a poisoned table is as good as any.
    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::Acquire)
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            blocks_used: self.blocks_used.load(Ordering::Relaxed).min(self.blocks),
            preemptions: self.paused.load(Ordering::Relaxed),
            ..self.teller.count(self.desk.stats())
        }
    }

    /// The executor is at its end, and the engine with it.
    pub(crate) fn fail(&self, reason: &str) {
        if !self.has_stopped.swap(true, Ordering::AcqRel) {
            self.log.error(TARGET, reason);
            self.desk.die(reason);
        }
    }

    /// Sends what the host asks for, until the desk is closed.
    pub(crate) fn send(&self, commands: &mpsc::Receiver<Command>) {
        let mut salts = SaltIds::default();
        while let Ok(command) = commands.recv() {
            match command {
                Command::Snapshot(op_id) if self.has_stopped() => {
                    self.lanes.op(op_id, Code::Unavailable.rc(), 0);
                }
                Command::Snapshot(op_id) => self.teller.snapshot(op_id),
                // Those have had their ends.
                Command::Submit(_) | Command::Cancel(_) if self.has_stopped() => {}
                Command::Submit(request) => self.enqueue(&request, &mut salts),
                Command::Cancel(id) => {
                    let native = self.flights().native(id);
                    // An id may be another request's by now.
                    if let Some(native) = native.filter(|_| self.desk.is_cancelled(id)) {
                        self.cancel(native);
                    }
                }
            }
        }
        self.has_stopped.store(true, Ordering::Release);
        let left = self.flights().natives();
        left.into_iter().for_each(|native| self.cancel(native));
    }

    fn enqueue(&self, request: &Request, salts: &mut SaltIds) {
        let id = request.id;
        if self.desk.is_cancelled(id) {
            return self.desk.end(Output { id, ..Output::default() }, Finish::Cancelled, false);
        }
        let (salt, has_forgotten) = salts.of(request.namespace);
        if has_forgotten {
            self.log.warn(TARGET, "more namespaces than are remembered: all blocks are forgotten");
            self.teller.forget();
        }
        self.teller.salts().asked(request.namespace, &request.tokens);
        let ask = ask(request, salt, &self.manner);
        let flight = Flight {
            native: None,
            prompt: request.tokens.len() as u32,
            tokens_max: tokens_max(request, &self.manner),
            cached: self.teller.held_tokens(request.namespace, &request.tokens),
            end_id: ask.has_end.then_some(ask.end_id.cast_unsigned()),
            began: Instant::now(),
            said: 0,
            has_begun: false,
        };
        self.flights().enter(id, flight);
        match self.executor.enqueue(&ask) {
            Ok(native) => self.flights().number(id, native),
            Err(fault) => self.refused(id, &fault),
        }
    }

    fn refused(&self, id: u64, fault: &Fault) {
        if !self.executor.is_open() {
            return self.fail(&format!("the executor takes no requests any more: {fault}"));
        }
        let Some(flight) = self.flights().remove(id) else { return };
        let message = format!("TensorRT-LLM refused the request: {fault}");
        let finish = Finish::Error { rc: Code::Internal.rc(), message };
        self.desk.end(Output { id, ..Output::default() }, finish, flight.has_begun);
    }

    fn cancel(&self, native: u64) {
        if let Err(fault) = self.executor.cancel(native) {
            self.log.warn(TARGET, &format!("a request cannot be cancelled: {fault}"));
        }
    }

    /// Takes responses, as long as the host keeps up, or drains: whoever waits for the last ends need not poll meanwhile,
    /// and the lane merges what does not fit.
    pub(crate) fn hear(&self) {
        while !self.has_stopped() {
            if !self.desk.has_room() && !self.desk.is_draining() {
                std::thread::sleep(HELD_WAIT);
                continue;
            }
            match self.executor.responses(WAIT_MS) {
                Ok(all) if all.is_empty() => {
                    if !self.executor.is_open() && !self.has_stopped() {
                        self.fail("the executor has shut down");
                    }
                }
                Ok(all) => all.into_iter().for_each(|said| self.land(said)),
                Err(fault) => self.fail(&format!("the executor failed while awaited: {fault}")),
            }
        }
    }

    fn land(&self, said: Said) {
        let mut flights = self.flights();
        let Some(landed) = flights.land(said, self.vocab, self.block_tokens) else { return };
        let begun = flights.begun();
        drop(flights);
        let output = landed.output;
        let said = output.tokens.len() as u64;
        self.desk.count(|stats| stats.decode_tokens += said);
        if let Some(native) = landed.left_over {
            self.cancel(native);
        }
        match landed.finish {
            None => {
                if output.first {
                    self.desk.set_running(begun);
                }
                self.desk.output(output);
            }
            Some(finish) => {
                if landed.had_begun {
                    let (prompt, hit) = (u64::from(landed.prompt), u64::from(landed.cached));
                    self.desk.count(|stats| {
                        stats.query_tokens += prompt;
                        stats.hit_tokens += hit;
                        stats.prefill_tokens += prompt - hit.min(prompt);
                    });
                }
                self.desk.set_running(begun);
                self.desk.end(output, finish, false);
            }
        }
    }

    /// Follows the cache's events; `first` came while the engine was opened.
    pub(crate) fn follow(&self, mut reader: Reader, first: &[Told]) {
        self.apply(&mut reader, first);
        let mut fetched = Instant::now();
        while !self.has_stopped() {
            match self.executor.events(WAIT_MS) {
                Ok(told) => self.apply(&mut reader, &told),
                Err(fault) => return self.fail(&format!("the cache's events failed: {fault}")),
            }
            if fetched.elapsed() >= FIGURES_EVERY {
                fetched = Instant::now();
                self.fetch_figures();
            }
        }
    }

    fn apply(&self, reader: &mut Reader, told: &[Told]) {
        let had_ranks = reader.has_ranks;
        let mut events = Vec::new();
        for step in told.iter().flat_map(|told| reader.read(told)) {
            match step {
                Step::Apply(event) => events.push(event),
                Step::Gap => {
                    self.log.warn(TARGET, "cache events were lost; all blocks are forgotten");
                    events.clear();
                    self.teller.forget();
                }
            }
        }
        if reader.has_ranks && !had_ranks {
            self.log.warn(TARGET, "attention parallelism: the cache of its ranks is not indexed");
        }
        if !events.is_empty() {
            self.teller.apply(events);
        }
    }

    fn fetch_figures(&self) {
        // A figure that can't be had is not worth an engine.
        let Ok(figures) = self.executor.figures() else { return };
        if figures.steps > 0 {
            self.blocks_used.store(figures.blocks_used, Ordering::Relaxed);
            self.paused.fetch_add(figures.paused, Ordering::Relaxed);
        }
    }
}
