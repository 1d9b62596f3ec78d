//! Which requests run, what the cache holds, and when the next token is there.
//!
//! It has no thread, lock or clock: the engine's loop hands it commands and time, and carries away
//! events and outputs. Prefill is one queue, as it is on a device: prompts are computed one after
//! the other at the configured rate, the highest priority first; cached tokens take no time. Every
//! running request then says a token each `decode_us_per_token`; at rate 0 it says as many as one
//! output takes. Blocks that a request is about to compute are waited for by others that need them.
//! When blocks run out, the last in order gives its own back. Each request ends in exactly one final
//! output.

use std::collections::HashMap;
use std::ops::Bound;

use mainstay_engine_abi::sdk::{Finish, Health, Output, Request, Stats};
use mainstay_engine_blocks::BlockPool;
use mainstay_engine_shell::{Cache, Place, Queue, Sequence, Wake, Work, pinned_full};

use crate::answer::{Planned, logprobs};
use crate::options::Options;
use crate::script::Script;
use crate::sequence::{Saying, prefilling, prompt};
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
    cache: Cache,
    waiting: Queue<Saying>,
    running: Queue<Saying>,
    places: HashMap<u64, Place>,
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
            cache: Cache::new(
                options.hash_key,
                options.block_tokens,
                options.blocks,
                options.pin_fraction,
            ),
            options,
            script,
            text,
            waiting: Queue::new(),
            running: Queue::new(),
            places: HashMap::new(),
            arrivals: 0,
            prefill_free_us: 0,
            outputs: Vec::new(),
            counters: Stats { health: Health::Ok, ..Stats::default() },
        }
    }

    /// Lets a request wait, with what it would compute as the cache is now. Blocks that others are computing count as
    /// cached: nobody computes them twice. A router that saw all tokens would send conversations away from where
    /// they are cached.
    fn enqueue(&mut self, mut sequence: Box<Sequence<Saying>>) {
        let reusable = self.cache.reusable(&sequence).iter();
        let hits = reusable.take_while(|hash| self.cache.expects(**hash)).count();
        sequence.own.expected = sequence.tokens.len() - hits * self.cache.grid.block_tokens;
        self.waiting.insert(sequence.place, sequence);
    }

    /// Tokens that those that wait will compute.
    fn expected_tokens(&self) -> u64 {
        self.waiting.values().map(|s| s.own.expected as u64).sum()
    }

    fn admit(&mut self, now_us: u64) {
        let mut after = Bound::Unbounded;
        while self.running.len() < self.options.requests_max {
            let Some(place) = self.cache.next_of(&self.waiting, after) else { return };
            after = Bound::Excluded(place);
            let Some(mut sequence) = self.waiting.remove(&place) else { return };
            let hits = self.cache.hits(&sequence);
            if self.cache.waits(&mut sequence, hits) {
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

    /// Gives a request the blocks for its known tokens and one more; where there are too few,
    /// requests of lower priority lose theirs. Without success it has none.
    fn take_blocks(&mut self, sequence: &mut Sequence<Saying>, hits: usize, now_us: u64) -> bool {
        let wanted = self.cache.grid.blocks_for(sequence.tokens.len() + 1);
        let wanted = wanted.min(self.options.blocks as usize);
        self.cache.attach(sequence, hits, now_us);
        loop {
            let available = self.cache.available_to(sequence, self.running.is_empty(), now_us);
            if available as usize >= wanted - sequence.table.len() {
                break;
            }
            let last = self.running.last_key_value().map(|(place, _)| *place);
            match last.filter(|last| last.0 > sequence.place.0) {
                Some(last) => self.preempt(last, now_us),
                None => {
                    self.cache.detach(sequence, now_us);
                    return false;
                }
            }
        }
        while sequence.table.len() < wanted {
            if !self.cache.extend(sequence, now_us) {
                break;
            }
        }
        true
    }

    fn start(&mut self, mut sequence: Box<Sequence<Saying>>, hits: usize, now_us: u64) {
        self.cache.begin(&mut sequence, hits, &mut self.counters, now_us);
        if sequence.own.planned.is_none() {
            let (prompt, sampling) = (prompt(&sequence), &sequence.own.sampling);
            let planned = Planned::new(&self.script, &self.text, prompt, sampling);
            sequence.own.planned = Some(planned);
        }
        let uncached = sequence.remaining() as u64;
        let took_us = uncached * self.options.prefill_us_per_token;
        sequence.own.due_us = self.prefill_begin_us(sequence.place, took_us, now_us) + took_us;
        self.prefill_free_us = self.prefill_free_us.max(now_us) + took_us;
        self.counters.prefill_tokens += uncached;
        self.running.insert(sequence.place, sequence);
    }

    /// When a prompt's turn comes: after those of its priority and above. Prompts of a lower one go on after it.
    fn prefill_begin_us(&mut self, place: Place, took_us: u64, now_us: u64) -> u64 {
        let prompts = self.running.values_mut().filter(|s| prefilling(s) && s.own.due_us > now_us);
        let (mut before_us, mut has_lesser) = (now_us, false);
        for prompt in prompts {
            if prompt.place.0 > place.0 {
                prompt.own.due_us += took_us;
                has_lesser = true;
            } else {
                before_us = before_us.max(prompt.own.due_us);
            }
        }
        // What those that were preempted have left undone is computed by nobody, and counts as ever.
        if has_lesser { before_us } else { self.prefill_free_us.max(now_us) }
    }

    /// Takes a running request's blocks away; it goes on later from what the cache has kept.
    fn preempt(&mut self, place: Place, now_us: u64) {
        let Some(mut sequence) = self.running.remove(&place) else { return };
        self.cache.give_back(&mut sequence, now_us);
        self.counters.preemptions += 1;
        self.enqueue(sequence);
    }

    /// Lets a running request say what is due.
    fn advance(&mut self, place: Place, now_us: u64) {
        // It may have been preempted by one before it in this very step.
        let Some(mut sequence) = self.running.remove(&place) else { return };
        sequence.computed = sequence.tokens.len();
        self.cache.register(&mut sequence);
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
    fn say(&mut self, sequence: &mut Sequence<Saying>, now_us: u64) -> Turn {
        let rate_us = self.options.decode_us_per_token;
        let burst = if rate_us == 0 { BURST_TOKENS } else { 1 };
        let mut output = sequence.output(now_us);
        for position in 0..burst {
            let place = sequence.own.sampled_before + sequence.own.said as usize;
            let Some(planned) = &sequence.own.planned else { break };
            let next = planned.at(place, sequence.own.said, &sequence.own.sampling, &self.text);
            let asked = sequence.own.sampling.logprobs;
            output.logprobs.extend(logprobs(next.token, position as u32, asked, &self.text));
            output.tokens.push(next.token);
            sequence.tokens.push(next.token);
            sequence.own.said += 1;
            self.counters.decode_tokens += 1;
            sequence.hash_full_blocks(&self.cache.grid);
            if next.ends {
                return Turn::Ended(output, Finish::Stop);
            }
            let full = sequence.tokens.len() >= self.options.context_tokens_max;
            if full || sequence.own.said >= sequence.own.sampling.tokens_max {
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
                self.cache.register(sequence);
            }
        }
        sequence.own.due_us = now_us + rate_us;
        self.outputs.push(output);
        Turn::GoesOn
    }

    /// A block for the next token, if its table is full; requests after it lose theirs for it.
    fn make_room_to_go_on(&mut self, sequence: &mut Sequence<Saying>, now_us: u64) -> Room {
        while sequence.table.len() < self.cache.grid.blocks_for(sequence.tokens.len() + 1) {
            if self.cache.extend(sequence, now_us) {
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

    /// Gives a request's blocks back and reports its end.
    fn end(
        &mut self,
        mut sequence: Box<Sequence<Saying>>,
        now_us: u64,
        last: Output,
        finish: Finish,
    ) {
        self.cache.give_back(&mut sequence, now_us);
        self.places.remove(&sequence.id);
        self.outputs.push(Output { finish: Some(finish), ..last });
    }
}

impl Work for Scheduler {
    fn blocks(&mut self) -> &mut BlockPool {
        &mut self.cache.blocks
    }

    /// Queues a request that the door has let pass.
    fn submit(&mut self, request: Request, now_us: u64) {
        self.arrivals += 1;
        let own = Saying::new(&request, now_us);
        let sequence = Sequence::new(request, own, self.arrivals, now_us, &self.cache.grid);
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
        self.cache.blocks.expire(now_us / 1000);
        self.admit(now_us);
        let due: Vec<Place> =
            self.running.iter().filter(|(_, s)| s.own.due_us <= now_us).map(|(p, _)| *p).collect();
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
        let next = self.running.values().map(|s| s.own.due_us).min();
        let expiry = self.cache.blocks.next_expiry_ms().map(|ms| ms.saturating_mul(1000));
        next.into_iter().chain(expiry).min().map_or(Wake::Idle, Wake::At)
    }

    fn drain_outputs(&mut self) -> std::vec::Drain<'_, Output> {
        self.outputs.drain(..)
    }

    fn stats(&self) -> Stats {
        let prefilling = self.running.values().filter(|s| prefilling(s));
        let running: u64 = prefilling.map(|s| s.remaining() as u64).sum();
        self.cache.count(Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            waiting_prefill_tokens: self.expected_tokens() + running,
            ..self.counters
        })
    }

    fn backlog_ms(&self, now_us: u64) -> u32 {
        let queued_us = self.prefill_free_us.saturating_sub(now_us);
        let all_us = queued_us + self.expected_tokens() * self.options.prefill_us_per_token;
        (all_us / 1000).clamp(100, 10_000) as u32
    }
}

#[cfg(test)]
mod tests;
