//! Which requests run, what the cache holds, and when the next token is there.
//!
//! It has no thread, lock or clock: the engine's loop hands it commands and time, and carries away
//! events and outputs. Prefill is one queue, as it is on a device: prompts are computed one after
//! the other at the configured rate, the highest priority first; cached tokens take no time. Every
//! running request then says a token each `decode_us_per_token`; at rate 0 it says as many as one
//! output takes. Blocks that a request is about to compute are waited for by others that need them.
//! When blocks run out, the last in order gives its own back. Each request ends in exactly one final
//! output.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Health, Output, Request, Stats};
use mainstay_engine_blocks::BlockPool;
use mainstay_engine_shell::{Wake, Work};

use crate::answer::{Planned, logprobs};
use crate::options::Options;
use crate::script::Script;
use crate::sequence::{Grid, Place, Sequence};
use crate::text::Text;

/// Tokens of one output at rate 0; a script's sentence goes out in a few pieces, as streams do.
const BURST_TOKENS: usize = 8;

/// Whether a running request goes on.
enum Turn {
    GoesOn,
    /// It gives its blocks back and waits for its turn again.
    Yields,
    Ended(Output, Finish),
}

/// Whether there is a block for the next token.
enum Room {
    Yes,
    /// Requests that go first have all there are.
    Later,
    /// Pins have all there are.
    Never,
}

/// Requests and cache of one engine.
pub(crate) struct Scheduler {
    options: Options,
    script: Script,
    text: Text,
    grid: Grid,
    blocks: BlockPool,
    waiting: BTreeMap<Place, Box<Sequence>>,
    running: BTreeMap<Place, Box<Sequence>>,
    places: HashMap<u64, Place>,
    /// Blocks of prompts that running requests are about to compute, and who does.
    in_flight: HashMap<u128, Place>,
    arrivals: u64,
    /// When the prefill queue is empty.
    prefill_free_us: u64,
    outputs: Vec<Output>,
    counters: Stats,
}

impl Scheduler {
    /// A scheduler with an empty cache.
    pub(crate) fn new(options: Options, script: Script, text: Text) -> Self {
        Self {
            grid: Grid::new(options.hash_key, options.block_tokens),
            blocks: BlockPool::new(options.blocks, options.pin_fraction),
            options,
            script,
            text,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            places: HashMap::new(),
            in_flight: HashMap::new(),
            arrivals: 0,
            prefill_free_us: 0,
            outputs: Vec::new(),
            counters: Stats { health: Health::Ok, ..Stats::default() },
        }
    }

    /// Lets a request wait, with what it would compute as the cache is now. Blocks that others are computing count as
    /// cached: nobody computes them twice. A router that saw all tokens would send conversations away from where
    /// they are cached.
    fn enqueue(&mut self, mut sequence: Box<Sequence>) {
        let is_here =
            |hash: &&u128| self.blocks.holds(**hash) || self.in_flight.contains_key(*hash);
        let hits = self.reusable(&sequence).iter().take_while(is_here).count();
        sequence.expected = sequence.tokens.len() - hits * self.grid.block_tokens;
        self.waiting.insert(sequence.place, sequence);
    }

    /// Tokens that those that wait will compute.
    fn expected_tokens(&self) -> u64 {
        self.waiting.values().map(|s| s.expected as u64).sum()
    }

    fn admit(&mut self, now_us: u64) {
        let mut after = Bound::Unbounded;
        while self.running.len() < self.options.requests_max {
            let next = self.waiting.range((after, Bound::Unbounded)).next();
            let Some((place, sequence)) = next else { return };
            let place = *place;
            after = Bound::Excluded(place);
            if sequence.waits_for.is_some_and(|hash| self.is_computed_before(hash, place)) {
                continue;
            }
            let Some(mut sequence) = self.waiting.remove(&place) else { return };
            let hits = self.hits(&sequence);
            sequence.waits_for = sequence.hashes.get(hits).copied();
            sequence.waits_for =
                sequence.waits_for.filter(|hash| self.is_computed_before(*hash, place));
            if sequence.waits_for.is_some() {
                self.waiting.insert(place, sequence);
                continue;
            }
            if !self.take_blocks(&mut sequence, hits, now_us) {
                if !self.running.is_empty() {
                    // Nobody behind it may overtake, or it would starve.
                    self.waiting.insert(place, sequence);
                    return;
                }
                let last = sequence.last_output();
                self.end(sequence, now_us, last, pinned_full());
                continue;
            }
            self.start(sequence, hits, now_us);
        }
    }

