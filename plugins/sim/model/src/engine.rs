//! The engine: a queue, what runs, the cache, and one step or one stretch of equal steps at a time.
//!
//! A step gives each decoding request one token and the rest of its budget to prompts, first those that run, then
//! the next in the queue; a prompt that does not fit is computed in pieces. A request is admitted when there are
//! blocks for all its tokens, and looks for cached ones then. When a decoding request finds no block, the last in
//! order loses all of its own and computes them again later; whoever waits with a higher priority takes tokens and
//! blocks of those who run with a lower one, as in our own engines. Steps without a prompt are taken together until the
//! first of them ends a request; one that arrives meanwhile cuts the stretch at the step that is under way. What a
//! request can bring in from host memory or from another engine comes in before it is served, while others are.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use mainstay_engine_abi::sdk::{Cause, KvEvent, LeaseChange, RetentionRange, TIER_DEVICE};
use mainstay_engine_blocks::{BlockPool, Figures, PinError, Urgency, Wishes};

use crate::Profile;
use crate::host::Host;
use crate::sequence::{Claim, Place, Request, Sequence};
use load::Loading;

mod load;

/// The share of blocks that pins may hold, as engines take it by default.
const PIN_FRACTION: f64 = 0.5;
/// The weight of a new measurement of pace, and the least prompt that is one: those of the worker.
const PACE_WEIGHT: f32 = 0.1;
const PACE_TOKENS_MIN: u32 = 16;
/// No engine is faster or slower than its profile by more.
const SPEED_MAX: f64 = 1_000.0;

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Its first token is there.
    First {
        /// Whose.
        id: u64,
        /// Prompt tokens that were cached.
        cached_tokens: u32,
        /// From its arrival here until it was admitted, what came in included.
        waited_us: u64,
    },
    /// Its last token is there.
    Ended {
        /// Whose.
        id: u64,
    },
    /// It needs more blocks than the cache has.
    Refused {
        /// Whose.
        id: u64,
    },
}

/// What a worker would report of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Requests being computed.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Prompt tokens that are still to be computed; for those that wait, as far as was cached when they came.
    pub waiting_prefill_tokens: u64,
    /// Moving average; 0 before the first.
    pub prefill_us_per_token: f32,
    /// Moving average; 0 before the first.
    pub decode_us_per_step: f32,
    /// All blocks.
    pub blocks_total: u64,
    /// Blocks of running requests.
    pub blocks_used: u64,
    /// What a token from host memory takes; 0 where there is none.
    pub load_us_per_token: f32,
    /// Tokens that are coming in from there.
    pub loading_tokens: u64,
}

/// Sums since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Time in steps.
    pub busy_us: u64,
    /// Prompt tokens that were computed, again after a preemption as well.
    pub prefill_tokens: u64,
    /// Tokens that were said.
    pub decode_tokens: u64,
    /// Requests that lost their blocks.
    pub preemptions: u64,
    /// Blocks that made room.
    pub evicted_for_room: u64,
    /// Blocks whose retention had ended.
    pub evicted_expired: u64,
    /// Tokens that came in from host memory.
    pub loaded_tokens: u64,
    /// Tokens that came in from other engines.
    pub fetched_tokens: u64,
}

/// The step or stretch under way.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start_us: u64,
    end_us: u64,
    /// None while nothing is computed, until something has come in.
    steps: u32,
    /// Set where nothing but decoding goes on: how many requests, and tokens of their contexts at its start.
    decoding: Option<(u32, u64)>,
    /// The engine's when it began.
    speed: f64,
}

/// One engine.
pub struct Engine {
    profile: Profile,
    block_tokens: u32,
    blocks: BlockPool,
    waiting: BTreeMap<Place, Sequence>,
    /// In their order: by priority, then as they came.
    running: Vec<Sequence>,
    host: Host,
    loading: Loading,
    /// Tokens that those that wait will have to compute.
    waiting_tokens: u64,
    stretch: Option<Stretch>,
    arrivals: u64,
    /// The head of the queue did not fit, and nothing was given back since.
    blocked: bool,
    urgency: Urgency,
    prefill_us_per_token: f32,
    decode_us_per_step: f32,
    counters: Counters,
    /// Of the profile's; a device that throttles has less.
    speed: f64,
    /// The time of the last step.
    now_ms: u64,
}

