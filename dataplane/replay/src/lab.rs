//! The event loop: sessions ask, a policy chooses, workers compute, and time jumps from one event to the next.
//!
//! Events of one instant happen in the order in which they were made, so a run is a function of trace, settings and
//! policy. There are no events for tokens and none for loads; what a request costs here is its share of steps with
//! prompts, and a few passes over its blocks.

mod keeper;
mod line;
mod pins;
mod returns;
mod strangers;
mod sums;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use mainstay_route::{QueueSettings, RequestQueue, Waiting};
use mainstay_sim_model::{Note, Profile};
use mainstay_types::SequenceHash;

use crate::fleet::{Fleet, Overlaps};
use crate::ideal::Ideal;
use crate::live::{Live, Step};
use crate::policy::{Chooser, PolicyName, Ticket};
use crate::report::Report;
use crate::rng::{Rng, mix};
use crate::series::Course;
use crate::slab::Slab;
use crate::slow::Slow;
use crate::trace::{Role, Session, Trace};
use keeper::{Keeper, Letters, Sight};
use pins::Pins;
use returns::{Away, Returns};
use strangers::NOBODY;
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
    /// The router's queue, for policies that are its own; one without a threshold is none.
    pub queue: QueueSettings,
    /// The priority of `urgent` sessions; those of `background` have as much below 0.
    pub urgent_priority: i32,
    /// The queue's tier of `urgent` sessions.
    pub urgent_tier: u8,
    /// Whether router and engines are told of priorities: else sessions are only counted by them.
    pub hints: bool,
    /// Whether requests tell how long their answers will be.
    pub tell_output: bool,
    /// Workers bring in what others hold, where the policy is one of the router's.
    pub transfer: bool,
    /// Sessions take leases and their changes become orders, as gateways have it; else blocks are alike.
    pub lifecycle: bool,
    /// Requests that nobody comes back to bring so many times all caches each minute.
    pub flood: f64,
    /// The first so many tokens of some leads are pinned in the engines that serve them; 0 is none.
    pub pin_tokens: u32,
    /// The share of sessions whose lead is pinned.
    pub pinned: f64,
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
            queue: QueueSettings::default(),
            urgent_priority: 1,
            urgent_tier: 0,
            hints: true,
            tell_output: false,
            transfer: false,
            lifecycle: false,
            flood: 0.0,
            pin_tokens: 0,
            pinned: 0.0,
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
    /// Those who wait may go on, if there is room now.
    Pump,
    /// Who was turned away comes again.
    Again(u32),
    /// Somebody without a session asks.
    Stranger,
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
    /// What it is counted by, whether anybody is told or not.
    priority: i32,
    prompt_blocks: u32,
    /// The serial of its session.
    session: u64,
    ticket: Option<Ticket>,
    /// As what it waited, if it did.
    waited: Option<Box<Waiting>>,
    /// The worker that it was sent to last.
    served: u32,
    /// What lay between it and the turn before.
    away: Option<Away>,
    role: Role,
    calls: bool,
    /// What it has in common with other sessions.
    head_tokens: u32,
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
    /// Who waits for room, where a queue is asked for and the policy has one.
    line: Option<RequestQueue>,
    pumping: bool,
    started: u64,
    strangers: u64,
    /// Mean time between two strangers, if any come.
    stranger_us: Option<f64>,
    keeper: Option<Keeper>,
    pins: Pins,
    returns: Returns,
    notes: Vec<Note>,
    steps: Vec<Step>,
    overlaps: Overlaps,
    fetch_us_per_token: Option<f32>,
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
        line: line::of(settings, policy),
        pumping: false,
        started: 0,
        strangers: 0,
        stranger_us: strangers::interval_us(settings.flood, settings.profile.kv_tokens(), workers),
        keeper: settings.lifecycle.then(|| Keeper::new(workers)),
        pins: Pins::new(settings.pin_tokens, settings.pinned, trace.block_tokens, settings.seed),
        returns: Returns::default(),
        notes: Vec::new(),
        steps: Vec::new(),
        overlaps: Overlaps::default(),
        fetch_us_per_token: fetch_us_per_token(settings),
        sums: Sums::default(),
        course: settings.series.then(Course::default),
        rng,
    };
    for (at, slow) in settings.slow.iter().enumerate() {
        lab.at(slow.from_s.saturating_mul(1_000_000), Event::Slow(at as u32));
    }
    lab.open(alive);
    lab.await_stranger(0);
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
            Event::Pump => lab.pump(now_us, &mut stopwatch),
            Event::Again(id) => lab.enter(id, now_us, &mut stopwatch),
            Event::Stranger => lab.stranger(now_us, &mut stopwatch),
        }
    }
    lab.report(name, now_us)
}