    /// Whether a request that goes first is about to compute that block.
    fn is_computed_before(&self, hash: u128, place: Place) -> bool {
        self.in_flight.get(&hash).is_some_and(|owner| *owner < place)
    }

    /// Leading blocks that the cache holds.
    fn hits(&self, sequence: &Sequence) -> usize {
        let hashes = self.reusable(sequence).iter();
        hashes.take_while(|hash| self.blocks.holds(**hash)).count()
    }

    /// Blocks that need not be computed if they are cached. One token at least is computed, for what follows it.
    fn reusable<'a>(&self, sequence: &'a Sequence) -> &'a [u128] {
        let reusable = (sequence.tokens.len() - 1) / self.grid.block_tokens;
        &sequence.hashes[..reusable.min(sequence.hashes.len())]
    }

    /// Gives a request the blocks for its known tokens and one more; where there are too few,
    /// requests of lower priority lose theirs. Without success it has none.
    fn take_blocks(&mut self, sequence: &mut Sequence, hits: usize, now_us: u64) -> bool {
        let wanted = self.grid.blocks_for(sequence.tokens.len() + 1);
        let wanted = wanted.min(self.options.blocks as usize);
        let now_ms = now_us / 1000;
        let known = sequence.hashes[..hits].iter().copied();
        self.blocks.attach(known, &mut sequence.table, now_ms);
        while (self.available_to(sequence, now_us) as usize) < wanted - sequence.table.len() {
            let last = self.running.last_key_value().map(|(place, _)| *place);
            match last.filter(|last| last.0 > sequence.place.0) {
                Some(last) => self.preempt(last, now_us),
                None => {
                    self.blocks.detach(&mut sequence.table, now_ms);
                    return false;
                }
            }
        }
        while sequence.table.len() < wanted {
            if !self.blocks.extend(&mut sequence.table, sequence.namespace, now_ms) {
                break;
            }
        }
        true
    }

    /// Blocks that a request may have: while others run, not those that are kept for higher ones.
    fn available_to(&self, sequence: &Sequence, now_us: u64) -> u32 {
        if self.running.is_empty() {
            return self.blocks.available();
        }
        let waited_ms = now_us.saturating_sub(sequence.submitted_us) / 1_000;
        self.blocks.available_to(sequence.place.0.0, waited_ms)
    }

    fn start(&mut self, mut sequence: Box<Sequence>, hits: usize, now_us: u64) {
        sequence.registered = hits;
        sequence.computed = hits * self.grid.block_tokens;
        if sequence.admitted_us.is_none() {
            sequence.admitted_us = Some(now_us);
            sequence.cached_tokens = sequence.computed as u32;
            self.counters.query_tokens += sequence.tokens.len() as u64;
            self.counters.hit_tokens += sequence.computed as u64;
        }
        if sequence.planned.is_none() {
            let planned =
                Planned::new(&self.script, &self.text, sequence.prompt(), &sequence.sampling);
            sequence.planned = Some(planned);
        }
        let uncached = (sequence.tokens.len() - sequence.computed) as u64;
        let took_us = uncached * self.options.prefill_us_per_token;
        sequence.due_us = self.prefill_begin_us(sequence.place, took_us, now_us) + took_us;
        self.prefill_free_us = self.prefill_free_us.max(now_us) + took_us;
        self.counters.prefill_tokens += uncached;
        for hash in &sequence.hashes[hits..] {
            self.in_flight.entry(*hash).or_insert(sequence.place);
        }
        self.running.insert(sequence.place, sequence);
    }

    /// When a prompt's turn comes: after those of its priority and above. Prompts of a lower one go on after it.
    fn prefill_begin_us(&mut self, place: Place, took_us: u64, now_us: u64) -> u64 {
        let prompts = self.running.values_mut().filter(|s| s.prefilling() && s.due_us > now_us);
        let (mut before_us, mut has_lesser) = (now_us, false);
        for prompt in prompts {
            if prompt.place.0 > place.0 {
                prompt.due_us += took_us;
                has_lesser = true;
            } else {
                before_us = before_us.max(prompt.due_us);
            }
        }
        // What those that were preempted have left undone is computed by nobody, and counts as ever.
        if has_lesser { before_us } else { self.prefill_free_us.max(now_us) }
    }

    /// Takes a running request's blocks away; it goes on later from what the cache has kept.
    fn preempt(&mut self, place: Place, now_us: u64) {
        let Some(mut sequence) = self.running.remove(&place) else { return };
        self.give_back(&mut sequence, now_us);
        sequence.restart();
        self.counters.preemptions += 1;
        self.enqueue(sequence);
    }

    /// Lets a running request say what is due.
    fn advance(&mut self, place: Place, now_us: u64) {
        // It may have been preempted by one before it in this very step.
        let Some(mut sequence) = self.running.remove(&place) else { return };
        sequence.computed = sequence.tokens.len();
        self.register_full_blocks(&mut sequence);
        match self.say(&mut sequence, now_us) {
            Turn::GoesOn => drop(self.running.insert(place, sequence)),
            Turn::Yields => {
                self.running.insert(place, sequence);
                self.preempt(place, now_us);
            }
            Turn::Ended(output, finish) => self.end(sequence, now_us, output, finish),
        }
    }

    /// Says one token, or a burst where saying takes no time.
    fn say(&mut self, sequence: &mut Sequence, now_us: u64) -> Turn {
        let rate_us = self.options.decode_us_per_token;
        let burst = if rate_us == 0 { BURST_TOKENS } else { 1 };
        let mut output = sequence.output(now_us);
        for position in 0..burst {
            let place = sequence.sampled_before + sequence.said as usize;
            let Some(planned) = &sequence.planned else { break };
            let next = planned.at(place, sequence.said, &sequence.sampling, &self.text);
            let asked = sequence.sampling.logprobs;
            output.logprobs.extend(logprobs(next.token, position as u32, asked, &self.text));
            output.tokens.push(next.token);
            sequence.tokens.push(next.token);
            sequence.said += 1;
            self.counters.decode_tokens += 1;
            sequence.hash_full_blocks(&self.grid);
            if next.ends {
                return Turn::Ended(output, Finish::Stop);
            }
            let full = sequence.tokens.len() >= self.options.context_tokens_max;
            if full || sequence.said >= sequence.sampling.tokens_max {
                return Turn::Ended(output, Finish::Length);
            }
            match self.make_room_to_go_on(sequence, now_us) {
                Room::Yes => {}
                Room::Later => {
                    self.outputs.push(output);
                    return Turn::Yields;
                }
                Room::Never => return Turn::Ended(output, pinned_full()),
            }
            if position + 1 < burst {
                sequence.computed = sequence.tokens.len();
                self.register_full_blocks(sequence);
            }
        }
        sequence.due_us = now_us + rate_us;
        self.outputs.push(output);
        Turn::GoesOn
    }

    /// A block for the next token, if its table is full; requests after it lose theirs for it.
    fn make_room_to_go_on(&mut self, sequence: &mut Sequence, now_us: u64) -> Room {
        while sequence.table.len() < self.grid.blocks_for(sequence.tokens.len() + 1) {
            if self.blocks.extend(&mut sequence.table, sequence.namespace, now_us / 1000) {
                continue;
            }
            match self.running.last_key_value().map(|(place, _)| *place) {
                Some(last) if last > sequence.place => self.preempt(last, now_us),
                Some(_) => return Room::Later,
                None => return Room::Never,
            }
        }
        Room::Yes
    }

    fn register_full_blocks(&mut self, sequence: &mut Sequence) {
        let full = sequence.computed / self.grid.block_tokens;
        while sequence.registered < full {
            let at = sequence.registered;
            let hash = sequence.hashes[at];
            self.blocks.register(&mut sequence.table, at, hash, sequence.namespace);
            sequence.registered += 1;
            self.forget_in_flight(hash, sequence.place);
        }
    }

    fn forget_in_flight(&mut self, hash: u128, place: Place) {
        if self.in_flight.get(&hash) == Some(&place) {
            self.in_flight.remove(&hash);
        }
    }

    /// Gives a request's blocks back and reports its end.
    fn end(&mut self, mut sequence: Box<Sequence>, now_us: u64, last: Output, finish: Finish) {
        self.give_back(&mut sequence, now_us);
        self.places.remove(&sequence.id);
        self.outputs.push(Output { finish: Some(finish), ..last });
    }

    fn give_back(&mut self, sequence: &mut Sequence, now_us: u64) {
        for hash in sequence.hashes.get(sequence.registered..).unwrap_or_default() {
            self.forget_in_flight(*hash, sequence.place);
        }
        let mut table = std::mem::take(&mut sequence.table);
        self.blocks.release(&mut table, &sequence.wishes(&self.grid), now_us / 1000);
    }
}