fn us(time: f64) -> u64 {
    // At least one: time must go on.
    (time as u64).max(1)
}

impl Engine {
    /// An engine with an empty cache of blocks of `block_tokens`.
    #[must_use]
    pub fn new(profile: Profile, block_tokens: u32) -> Self {
        let block_tokens = block_tokens.max(1);
        let blocks = profile.kv_tokens() / u64::from(block_tokens);
        Self {
            blocks: BlockPool::new(u32::try_from(blocks).unwrap_or(u32::MAX), PIN_FRACTION),
            host: Host::new(profile.host_blocks(block_tokens)),
            loading: Loading::default(),
            profile,
            block_tokens,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            waiting_tokens: 0,
            stretch: None,
            arrivals: 0,
            blocked: false,
            urgency: Urgency::default(),
            prefill_us_per_token: 0.0,
            decode_us_per_step: 0.0,
            counters: Counters::default(),
            speed: 1.0,
            now_ms: 0,
        }
    }

    /// From the next step on, it computes so many times as fast as its profile says. What is no positive number
    /// changes nothing. Ask [`Engine::next_us`] again.
    pub fn set_speed(&mut self, speed: f64, now_us: u64) {
        if speed > 0.0 && speed <= SPEED_MAX {
            self.speed = speed.max(1.0 / SPEED_MAX);
            self.cut(now_us);
        }
    }

    /// Queues a request, or refuses it at once. The next step sees it: ask [`Engine::next_us`] again.
    pub fn submit(&mut self, request: Request, now_us: u64) -> Option<Note> {
        self.arrivals += 1;
        self.urgency.note(request.priority, now_us / 1_000);
        let sequence = Sequence::new(request, self.arrivals, now_us);
        let tokens = u64::from(sequence.tokens()) + u64::from(sequence.request.output_tokens);
        if tokens.div_ceil(u64::from(self.block_tokens)) > u64::from(self.blocks.counts().total) {
            return Some(Note::Refused { id: sequence.request.id });
        }
        let first = self.waiting.first_key_value().is_none_or(|(head, _)| sequence.place < *head);
        self.enqueue(sequence);
        if first {
            self.blocked = false;
            self.cut(now_us);
        }
        None
    }

