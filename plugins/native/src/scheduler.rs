//! Continuous batching on one thread: which requests run, which rows each step computes, and what
//! comes of them.
//!
//! It has no thread, lock or clock of its own. The shell's loop hands it commands, calls
//! [`Work::step`] and carries away events and outputs. Order of service is priority, then
//! arrival. A step computes every running request's next token first and fills the rest of its
//! budget with chunks of prompts that end on block bounds. When blocks run out, the last in order
//! gives its blocks back and is computed anew later, mostly from the cache. Each request ends in
//! exactly one final output; one that could wait for ever is ended with an error instead.

mod admit;
mod drawn;
mod plan;
mod sequence;
mod transfer;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Health, Import, Output, Request, Stats};
use mainstay_kernels::Pool;

use crate::compute::{Compute, Failure};
use crate::draft::Drafter;
use crate::guided::Guide;
use crate::model::Batch;
use drawn::Drawn;
use mainstay_engine_blocks::{BlockPool, Urgency};
use mainstay_engine_shell::{Cache, Place, Queue, Wake, Work};
pub(crate) use plan::DRAFT_ROWS_MAX;
use sequence::{Drawing, Sequence, completes};

/// What bounds a scheduler; see the engine's options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Tokens per block.
    pub block_tokens: usize,
    /// Blocks of the cache.
    pub blocks: u32,
    /// Share of the cache that pins may hold.
    pub pin_fraction: f64,
    /// Rows per step; at least `requests_max` and one block.
    pub step_tokens_max: usize,
    /// The longest sequence.
    pub context_tokens_max: usize,
    /// Requests that run at a time.
    pub requests_max: usize,
    /// Tokens that a request may guess in a step; none turns it off.
    pub draft_tokens_max: usize,
    /// The secret of sequence hashes.
    pub hash_key: HashKey,
}

/// Requests, cache and model of one engine.
pub struct Scheduler {
    compute: Box<dyn Compute>,
    threads: Pool,
    limits: Limits,
    cache: Cache,
    waiting: Queue<Drawing>,
    /// In the order of service.
    #[expect(
        clippy::vec_box,
        reason = "sequences move between here and the queue, in the middle too"
    )]
    running: Vec<Box<Sequence>>,
    places: HashMap<u64, Place>,
    arrivals: u64,
    urgency: Urgency,
    seeds: RandomState,
    outputs: Vec<Output>,
    batch_tokens: Vec<u32>,
    logits_rows: Vec<u32>,
    counters: Stats,
    /// Tokens of the waiting requests.
    waiting_tokens: u64,
    /// Rows per millisecond of late, for advice on when to come again.
    rows_per_ms: f64,
    /// Why nothing will be computed again.
    broken: Option<String>,
}

impl Scheduler {
    /// A scheduler over a model whose cache is empty; `threads` draw tokens, and compute where the CPU does.
    #[must_use]
    pub fn new(compute: Box<dyn Compute>, threads: Pool, limits: Limits) -> Self {
        Self {
            cache: Cache::new(
                limits.hash_key,
                limits.block_tokens,
                limits.blocks,
                limits.pin_fraction,
            ),
            waiting: Queue::new(),
            running: Vec::new(),
            places: HashMap::new(),
            arrivals: 0,
            urgency: Urgency::default(),
            seeds: RandomState::new(),
            outputs: Vec::new(),
            batch_tokens: Vec::new(),
            logits_rows: Vec::new(),
            counters: Stats { health: Health::Ok, ..Stats::default() },
            waiting_tokens: 0,
            rows_per_ms: 1.0,
            broken: None,
            compute,
            threads,
            limits,
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The model, and where it computes.
    #[must_use]
    pub fn compute(&self) -> &dyn Compute {
        &*self.compute
    }

    /// Bytes of one cache block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.compute.block_bytes()
    }

    /// Queues a request whose output follows `guide`, which was made from its form.
    pub fn submit_guided(&mut self, request: Request, guide: Option<Guide>, now_us: u64) {
        let id = request.id;
        if let Err(error) = check(&request, &self.limits, self.compute.config().vocab) {
            self.outputs.push(failure(Output { id, ..Output::default() }, error.rc, error.message));
            return;
        }
        self.arrivals += 1;
        self.urgency.note(request.priority, now_us / 1000);
        let seed = self.seeds.hash_one((self.arrivals, id));
        let eos_tokens = &self.compute.config().eos_tokens;
        let drafter = Drafter::new(self.limits.draft_tokens_max);
        let own = Drawing::new(&request, guide, eos_tokens, seed, drafter);
        let sequence = Sequence::new(request, own, self.arrivals, now_us, &self.cache.grid);
        if self.places.insert(id, sequence.place).is_some() {
            // The engine refuses live ids at the door; should one slip through, the former keeps
            // its place.
            return;
        }
        self.enqueue(Box::new(sequence));
    }

    fn enqueue(&mut self, sequence: Box<Sequence>) {
        self.waiting_tokens += sequence.tokens.len() as u64;
        self.waiting.insert(sequence.place, sequence);
    }

    fn dequeue(&mut self, place: Place) -> Option<Box<Sequence>> {
        let sequence = self.waiting.remove(&place)?;
        self.waiting_tokens -= sequence.tokens.len() as u64;
        Some(sequence)
    }

    /// Gives a request's blocks back and reports its end, with its last token where there is one.
    fn end(&mut self, sequence: Box<Sequence>, now_us: u64, last: Option<Output>, finish: Finish) {
        let mut sequence = sequence;
        self.cache.give_back(&mut sequence, now_us);
        self.places.remove(&sequence.id);
        let output = last.unwrap_or_else(|| sequence.last_output());
        self.outputs.push(Output { finish: Some(finish), ..output });
    }

    /// Whether a step could do anything for a request.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        !self.places.is_empty()
    }