impl Work for Scheduler {
    fn blocks(&mut self) -> &mut BlockPool {
        &mut self.blocks
    }

    /// Queues a request that [`check`] has let pass.
    fn submit(&mut self, request: Request, now_us: u64) {
        self.arrivals += 1;
        let sequence = Sequence::new(request, self.arrivals, now_us, &self.grid);
        if self.places.insert(sequence.id, sequence.place).is_none() {
            self.enqueue(Box::new(sequence));
        }
    }

    fn cancel(&mut self, id: u64, now_us: u64) {
        let Some(place) = self.places.get(&id) else { return };
        let found = self.waiting.remove(place).or_else(|| self.running.remove(place));
        if let Some(sequence) = found {
            let last = sequence.last_output();
            self.end(sequence, now_us, last, Finish::Cancelled);
        }
    }

    fn cancel_all(&mut self, now_us: u64) {
        let ids: Vec<u64> = self.places.keys().copied().collect();
        ids.into_iter().for_each(|id| self.cancel(id, now_us));
    }

    fn step(&mut self, clock: &dyn Fn() -> u64, room_for_output: bool) -> Wake {
        let now_us = clock();
        self.blocks.expire(now_us / 1000);
        self.admit(now_us);
        let due: Vec<Place> =
            self.running.iter().filter(|(_, s)| s.due_us <= now_us).map(|(p, _)| *p).collect();
        if !due.is_empty() && !room_for_output {
            return Wake::Held;
        }
        for place in &due {
            self.advance(*place, now_us);
        }
        if !due.is_empty() {
            // Who waits may fit now that somebody ended in this very step.
            return Wake::Now;
        }
        let next = self.running.values().map(|s| s.due_us).min();
        let expiry = self.blocks.next_expiry_ms().map(|ms| ms.saturating_mul(1000));
        next.into_iter().chain(expiry).min().map_or(Wake::Idle, Wake::At)
    }

