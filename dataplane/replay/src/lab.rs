//! The event loop: sessions ask, a policy chooses, workers compute, and time jumps from one event to the next.
//!
//! Events of one instant happen in the order in which they were made, so a run is a function of trace, settings and
//! policy. There are no events for tokens and none for loads; what a request costs here is its share of steps with
//! prompts, and a few passes over its blocks.

mod sums;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use mainstay_index::Overlap;
use mainstay_sim_model::{Note, Profile, Request};
use mainstay_types::SequenceHash;

use crate::fleet::Fleet;
use crate::ideal::Ideal;
use crate::live::{Live, NAMESPACE, Step};
use crate::policy::{Chooser, PolicyName, Question, Ticket};
use crate::report::Report;
use crate::rng::{Rng, mix};
use crate::series::Course;
use crate::slab::Slab;
use crate::slow::Slow;
use crate::trace::{Session, Trace};
use sums::{Run, Sums, class_place};

/// Workers at most.
const WORKERS_MAX: u32 = 4_096;
/// Sessions alive at once at most.
const ALIVE_MAX: usize = 1 << 18;
/// Requests that a run asks for at most.
const REQUESTS_MAX: usize = 1 << 24;
/// The first sessions start within this time, so that they do not move in step.
const RAMP_US: u64 = 60_000_000;
/// How often each place among the living is filled, where no number of requests is given.
const GENERATIONS: usize = 3;

/// A clock in nanoseconds.
pub type Stopwatch<'a> = &'a mut dyn FnMut() -> u64;

/// How a trace is played.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Workers, all alike.
    pub workers: u32,
    /// Sessions that are alive for each worker; for traces with times, how much faster they come.
    pub load: f64,
    /// For all that is drawn.
    pub seed: u64,
    /// Sessions are started until they have so many requests; 0 plays the whole trace, and at least as many
    /// sessions as fill the fleet three times.
    pub requests: usize,
    /// The engines.
    pub profile: Profile,
    /// From a change in a cache to its being in the index.
    pub event_delay_ms: u64,
    /// Workers that are slower, or become so.
    pub slow: Vec<Slow>,
    /// Whether those report the pace of workers that are not.
    pub slow_unseen: bool,
    /// The share of sessions whose requests go first, and of those that go last, unless the trace says so itself.
    pub urgent: f64,
    /// See `urgent`.
    pub background: f64,
    /// Whether the report has its distribution and course, for plots.
    pub series: bool,
}

impl Settings {
    /// Eight workers with four sessions each, and nothing out of the ordinary.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            workers: 8,
            load: 4.0,
            seed: 1,
            requests: 0,
            profile,
            event_delay_ms: 20,
            slow: Vec::new(),
            slow_unseen: false,
            urgent: 0.0,
            background: 0.0,
            series: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A worker's step ends.
    Worker(u32),
    /// An agent asks.
    Ask { slot: u32, agent: u32 },
    /// The next session starts.
    Start,
    /// A change of speed, by its place in the settings.
    Slow(u32),
}

/// A request that is being served.
struct Asked {
    slot: u32,
    agent: u32,
    arrived_us: u64,
    prompt_tokens: u32,
    /// Of these, what a cache without end had.
    ideal_tokens: u64,
    output_tokens: u32,
    chain: Arc<[SequenceHash]>,
    chain_blocks: u32,
    priority: i32,
    ticket: Ticket,
}

struct Lab<'a> {
    trace: &'a Trace,
    settings: &'a Settings,
    /// After so long a trace with times begins again.
    lap_ms: u64,
    fleet: Fleet,
    chooser: Chooser,
    ideal: Ideal,
    rng: Rng,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    event_count: u64,
    /// Sessions to start: place in the trace, and which copy.
    queue: std::vec::IntoIter<(u32, u64)>,
    alive: Slab<Live>,
    asked: Slab<Asked>,
    started: u64,
    notes: Vec<Note>,
    steps: Vec<Step>,
    overlaps: Vec<Overlap>,
    sums: Sums,
    course: Option<Course>,
}