    /// Runs the model over the planned rows and draws tokens for each sequence that is complete.
    fn draw(&mut self) -> Result<Vec<Drawn>, Failure> {
        self.batch_tokens.clear();
        self.logits_rows.clear();
        let mut spans = Vec::with_capacity(self.running.len());
        for sequence in self.running.iter().filter(|s| s.own.step_rows > 0) {
            let end = sequence.computed + sequence.own.known_rows();
            spans.push(mainstay_kernels::Span {
                block_table: sequence.table.slots(),
                start: sequence.computed,
                rows: sequence.own.step_rows,
                row_offset: self.batch_tokens.len(),
            });
            self.batch_tokens.extend_from_slice(&sequence.tokens[sequence.computed..end]);
            if end == sequence.tokens.len() {
                let last = self.batch_tokens.len() as u32 - 1;
                self.logits_rows.extend(last..=last + sequence.own.draft.len() as u32);
            }
            self.batch_tokens.extend_from_slice(&sequence.own.draft);
        }
        let batch =
            Batch { tokens: &self.batch_tokens, spans: &spans, logits_rows: &self.logits_rows };
        let vocab = self.compute.config().vocab;
        let mut logits = self.compute.step(&batch, &self.threads)?;
        // Each cell is locked once, by the one task of its number.
        let mut cells = Vec::with_capacity(self.logits_rows.len());
        for sequence in self.running.iter_mut().filter(|s| completes(s)) {
            let Drawing { sampler, draft, .. } = &mut sequence.own;
            let of = (draft.len() + 1) * vocab;
            let Some((rows, rest)) = logits.split_at_mut_checked(of) else { break };
            logits = rest;
            cells.push(Mutex::new((sampler, draft.as_slice(), rows, Drawn::default())));
        }
        self.threads.run(cells.len(), &|index| {
            let mut cell = cells[index].lock().unwrap_or_else(PoisonError::into_inner);
            let (sampler, draft, rows, drawn) = &mut *cell;
            *drawn = Drawn::from(sampler, draft, rows.chunks_exact_mut(vocab));
        });
        let drawn = |cell: Mutex<_>| cell.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(cells.into_iter().map(|cell| drawn(cell).3).collect())
    }

    /// Books the computed rows: registers blocks, reports tokens, ends what has ended.
    fn advance(&mut self, drawn: Vec<Drawn>, now_us: u64) {
        let mut drawn = drawn.into_iter();
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let rows = sequence.own.known_rows();
            let draft = std::mem::take(&mut sequence.own.draft);
            sequence.own.leave_step();
            if rows == 0 {
                index += 1;
                continue;
            }
            sequence.computed += rows;
            let complete = sequence.remaining() == 0;
            if rows > 1 || !complete {
                self.counters.prefill_tokens += rows as u64;
            }
            if !complete {
                self.cache.register(sequence);
                index += 1;
                continue;
            }
            let drawn = drawn.next().unwrap_or_default();
            let guesses = drawn.choices.iter().zip(&draft);
            let right = guesses.take_while(|(choice, guess)| choice.token == **guess).count();
            sequence.own.drafter.learn(draft.len(), right);
            self.counters.decode_tokens += drawn.choices.len() as u64;
            self.counters.draft_tokens += draft.len() as u64;
            self.counters.accepted_tokens += right as u64;
            match self.take_tokens(index, drawn, now_us) {
                None => index += 1,
                Some((last, finish)) => {
                    let sequence = self.running.remove(index);
                    self.end(sequence, now_us, last, finish);
                }
            }
        }
    }

    /// Appends drawn tokens and reports them, unless the last ends the request: then they go out with the end.
    fn take_tokens(
        &mut self,
        index: usize,
        drawn: Drawn,
        now_us: u64,
    ) -> Option<(Option<Output>, Finish)> {
        let Drawn { choices, error } = drawn;
        let sequence = &mut self.running[index];
        let ends = choices.last().map(|choice| choice.ends);
        if ends.is_some() {
            // Rows of guesses that were right are rows of tokens that are known.
            sequence.computed += choices.len() - 1;
            sequence.tokens.extend(choices.iter().map(|choice| choice.token));
            sequence.hash_full_blocks(&self.cache.grid);
        }
        self.cache.register(sequence);
        let output = ends.map(|_| drawn::fill(sequence.output(now_us), choices));
        if let Some(error) = error {
            self.outputs.extend(output);
            return Some((None, error.into_finish()));
        }
        if ends == Some(true) {
            return Some((output, Finish::Stop));
        }
        if sequence.own.sampler.exhausted()
            || sequence.tokens.len() >= self.limits.context_tokens_max
        {
            return Some((output, Finish::Length));
        }
        self.outputs.extend(output);
        None
    }

    /// A step that could not be computed ends the requests in it.
    fn fail_step(&mut self, reason: &str, now_us: u64) {
        let (failed, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().partition(|s| s.own.step_rows > 0);
        self.running = left;
        for sequence in failed {
            self.end(sequence, now_us, None, internal(reason.to_owned()));
        }
    }
}