    fn drain_outputs(&mut self) -> std::vec::Drain<'_, Output> {
        self.outputs.drain(..)
    }

    fn stats(&self) -> Stats {
        let counts = self.blocks.counts();
        let unread = |s: &Sequence| (s.tokens.len() - s.computed) as u64;
        let running: u64 =
            self.running.values().filter(|s| s.prefilling()).map(|s| unread(s)).sum();
        Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            blocks_used: u64::from(counts.used),
            blocks_cached: u64::from(counts.cached),
            blocks_pinned: u64::from(counts.pinned),
            evictions: counts.evictions,
            ages: Some(self.blocks.ages()),
            waiting_prefill_tokens: self.expected_tokens() + running,
            ..self.counters
        }
    }

    fn backlog_ms(&self, now_us: u64) -> u32 {
        let queued_us = self.prefill_free_us.saturating_sub(now_us);
        let all_us = queued_us + self.expected_tokens() * self.options.prefill_us_per_token;
        (all_us / 1000).clamp(100, 10_000) as u32
    }
}

fn pinned_full() -> Finish {
    let message = "pins hold the blocks that this request needs; try again when some have ended";
    Finish::Error { rc: Code::Exhausted.rc(), message: message.to_owned() }
}

/// What bounds the requests of an engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) context_tokens_max: usize,
    pub(crate) requests_max: usize,
    pub(crate) vocab: u32,
}

/// Whether a request can be served at all; the answer does not depend on what else is going on.
pub(crate) fn check(request: &Request, limits: &Limits) -> Result<(), EngineError> {
    let tokens = request.tokens.len();
    if tokens == 0 {
        return Err(EngineError::invalid("the prompt is empty; send at least one token"));
    }
    if tokens > limits.context_tokens_max {
        let most = limits.context_tokens_max;
        let message =
            format!("the prompt has {tokens} tokens, the context {most}; shorten the prompt");
        return Err(EngineError::invalid(message));
    }
    if request.sampling.tokens_max == 0 {
        return Err(EngineError::invalid("tokens_max is 0; ask for at least one token"));
    }
    let greatest = request.tokens.iter().copied().max().unwrap_or(0);
    if greatest >= limits.vocab {
        let vocab = limits.vocab;
        let message = format!("token {greatest} is not below the vocabulary's {vocab}");
        return Err(EngineError::invalid(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