    /// When [`Engine::advance`] has something to do.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        self.stretch.map(|stretch| stretch.end_us)
    }

    /// Ends the step under way if it is over, and begins the next one. `now_us` must not go back, nor pass
    /// [`Engine::next_us`] by.
    pub fn advance(&mut self, now_us: u64, notes: &mut Vec<Note>) {
        self.now_ms = now_us / 1000;
        match self.stretch {
            Some(stretch) if stretch.end_us > now_us => return,
            Some(stretch) => self.finish(stretch, notes),
            None => {}
        }
        self.blocks.expire(now_us / 1_000);
        self.stretch = self.plan(now_us);
        if let Some(ready_us) = self.loading.next_us() {
            self.cut(ready_us);
        }
    }

    /// Whether it needs [`Engine::advance`] to begin anything.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stretch.is_none()
    }

    /// The figures of now.
    #[must_use]
    pub fn load(&self) -> Load {
        let counts = self.blocks.counts();
        let reading = self.running.iter().filter(|s| !s.decodes());
        let unread: u64 = reading.map(|s| u64::from(s.unread())).sum();
        Load {
            running: (self.running.len() + self.loading.len()) as u32,
            waiting: self.waiting.len() as u32,
            waiting_prefill_tokens: self.waiting_tokens
                + unread
                + self.loading.unread(self.block_tokens),
            prefill_us_per_token: self.prefill_us_per_token,
            decode_us_per_step: self.decode_us_per_step,
            blocks_total: u64::from(counts.total),
            blocks_used: u64::from(counts.used),
            load_us_per_token: self.load_us_per_token(),
            loading_tokens: self.loading.tokens(),
        }
    }

    /// Sums since the beginning.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What its cache did so far.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        self.blocks.figures()
    }

    /// Changes or ends a lease; one that is not known is nothing.
    pub fn change_lease(&mut self, change: &LeaseChange, now_us: u64) {
        self.blocks.change_lease(change, now_us / 1_000);
        self.blocked = false;
    }

    /// Takes or renews a pin on blocks until `ends_us`; answers with how many of them are held.
    ///
    /// # Errors
    /// Where it is larger than all that pins may hold, or there are too many of them.
    pub fn pin(
        &mut self,
        pin_id: u128,
        hashes: &[u128],
        ends_us: u64,
        now_us: u64,
    ) -> Result<u32, PinError> {
        self.blocks.pin(pin_id, hashes, ends_us / 1_000, now_us / 1_000)
    }

    /// Ends a pin; one that is not known is nothing.
    pub fn unpin(&mut self, pin_id: u128) {
        self.blocks.unpin(pin_id);
        self.blocked = false;
    }

    /// What was stored and removed since the last call, in order.
    pub fn drain_events(&mut self) -> impl Iterator<Item = KvEvent> {
        let counters = &mut self.counters;
        let own = self.blocks.drain_events();
        own.chain(self.loading.events.drain(..)).inspect(|event| {
            if let KvEvent::Removed { blocks, cause, tier: TIER_DEVICE } = event {
                let count = blocks.len() as u64;
                match cause {
                    Cause::Expiry => counters.evicted_expired += count,
                    _ => counters.evicted_for_room += count,
                }
            }
        })
    }

    /// Whether there are events to drain.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.blocks.has_events() || !self.loading.events.is_empty()
    }

    fn enqueue(&mut self, mut sequence: Sequence) {
        let findable = sequence.findable(self.block_tokens);
        // A block is never cached without those before it.
        let hits = findable.partition_point(|hash| self.blocks.holds(hash.0));
        let hits = hits + self.can_bring_in(&sequence.request, &findable[hits..], hits);
        sequence.expected = sequence.tokens() - hits as u32 * self.block_tokens;
        self.waiting_tokens += u64::from(sequence.expected);
        self.waiting.insert(sequence.place, sequence);
    }

    /// Ends a stretch of decoding with the step that is under way.
    fn cut(&mut self, now_us: u64) {
        let Some(stretch) = &mut self.stretch else { return };
        if stretch.steps == 0 {
            stretch.end_us = stretch.end_us.min(now_us.max(stretch.start_us));
            return;
        }
        let Some((requests, context)) = stretch.decoding else { return };
        if self.running.len() >= self.profile.requests_max {
            return;
        }
        let end = |steps: u32| {
            let took_us = self.profile.decode_us(steps, requests, context) / stretch.speed;
            stretch.start_us + us(took_us)
        };
        let (mut low, mut high) = (1, stretch.steps);
        while low < high {
            let middle = low + (high - low) / 2;
            if end(middle) >= now_us {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        (stretch.end_us, stretch.steps) = (end(low), low);
    }

    /// Decides what the next step does; `None` if there is nothing to do.
    fn plan(&mut self, now_us: u64) -> Option<Stretch> {
        self.come_in(now_us);
        self.make_room(now_us);
        self.deal();
        self.admit(now_us);
        self.count_lone_step();
        if self.running.is_empty() {
            // Nothing to compute until something has come in.
            let end_us = self.loading.next_us()?.max(now_us);
            let speed = self.speed;
            return Some(Stretch { start_us: now_us, end_us, steps: 0, decoding: None, speed });
        }
        let speed = self.speed;
        let (mut tokens, mut pairs, mut context, mut decoding) = (0, 0.0, 0, 0);
        for sequence in &self.running {
            tokens += sequence.piece;
            if sequence.decodes() {
                decoding += 1;
                context += u64::from(sequence.tokens());
            } else {
                let piece = f64::from(sequence.piece);
                pairs += piece * (f64::from(sequence.computed) + piece / 2.0);
            }
        }
        if decoding as usize == self.running.len() {
            let steps = self.stretch_steps();
            let took_us = self.profile.decode_us(steps, decoding, context) / speed;
            let (end_us, decoding) = (now_us + us(took_us), Some((decoding, context)));
            return Some(Stretch { start_us: now_us, end_us, steps, decoding, speed });
        }
        let end_us = now_us + us(self.profile.step_us(tokens, pairs, context) / speed);
        Some(Stretch { start_us: now_us, end_us, steps: 1, decoding: None, speed })
    }

    /// A block for the next token of each that decodes; the last in order lose theirs for it.
    fn make_room(&mut self, now_us: u64) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &self.running[at];
            let wanted = (sequence.tokens() + 1).div_ceil(self.block_tokens) as usize;
            if !sequence.decodes() || sequence.table.len() >= wanted {
                at += 1;
                continue;
            }
            let sequence = &mut self.running[at];
            let namespace = sequence.request.namespace;
            if self.blocks.extend(&mut sequence.table, namespace, self.now_ms) {
                continue;
            }
            let last = (0..self.running.len()).max_by_key(|at| self.running[*at].place);
            let Some(last) = last else { return };
            self.preempt(last, now_us);
            // Those behind the preempted one have moved up by one place.
            at -= usize::from(last < at);
        }
    }

    fn preempt(&mut self, at: usize, now_us: u64) {
        let mut sequence = self.running.remove(at);
        self.give_back(&mut sequence, now_us);
        sequence.restart();
        self.counters.preemptions += 1;
        self.enqueue(sequence);
    }

    fn give_back(&mut self, sequence: &mut Sequence, now_us: u64) {
        let over_all = sequence.request.claim.iter().map(Claim::over_all);
        let ranges: Vec<RetentionRange> =
            over_all.chain(sequence.request.ranges.iter().copied()).collect();
        let wishes = Wishes {
            namespace: sequence.request.namespace,
            block_tokens: self.block_tokens as usize,
            ranges: &ranges,
            leases: &sequence.request.leases,
        };
        self.blocks.release(&mut sequence.table, &wishes, now_us / 1_000);
        self.copy_to_host(sequence);
        self.blocked = false;
    }

    /// Shares the step's tokens among those that run, in their order.
    fn deal(&mut self) {
        let decoding = self.running.iter().filter(|s| s.decodes()).count() as u32;
        let mut budget = self.profile.step_tokens_max.saturating_sub(decoding);
        let mut small = self.small_step();
        let top = self.running.iter().find(|s| !s.decodes()).map(|s| s.request.priority);
        let is_lesser = |s: &Sequence| top.is_some_and(|top| s.request.priority < top);
        // The last in line has the lowest priority.
        let next = self.waiting.last_key_value().map(|(_, sequence)| sequence);
        let lesser = || self.running.iter().any(|s| !s.decodes() && is_lesser(s));
        let kept = self.urgency.is_shared() && (lesser() || next.is_some_and(is_lesser));
        let kept = if kept { small.min(budget) } else { 0 };
        for sequence in &mut self.running {
            if sequence.decodes() {
                sequence.piece = 1;
                continue;
            }
            let who = (sequence.request.priority, is_lesser(sequence));
            let share = self.urgency.share(who, budget as usize, kept as usize, small as usize);
            sequence.piece = sequence.unread().min(share as u32);
            budget -= sequence.piece;
            if sequence.request.priority <= 0 {
                small -= sequence.piece;
            }
        }
    }

    /// How many tokens of a step prompts of no priority may have.
    fn small_step(&self) -> u32 {
        let (all, block) = (self.profile.step_tokens_max as usize, self.block_tokens as usize);
        self.urgency.small_step(all, block, self.now_ms) as u32
    }

    /// Counts steps in a row in which prompts waited for those of a higher priority.
    fn count_lone_step(&mut self) {
        let prompts = || self.running.iter().filter(|s| !s.decodes());
        let top = prompts().next().map(|s| s.request.priority);
        let is_lesser = |s: &Sequence| top.is_some_and(|top| s.request.priority < top);
        let next = self.waiting.last_key_value().map(|(_, sequence)| sequence);
        let waits = prompts().any(is_lesser) || next.is_some_and(is_lesser);
        let served = prompts().any(|s| s.piece > 0 && is_lesser(s));
        self.urgency.count_step(waits, served);
    }

    /// Tokens of the step that those before a place leave.
    fn budget_at(&self, place: Place) -> u32 {
        let is_above = |s: &&Sequence| !s.decodes() && s.place.0 < place.0;
        if !self.urgency.is_shared() && self.running.iter().any(|s| is_above(&s)) {
            return 0;
        }
        let before = || self.running.iter().filter(|s| s.decodes() || s.place < place);
        let left = self.profile.step_tokens_max.saturating_sub(before().map(|s| s.piece).sum());
        if place.0.0 > 0 {
            return left;
        }
        let prompts = before().filter(|s| !s.decodes() && s.request.priority <= 0);
        left.min(self.small_step().saturating_sub(prompts.map(|s| s.piece).sum()))
    }

    fn admit(&mut self, now_us: u64) {
        while !self.blocked && self.running.len() + self.loading.len() < self.profile.requests_max {
            let Some((place, is_first)) = self.next_place() else { return };
            if self.budget_at(place) == 0 {
                return;
            }
            let Some(mut sequence) = self.waiting.remove(&place) else { return };
            if !self.take_blocks_of_lesser(&mut sequence, now_us) {
                self.waiting.insert(sequence.place, sequence);
                if is_first {
                    self.blocked = true;
                    return;
                }
                // Its turn has passed; the first in line may fit.
                self.urgency.count_step(false, false);
                continue;
            }
            self.waiting_tokens -= u64::from(sequence.expected);
            if self.begin_load(&mut sequence, now_us) {
                self.loading.add(sequence);
                continue;
            }
            if sequence.admitted_us.is_none() {
                sequence.admitted_us = Some(now_us);
                sequence.cached_tokens = sequence.computed;
            }
            self.start(sequence);
            // Those behind it get what it leaves.
            self.deal();
        }
    }

    /// Who is admitted next, and whether it is the first in line: after eight steps for higher ones alone it is the first
    /// of those whom they keep waiting.
    fn next_place(&self) -> Option<(Place, bool)> {
        let (&first, _) = self.waiting.first_key_value()?;
        let prompts = || self.running.iter().filter(|s| !s.decodes());
        let top = prompts().next().filter(|_| self.urgency.is_shared());
        let Some(top) = top.map(|s| s.request.priority) else { return Some((first, true)) };
        if prompts().any(|s| s.request.priority < top) {
            return Some((first, true));
        }
        let above = Bound::Excluded((Reverse(top), u64::MAX));
        let lesser = self.waiting.range((above, Bound::Unbounded)).next();
        let place = lesser.map_or(first, |(place, _)| *place);
        Some((place, place == first))
    }

    /// Runs a request, in its order.
    fn start(&mut self, sequence: Sequence) -> usize {
        let at = self.running.partition_point(|other| other.place < sequence.place);
        self.running.insert(at, sequence);
        at
    }

    /// The same as [`Engine::take_blocks`], where those of lower priority lose theirs.
    fn take_blocks_of_lesser(&mut self, sequence: &mut Sequence, now_us: u64) -> bool {
        while !self.take_blocks(sequence) {
            let lesser = self.running.last().map(|last| last.request.priority);
            if lesser.is_none_or(|priority| priority >= sequence.request.priority) {
                return false;
            }
            self.preempt(self.running.len() - 1, now_us);
        }
        true
    }

    /// The cached blocks of a request and new ones for the rest of its tokens and one more; none if they are too
    /// many.
    fn take_blocks(&mut self, sequence: &mut Sequence) -> bool {
        let mut table = std::mem::take(&mut sequence.table);
        let findable = sequence.findable(self.block_tokens).iter().map(|hash| hash.0);
        let hits = self.blocks.attach(findable, &mut table, self.now_ms);
        let wanted = (sequence.tokens() + 1).div_ceil(self.block_tokens) as usize;
        let fits = self.available_to(sequence) as usize >= wanted.saturating_sub(hits);
        if fits {
            while table.len() < wanted {
                if !self.blocks.extend(&mut table, sequence.request.namespace, self.now_ms) {
                    break;
                }
            }
            sequence.registered = hits;
            sequence.computed = hits as u32 * self.block_tokens;
        } else {
            self.blocks.detach(&mut table, self.now_ms);
        }
        sequence.table = table;
        fits
    }

    /// Blocks that a request may have: while others run, not those that are kept for higher ones.
    fn available_to(&self, sequence: &Sequence) -> u32 {
        if self.running.is_empty() && self.loading.len() == 0 {
            return self.blocks.available();
        }
        let waited_ms = self.now_ms.saturating_sub(sequence.submitted_us / 1_000);
        self.blocks.available_to(sequence.request.priority, waited_ms)
    }

    /// How many steps nothing changes for, with the blocks that they take. There is room for one at least.
    fn stretch_steps(&mut self) -> u32 {
        let mut steps = self.running.iter().map(|s| s.left()).min().unwrap_or(1).max(1);
        let wanted = |sequence: &Sequence, steps: u32, block_tokens: u32| {
            let tokens = sequence.tokens().saturating_add(steps);
            (tokens.div_ceil(block_tokens) as usize).saturating_sub(sequence.table.len())
        };
        let all = |steps: u32| -> usize {
            self.running.iter().map(|s| wanted(s, steps, self.block_tokens)).sum()
        };
        while steps > 1 && all(steps) > self.blocks.available() as usize {
            steps /= 2;
        }
        for sequence in &mut self.running {
            for _ in 0..wanted(sequence, steps, self.block_tokens) {
                let namespace = sequence.request.namespace;
                if !self.blocks.extend(&mut sequence.table, namespace, self.now_ms) {
                    break;
                }
            }
        }
        steps
    }

    /// Takes in what the stretch has computed.
    fn finish(&mut self, stretch: Stretch, notes: &mut Vec<Note>) {
        let now_us = stretch.end_us;
        if stretch.steps == 0 {
            return;
        }
        self.counters.busy_us += now_us - stretch.start_us;
        let decoded = self.running.iter().any(|s| s.decodes());
        let mut ended = false;
        for at in 0..self.running.len() {
            let sequence = &mut self.running[at];
            let said_before = sequence.said;
            if sequence.decodes() {
                sequence.said += stretch.steps;
                sequence.computed += stretch.steps;
                self.counters.decode_tokens += u64::from(stretch.steps);
            } else {
                sequence.computed += sequence.piece;
                self.counters.prefill_tokens += u64::from(sequence.piece);
                sequence.said += u32::from(sequence.unread() == 0);
            }
            if said_before == 0 && sequence.said > 0 {
                let (id, cached_tokens) = (sequence.request.id, sequence.cached_tokens);
                let admitted_us = sequence.admitted_us.unwrap_or(sequence.submitted_us);
                let waited_us = admitted_us - sequence.submitted_us;
                notes.push(Note::First { id, cached_tokens, waited_us });
                let computed = sequence.request.prompt_tokens - cached_tokens;
                self.measure_prefill(computed, now_us - admitted_us);
            }
            ended |= self.running[at].left() == 0;
            self.register(at);
        }
        if decoded {
            self.measure_decode(stretch);
        }
        if ended {
            self.end_done(now_us, notes);
        }
    }

    /// Makes the full blocks of a request known.
    fn register(&mut self, at: usize) {
        let sequence = &mut self.running[at];
        let full = (sequence.computed / self.block_tokens).min(sequence.request.chain_blocks);
        let namespace = sequence.request.namespace;
        while sequence.registered < full as usize {
            let number = sequence.registered;
            let hash = sequence.request.chain[number].0;
            self.blocks.register(&mut sequence.table, number, hash, namespace);
            sequence.registered += 1;
        }
    }

    fn end_done(&mut self, now_us: u64, notes: &mut Vec<Note>) {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].left() > 0 {
                at += 1;
                continue;
            }
            let mut sequence = self.running.remove(at);
            self.give_back(&mut sequence, now_us);
            notes.push(Note::Ended { id: sequence.request.id });
        }
    }

    fn measure_prefill(&mut self, computed: u32, took_us: u64) {
        if computed >= PACE_TOKENS_MIN {
            blend(&mut self.prefill_us_per_token, took_us as f32 / computed as f32, 1);
        }
    }

    fn measure_decode(&mut self, stretch: Stretch) {
        let took_us = (stretch.end_us - stretch.start_us) as f32;
        blend(&mut self.decode_us_per_step, took_us / stretch.steps as f32, stretch.steps);
    }
}

/// Moves a moving average as `times` equal samples do.
fn blend(average: &mut f32, sample: f32, times: u32) {
    if *average == 0.0 {
        *average = sample;
        return;
    }
    // Beyond that nothing is left of what was before.
    let kept = (1.0 - PACE_WEIGHT).powi(times.min(1_000) as i32);
    *average = sample + kept * (*average - sample);
}

#[cfg(test)]
mod tests;