impl Work for Scheduler {
    fn blocks(&mut self) -> &mut BlockPool {
        &mut self.cache.blocks
    }

    /// What is wrong with the request becomes its final output.
    fn submit(&mut self, request: Request, now_us: u64) {
        self.submit_guided(request, None, now_us);
    }

    fn cancel(&mut self, id: u64, now_us: u64) {
        let Some(place) = self.places.get(&id).copied() else { return };
        let sequence = match self.dequeue(place) {
            Some(sequence) => sequence,
            None => match self.running.binary_search_by_key(&place, |s| s.place) {
                Ok(index) => self.running.remove(index),
                Err(_) => return,
            },
        };
        self.end(sequence, now_us, None, Finish::Cancelled);
    }

    fn cancel_all(&mut self, now_us: u64) {
        let ids: Vec<u64> = self.places.keys().copied().collect();
        ids.into_iter().for_each(|id| self.cancel(id, now_us));
    }

    fn step(&mut self, clock: &dyn Fn() -> u64, room_for_output: bool) -> Wake {
        let now_us = clock();
        self.cache.blocks.expire(now_us / 1000);
        self.admit(now_us);
        self.plan(now_us, room_for_output);
        let rows: usize = self.running.iter().map(|s| s.own.step_rows).sum();
        if rows == 0 {
            // Who waits may fit now that somebody ended in this very step; the next one looks.
            if self.has_requests() {
                return Wake::Held;
            }
            let expiry_ms = self.cache.blocks.next_expiry_ms();
            return expiry_ms.map_or(Wake::Idle, |ms| Wake::At(ms.saturating_mul(1000)));
        }
        let drawn = self.draw();
        let done_us = clock();
        let elapsed_ms = done_us.saturating_sub(now_us).max(1) as f64 / 1000.0;
        self.rows_per_ms = 0.9 * self.rows_per_ms + 0.1 * rows as f64 / elapsed_ms;
        match drawn {
            Ok(drawn) => self.advance(drawn, done_us),
            Err(failure) => {
                self.fail_step(&failure.reason, done_us);
                self.broken = failure.is_last.then_some(failure.reason);
            }
        }
        Wake::Now
    }

    fn drain_outputs(&mut self) -> std::vec::Drain<'_, Output> {
        self.outputs.drain(..)
    }

    fn stats(&self) -> Stats {
        let prefilling = self.running.iter().filter(|s| s.remaining() > 1);
        let running_tokens: u64 = prefilling.map(|s| s.remaining() as u64).sum();
        self.cache.count(Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            waiting_prefill_tokens: self.waiting_tokens + running_tokens,
            ..self.counters
        })
    }

    fn backlog_ms(&self, _now_us: u64) -> u32 {
        let tokens = self.waiting_tokens + self.running.len() as u64;
        (tokens as f64 / self.rows_per_ms.max(0.01)).clamp(100.0, 10_000.0) as u32
    }

    fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    fn export(&self, blocks: &[u128], bytes: &mut [u8]) -> u32 {
        self.copy_out(blocks, bytes)
    }

    fn import(&mut self, import: &Import, now_us: u64) -> Result<u32, Code> {
        self.take_in(import, now_us)
    }
}

/// Whether a request can be served at all; the answer does not depend on what else is going on.
pub fn check(request: &Request, limits: &Limits, vocab: usize) -> Result<(), EngineError> {
    request.check(limits.context_tokens_max as u32, 0, vocab as u32)?;
    let tokens = request.tokens.len();
    if tokens.div_ceil(limits.block_tokens) > limits.blocks as usize {
        let message =
            format!("a prompt of {tokens} tokens is larger than the cache; raise `kv_bytes`");
        return Err(EngineError::invalid(message));
    }
    Ok(())
}

fn internal(message: String) -> Finish {
    Finish::Error { rc: Code::Internal.rc(), message }
}

fn failure(output: Output, code: Code, message: String) -> Output {
    Output { finish: Some(Finish::Error { rc: code.rc(), message }), ..output }
}