/// Plays a trace under a policy. With a stopwatch, each decision is timed; all else stays the same.
#[must_use]
pub fn play(
    trace: &Trace,
    settings: &Settings,
    policy: PolicyName,
    name: &str,
    mut stopwatch: Option<Stopwatch<'_>>,
) -> Report {
    let workers = settings.workers.clamp(1, WORKERS_MAX);
    let delay_us = settings.event_delay_ms.saturating_mul(1_000);
    let delay_us = policy.reads_index().then_some(delay_us);
    let mut rng = Rng::new(settings.seed);
    let alive = alive(settings, workers);
    let queue = queue(trace, settings, alive, &mut rng);
    let mut lab = Lab {
        trace,
        settings,
        lap_ms: trace.sessions.iter().map(|s| s.start_ms).max().unwrap_or(0).saturating_add(1),
        fleet: Fleet::new(workers, &settings.profile, trace.block_tokens, delay_us),
        chooser: Chooser::new(policy, workers, trace.block_tokens),
        ideal: Ideal::default(),
        events: BinaryHeap::new(),
        event_count: 0,
        queue: queue.into_iter(),
        alive: Slab::default(),
        asked: Slab::default(),
        started: 0,
        notes: Vec::new(),
        steps: Vec::new(),
        overlaps: Vec::new(),
        sums: Sums::default(),
        course: settings.series.then(Course::default),
        rng,
    };
    for (at, slow) in settings.slow.iter().enumerate() {
        lab.at(slow.from_s.saturating_mul(1_000_000), Event::Slow(at as u32));
    }
    lab.open(alive);
    let mut now_us = 0;
    while let Some(Reverse((at_us, _, event))) = lab.events.pop() {
        if let Event::Slow(change) = event {
            // It is no traffic, so the run does not last until it.
            lab.slow_down(change, at_us);
            continue;
        }
        now_us = at_us;
        match event {
            Event::Slow(_) => {}
            Event::Worker(worker) => lab.step(worker, now_us),
            Event::Ask { slot, agent } => lab.ask(slot, agent, now_us, &mut stopwatch),
            Event::Start => lab.start(now_us),
        }
    }
    let counters = lab.fleet.counters();
    let run = Run { name, workers, end_us: now_us, sessions: lab.started, counters };
    lab.sums.report(&run, lab.course.as_ref())
}

/// How many sessions are alive at once.
fn alive(settings: &Settings, workers: u32) -> usize {
    let alive = (settings.load * f64::from(workers)).round();
    // A cast from a float stops at the ends of the range, and what is no number becomes 0.
    (alive as usize).clamp(1, ALIVE_MAX)
}

/// Which sessions are played, in their order.
fn queue(trace: &Trace, settings: &Settings, alive: usize, rng: &mut Rng) -> Vec<(u32, u64)> {
    let mut order: Vec<u32> = (0..trace.sessions.len() as u32).collect();
    if !trace.timed {
        rng.shuffle(&mut order);
    }
    let least = if trace.timed { 0 } else { alive * GENERATIONS };
    let sessions = order.len().max(least);
    let mut queue = Vec::new();
    let mut requests = 0;
    for copy in 0.. {
        for &place in &order {
            let enough = match settings.requests {
                0 => queue.len() >= sessions,
                wanted => requests >= wanted.min(REQUESTS_MAX),
            };
            if enough {
                return queue;
            }
            requests += trace.sessions[place as usize].turns();
            queue.push((place, copy));
        }
    }
    queue
}