/// What a token from another worker takes, where workers bring blocks in from each other.
fn fetch_us_per_token(settings: &Settings) -> Option<f32> {
    settings.profile.peer_us_per_token().filter(|_| settings.transfer).map(|us| us as f32)
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
    fn report(self, name: &str, end_us: u64) -> Report {
        let counters = self.fleet.counters();
        let workers = self.fleet.count();
        let run = Run { name, workers, end_us, sessions: self.started, counters };
        let pins = &self.pins;
        let pinned = (pins.tokens > 0)
            .then(|| self.returns.pinned(pins.tokens, pins.sessions, pins.refused));
        Report {
            lifecycle: self.settings.lifecycle,
            after_pause: self.returns.after_pause(),
            after_traffic: self.returns.after_traffic(),
            pinned,
            ..self.sums.report(&run, self.course.as_ref())
        }
    }

    /// Workers do what sessions' changes ask for.
    fn post(&mut self, letters: Letters, now_us: u64) {
        for (worker, change) in letters {
            self.fleet.change_lease(worker, &change, now_us);
        }
    }

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
            Settings { urgent, urgent_priority, .. } if drawn < *urgent => *urgent_priority,
            Settings { urgent, background, urgent_priority, .. } if drawn < urgent + background => {
                urgent_priority.saturating_neg()
            }
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
        let (tokens, by_class) = (self.sums.output_tokens, self.sums.class_tokens());
        self.sums.full.get_or_insert((now_us, tokens, busy_us, by_class));
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
        let agents = session.agents.len() as u32;
        self.returns.forget(slot, agents);
        self.pins.over(slot, live.serial, &mut self.fleet, now_us);
        if let Some(keeper) = &mut self.keeper {
            keeper.forget(slot, agents);
        }
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
        let head_tokens = session.chains[turn.chain as usize].shared_blocks * block_tokens;
        let (serial, own) = (live.serial, i32::from(turn.priority));
        let priority = if own == 0 { self.class(serial) } else { own };
        let prompt = &chain[..turn.prompt_blocks as usize];
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
            prompt_blocks: turn.prompt_blocks,
            session: serial,
            ticket: None,
            waited: None,
            served: 0,
            away: self.away((slot, agent), now_us).filter(|_| turn.role == Role::Continues),
            role: turn.role,
            calls: turn.calls,
            head_tokens,
        });
        if let Some(keeper) = &mut self.keeper {
            let letters = keeper.asks((slot, agent), serial, turn.role, now_us);
            self.post(letters, now_us);
        }
        if let Some(course) = &mut self.course {
            course.arrived(now_us);
        }
        self.enter(id, now_us, stopwatch);
    }

    fn send(&mut self, worker: u32, request: mainstay_sim_model::Request, now_us: u64) {
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
            Note::First { id, cached_tokens, waited_us } => {
                self.first(id as u32, cached_tokens, waited_us, now_us);
            }
            Note::Ended { id } => {
                let Some(asked) = self.asked.take(id as u32) else { return };
                if asked.slot == NOBODY {
                    self.go_on(&asked, now_us);
                    return;
                }
                let took_us = (now_us - asked.arrived_us).max(1);
                let tokens = u64::from(asked.output_tokens);
                let tok_ms = tokens * 1_000_000_000 / took_us;
                self.sums.tok_ms.push(tok_ms);
                if let Some(course) = &mut self.course {
                    course.ended(now_us, tokens);
                }
                self.sums.output_tokens += tokens;
                self.sums.classes[class_place(asked.priority)].ended(tok_ms, tokens);
                self.ideal.add(&asked.chain[..asked.chain_blocks as usize]);
                self.keep(&asked, now_us);
                self.go_on(&asked, now_us);
            }
            Note::Refused { id } => {
                let Some(asked) = self.asked.take(id as u32) else { return };
                if asked.slot == NOBODY {
                    self.go_on(&asked, now_us);
                    return;
                }
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

    /// A request's first token.
    fn first(&mut self, id: u32, cached_tokens: u32, waited_us: u64, now_us: u64) {
        let Some(asked) = self.asked.get(id) else { return };
        let ttft_us = now_us - asked.arrived_us;
        if let Some(ticket) = asked.ticket {
            self.chooser.first_token(now_us / 1000, ticket);
        }
        if asked.slot == NOBODY {
            self.sums.strangers_us.push(ttft_us);
            self.sums.strangers_tokens += u64::from(asked.prompt_tokens - cached_tokens);
            return;
        }
        let cached = u64::from(cached_tokens);
        let is_pressed = self.settings.flood <= 0.0 || self.sums.full.is_none();
        if let Some(away) = asked.away.filter(|_| is_pressed) {
            self.returns.found(away, asked.ideal_tokens, cached);
            let stretch = (asked.agent == 0).then(|| self.pins.stretch(asked.slot, &asked.chain));
            if let Some((tokens, is_pinned)) = stretch.flatten()
                && asked.ideal_tokens >= u64::from(tokens)
            {
                self.returns.found_stretch(away, is_pinned, u64::from(tokens), cached);
            }
        }
        self.sums.ttft_us.push(ttft_us);
        self.sums.cached_tokens += cached;
        let class = &mut self.sums.classes[class_place(asked.priority)];
        class.first(ttft_us, waited_us, asked.prompt_tokens, cached_tokens);
        if let Some(course) = &mut self.course {
            course.first(now_us, ttft_us, asked.prompt_tokens, cached_tokens);
        }
    }

    /// What lies between an agent's turns.
    fn away(&self, agent: (u32, u32), now_us: u64) -> Option<Away> {
        let taken_in = self.fleet.taken_in(self.returns.worker(agent)?);
        let cache_tokens = self.settings.profile.kv_tokens();
        self.returns.asks(agent, taken_in, cache_tokens, now_us)
    }

    /// What is kept of a turn that has ended.
    fn keep(&mut self, asked: &Asked, now_us: u64) {
        let (agent, worker) = ((asked.slot, asked.agent), asked.served);
        if asked.role != Role::Beside {
            self.returns.ended(agent, worker, self.fleet.taken_in(worker), now_us);
        }
        if asked.agent == 0 {
            let lead = (asked.slot, asked.session);
            self.pins.ended(lead, &asked.chain, worker, &mut self.fleet, now_us);
        }
        let Some(keeper) = &mut self.keeper else { return };
        if !asked.calls {
            return;
        }
        let load = self.fleet.views(now_us)[worker as usize].load;
        let block_tokens = self.trace.block_tokens;
        let sight = Sight { worker, load, figures: self.fleet.figures(worker), block_tokens };
        let letters = keeper.pauses(agent, "tool", &sight, now_us);
        self.post(letters, now_us);
    }

    /// The session goes on after a request.
    fn go_on(&mut self, asked: &Asked, now_us: u64) {
        if let Some(ticket) = asked.ticket {
            self.chooser.ended(ticket);
        }
        if let (Some(line), Some(waited)) = (&mut self.line, &asked.waited) {
            line.answered(now_us / 1_000, waited, asked.output_tokens);
        }
        if asked.slot == NOBODY {
            self.chooser.forget_session(asked.session);
            return;
        }
        let Some(live) = self.alive.get(asked.slot) else { return };
        let session = &self.trace.sessions[live.session as usize];
        live.ended(session, asked.agent, &mut self.steps);
        if let (Some(keeper), Some(parent)) = (&mut self.keeper, live.done(session, asked.agent)) {
            keeper.subagent_ended((asked.slot, asked.agent), parent);
        }
        self.obey(asked.slot, now_us);
    }
}

#[cfg(test)]
mod tests;