impl Lab<'_> {
    fn session(&self, place: u32) -> &Session {
        &self.trace.sessions[place as usize]
    }

    fn at(&mut self, time_us: u64, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((time_us, self.event_count, event)));
    }

    fn slow_down(&mut self, change: u32, now_us: u64) {
        let Some(slow) = self.settings.slow.get(change as usize).copied() else { return };
        let (first, last) = slow.workers;
        for worker in first..=last.min(WORKERS_MAX) {
            if worker >= self.fleet.count() {
                return;
            }
            self.fleet.set_speed(worker, slow.speed, self.settings.slow_unseen, now_us);
            if let Some(next_us) = self.fleet.next_us(worker) {
                self.at(next_us, Event::Worker(worker));
            }
        }
    }

    /// The priority of a session's requests.
    fn class(&self, serial: u64) -> i32 {
        let drawn = mix(mix(self.settings.seed ^ 0x7072_696f) ^ serial) >> 11;
        let drawn = drawn as f64 / (1_u64 << 53) as f64;
        match self.settings {
            Settings { urgent, .. } if drawn < *urgent => 1,
            Settings { urgent, background, .. } if drawn < urgent + background => -1,
            _ => 0,
        }
    }

    /// Makes the first sessions start.
    fn open(&mut self, alive: usize) {
        if self.trace.timed {
            self.start_at_its_time();
            return;
        }
        for _ in 0..alive {
            let time_us = self.rng.below(RAMP_US);
            self.at(time_us, Event::Start);
        }
    }

    /// Makes the next session of a trace with times start when it is due.
    fn start_at_its_time(&mut self) {
        let Some(&(place, copy)) = self.queue.as_slice().first() else { return };
        let start_ms =
            self.session(place).start_ms.saturating_add(copy.saturating_mul(self.lap_ms));
        let faster = if self.settings.load > 0.0 { self.settings.load } else { 1.0 };
        let time_us = (start_ms as f64 * 1_000.0 / faster) as u64;
        self.at(time_us, Event::Start);
    }

    fn start(&mut self, now_us: u64) {
        let Some((place, copy)) = self.queue.next() else {
            self.no_more_to_start(now_us);
            return;
        };
        let session = &self.trace.sessions[place as usize];
        let mut live = Live::new(self.started, place, copy, session);
        self.started += 1;
        live.begin(session, &mut self.steps);
        let slot = self.alive.add(live);
        if self.trace.timed {
            self.start_at_its_time();
        }
        if self.queue.as_slice().is_empty() {
            self.no_more_to_start(now_us);
        }
        self.obey(slot, now_us);
    }

    fn no_more_to_start(&mut self, now_us: u64) {
        let busy_us = self.fleet.counters().busy_us;
        let tokens = self.sums.output_tokens;
        self.sums.full.get_or_insert((now_us, tokens, busy_us));
    }

    /// Does what the agents of a session want.
    fn obey(&mut self, slot: u32, now_us: u64) {
        let mut steps = std::mem::take(&mut self.steps);
        for step in steps.drain(..) {
            match step {
                Step::Ask { agent, pause_ms } => {
                    let time_us = now_us + u64::from(pause_ms) * 1_000;
                    self.at(time_us, Event::Ask { slot, agent });
                }
                Step::Over => self.over(slot, now_us),
            }
        }
        self.steps = steps;
    }

    fn over(&mut self, slot: u32, now_us: u64) {
        let Some(live) = self.alive.take(slot) else { return };
        let session = &self.trace.sessions[live.session as usize];
        if !session.numbers_are_global {
            for (hashes, chain) in live.chains.iter().zip(&session.chains) {
                self.ideal.forget(&hashes[chain.shared_blocks as usize..]);
            }
        }
        self.chooser.forget_session(live.serial);
        if !self.trace.timed {
            self.at(now_us, Event::Start);
        }
    }

    fn ask(&mut self, slot: u32, agent: u32, now_us: u64, stopwatch: &mut Option<Stopwatch<'_>>) {
        let Some(live) = self.alive.get(slot) else { return };
        let session = &self.trace.sessions[live.session as usize];
        let Some(turn) = live.turn(session, agent) else { return };
        let chain = Arc::clone(&live.chains[turn.chain as usize]);
        let block_tokens = self.trace.block_tokens;
        let (serial, own) = (live.serial, i32::from(turn.priority));
        let priority = if own == 0 { self.class(serial) } else { own };
        let question = Question {
            now_ms: now_us / 1_000,
            session: serial,
            chain: &chain,
            prompt_blocks: turn.prompt_blocks,
            prompt_tokens: turn.prompt_tokens,
            block_tokens,
            priority,
            random: self.rng.draw(),
        };
        let prompt = question.prompt();
        self.fleet.catch_up(now_us);
        self.fleet.views(now_us);
        let before_ns = stopwatch.as_mut().map(|clock| clock());
        self.fleet.overlaps(prompt, &mut self.overlaps);
        let views = self.fleet.views(now_us);
        let Some((worker, ticket)) = self.chooser.choose(&question, &self.overlaps, views) else {
            return;
        };
        if let (Some(clock), Some(before_ns)) = (stopwatch, before_ns) {
            self.sums.decision_ns.push(clock().saturating_sub(before_ns));
        }
        let hits = (self.ideal.hits(prompt) as u32).min((turn.prompt_tokens - 1) / block_tokens);
        self.ideal.add(prompt);
        let ideal_tokens = u64::from(hits) * u64::from(block_tokens);
        self.sums.ideal_tokens += ideal_tokens;
        self.sums.prompt_tokens += u64::from(turn.prompt_tokens);
        let id = self.asked.add(Asked {
            slot,
            agent,
            arrived_us: now_us,
            prompt_tokens: turn.prompt_tokens,
            ideal_tokens,
            output_tokens: turn.output_tokens,
            chain: Arc::clone(&chain),
            chain_blocks: turn.chain_blocks,
            priority,
            ticket,
        });
        if let Some(course) = &mut self.course {
            course.arrived(now_us);
        }
        let request = Request {
            id: u64::from(id),
            namespace: NAMESPACE,
            chain,
            chain_blocks: turn.chain_blocks,
            prompt_tokens: turn.prompt_tokens,
            output_tokens: turn.output_tokens,
            priority,
        };
        self.send(worker, request, now_us);
    }

    fn send(&mut self, worker: u32, request: Request, now_us: u64) {
        if let Some(note) = self.fleet.submit(worker, request, now_us) {
            self.heed(note, now_us);
            return;
        }
        if self.fleet.is_idle(worker) {
            self.step(worker, now_us);
        } else if let Some(next_us) = self.fleet.next_us(worker) {
            self.at(next_us, Event::Worker(worker));
        }
    }

    fn step(&mut self, worker: u32, now_us: u64) {
        if self.fleet.next_us(worker).is_some_and(|next_us| next_us > now_us) {
            // A step that was cut short has another event.
            return;
        }
        let mut notes = std::mem::take(&mut self.notes);
        self.fleet.advance(worker, now_us, &mut notes);
        if let Some(next_us) = self.fleet.next_us(worker) {
            self.at(next_us, Event::Worker(worker));
        }
        for note in notes.drain(..) {
            self.heed(note, now_us);
        }
        self.notes = notes;
    }

    fn heed(&mut self, note: Note, now_us: u64) {
        match note {
            Note::First { id, cached_tokens } => {
                let Some(asked) = self.asked.get(id as u32) else { return };
                let ttft_us = now_us - asked.arrived_us;
                self.sums.ttft_us.push(ttft_us);
                self.sums.classes[class_place(asked.priority)].0.push(ttft_us);
                self.sums.cached_tokens += u64::from(cached_tokens);
                if let Some(course) = &mut self.course {
                    course.first(now_us, ttft_us, asked.prompt_tokens, cached_tokens);
                }
                let ticket = asked.ticket;
                self.chooser.first_token(now_us / 1000, ticket);
            }
            Note::Ended { id } => {
                let Some(asked) = self.asked.take(id as u32) else { return };
                let took_us = (now_us - asked.arrived_us).max(1);
                let tokens = u64::from(asked.output_tokens);
                let tok_ms = tokens * 1_000_000_000 / took_us;
                self.sums.tok_ms.push(tok_ms);
                self.sums.classes[class_place(asked.priority)].1.push(tok_ms);
                if let Some(course) = &mut self.course {
                    course.ended(now_us, tokens);
                }
                self.sums.output_tokens += tokens;
                self.ideal.add(&asked.chain[..asked.chain_blocks as usize]);
                self.go_on(&asked, now_us);
            }
            Note::Refused { id } => {
                let Some(asked) = self.asked.take(id as u32) else { return };
                self.sums.refused += 1;
                if let Some(course) = &mut self.course {
                    course.ended(now_us, 0);
                }
                self.sums.prompt_tokens -= u64::from(asked.prompt_tokens);
                self.sums.ideal_tokens -= asked.ideal_tokens;
                self.go_on(&asked, now_us);
            }
        }
    }

    /// The session goes on after a request.
    fn go_on(&mut self, asked: &Asked, now_us: u64) {
        self.chooser.ended(asked.ticket);
        let Some(live) = self.alive.get(asked.slot) else { return };
        let session = &self.trace.sessions[live.session as usize];
        live.ended(session, asked.agent, &mut self.steps);
        self.obey(asked.slot, now_us);
    }
}

#[cfg(test)]
mod tests;
