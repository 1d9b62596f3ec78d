//! One run: builds the cluster of a plan, steps it through virtual time, lets the faults happen, looks at every
//! member as it goes, and hands the history to the invariants.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mainstay_raft::Read;
use mainstay_raft::simulation::{self, Disk, Safeguard};
use mainstay_types::{LogIndex, NodeId};
use turmoil::Sim;

use crate::client::{self, Clients};
use crate::dice::Dice;
use crate::history::{History, Sample};
use crate::invariants;
use crate::member::{self, Seat};
use crate::network;
use crate::plan::{END_MS, FAULTS_UNTIL_MS, Fault, Plan, Who};

/// Between two looks at the members.
const LOOK_MS: u64 = 20;
/// How long the last answers are waited for after the clients' end.
const DRAIN_MS: u64 = 10_000;
/// A member that ended by itself is started again after this, as a supervisor does.
const RESTART_MS: u64 = 100;
/// More than the shards that tokio keeps the tasks of one thread in.
const TASK_NUMBERS_ROUND: u64 = 64;
/// Held by the one run of this process, so that its tasks are numbered without gaps.
static RUNNING: Mutex<()> = Mutex::new(());
const ENTRIES_PER_LOOK: usize = 4_096;

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// What was broken; empty if all went well.
    pub violations: Vec<String>,
    /// Everything that was asked, answered, seen and done, in order.
    pub trace: Vec<String>,
    /// Numbers for people.
    pub counts: Counts,
}

/// How much happened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Writes that were answered.
    pub writes: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Questions without an answer.
    pub unanswered: usize,
    /// Entries that were applied and replayed.
    pub entries: usize,
    /// Lives of members.
    pub lives: usize,
    /// Leaderships that stamped an entry.
    pub leaderships: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.unanswered += other.unanswered;
        self.entries += other.entries;
        self.lives += other.lives;
        self.leaderships += other.leaderships;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes, reads, unanswered, entries, lives, leaderships } = self;
        write!(
            f,
            "{writes} writes, {reads} reads, {unanswered} unanswered, {entries} entries, {lives} lives, {leaderships} leaderships"
        )
    }
}

/// Runs a plan, without one safeguard if one is named. Each run has a thread of its own, so that nothing that
/// libraries keep for a thread goes from one run to the next.
#[must_use]
pub fn run(plan: &Plan, lacking: Option<Safeguard>) -> Report {
    let _alone = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|threads| {
        let thread = threads.spawn(|| {
            begin_at_a_round_task();
            play(plan, lacking)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// tokio numbers the tasks of a whole process, and drops those of a crashed member in an order that hangs on the
/// last bits of their numbers.
fn begin_at_a_round_task() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without drivers needs nothing").block_on(async {
        let number = || tokio::spawn(async {}).id().to_string().parse::<u64>();
        while !number().expect("a task's id is a number").is_multiple_of(TASK_NUMBERS_ROUND) {}
    });
}

fn play(plan: &Plan, lacking: Option<Safeguard>) -> Report {
    simulation::seed(plan.seed);
    simulation::take_away(lacking);
    let mut world = World::new(plan);
    let failed = world.play(plan).err();
    let World { history, mut trace, sim, .. } = world;
    // The members' tasks end with it, while the seed is still in force.
    drop(sim);
    let mut history = std::mem::take(&mut *history.borrow_mut());
    history.end_ms = END_MS;
    trace.extend(history.attempts.iter().map(|a| format!("{a:?}")));
    let (mut violations, counts) = invariants::check(&history);
    violations.extend(failed.map(|e| format!("the simulation itself failed: {e}")));
    Report { violations, trace, counts }
}

struct World {
    sim: Sim<'static>,
    seats: Vec<Rc<Seat>>,
    history: Rc<RefCell<History>>,
    trace: Vec<String>,
    /// Members that are down, and when they come back.
    down: BTreeMap<u64, u64>,
    /// The entry that each member is looked at next for.
    next_entry: BTreeMap<u64, u64>,
    /// A crash that waits for a vote, and how long it lasts.
    crash_voter: Option<u64>,
}

impl World {
    fn new(plan: &Plan) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
            .rng_seed(plan.seed)
            .simulation_duration(Duration::from_millis(END_MS + 2 * DRAIN_MS))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(plan.latency_ms_max))
            .tcp_capacity(8_192)
            .enable_random_order();
        if plan.losses_ppm > 0 {
            builder.fail_rate(plan.losses_ppm as f64 / 1e6).repair_rate(0.2);
        }
        let mut sim = builder.build();
        let members: Vec<(NodeId, String)> =
            (1..=plan.members).map(|id| (NodeId(id), network::address(id))).collect();
        let seat = |(id, offset_ms): (u64, &i64)| {
            Rc::new(Seat {
                id,
                members: members.clone(),
                disk: Disk::new(plan.sync_ms_max),
                offset_ms: Arc::new(AtomicI64::new(*offset_ms)),
                live: RefCell::new(None),
                started_ms: Cell::new(0),
                ended: RefCell::new(None),
            })
        };
        let seats: Vec<Rc<Seat>> = (1..=plan.members).zip(&plan.offsets_ms).map(seat).collect();
        for seat in &seats {
            let seat = Rc::clone(seat);
            sim.host(network::host(seat.id), move || member::run(Rc::clone(&seat)));
        }
        let history = History { limits: member::limits(), ..History::default() };
        let history = Rc::new(RefCell::new(history));
        let clients = Rc::new(Clients {
            seats: seats.clone(),
            history: Rc::clone(&history),
            pins: RefCell::default(),
            end_ms: END_MS,
        });
        for id in 1..=plan.clients {
            let dice = Dice::new(plan.seed, 100 + id);
            sim.client(format!("client-{id}"), client::run(Rc::clone(&clients), id, dice));
        }
        Self {
            sim,
            seats,
            history,
            trace: Vec::new(),
            down: BTreeMap::new(),
            next_entry: BTreeMap::new(),
            crash_voter: None,
        }
    }

    fn play(&mut self, plan: &Plan) -> turmoil::Result {
        let mut faults = plan.faults.iter().peekable();
        let mut whole = false;
        loop {
            let now_ms = self.now_ms();
            while let Some((_, fault)) = faults.next_if(|(at_ms, _)| *at_ms <= now_ms) {
                self.happen(fault);
            }
            if now_ms >= FAULTS_UNTIL_MS && !whole {
                whole = true;
                self.mend();
            }
            self.bring_back();
            let finished = self.sim.step()?;
            self.crash_a_voter();
            if now_ms.is_multiple_of(LOOK_MS) {
                (1..=plan.members).for_each(|id| self.look(id));
            }
            if finished || now_ms > END_MS + DRAIN_MS {
                (1..=plan.members).for_each(|id| self.look(id));
                return Ok(());
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn seat(&self, id: u64) -> &Rc<Seat> {
        &self.seats[usize::try_from(id - 1).expect("ids are small")]
    }

    fn others(&self, id: u64) -> Vec<u64> {
        self.seats.iter().map(|s| s.id).filter(|other| *other != id).collect()
    }

    fn find(&self, who: Who) -> Option<u64> {
        match who {
            Who::Member(id) => Some(id),
            Who::Leader => {
                let leads =
                    |s: &&Rc<Seat>| s.live.borrow().as_ref().is_some_and(|l| l.group.leads());
                self.seats.iter().find(leads).map(|s| s.id)
            }
        }
    }

    fn happen(&mut self, fault: &Fault) {
        let line = format!("{} {fault:?}", self.now_ms());
        self.trace.push(line);
        match *fault {
            Fault::Crash { who, kept_percent, down_ms } => {
                if let Some(id) = self.find(who) {
                    self.crash(id, kept_percent, down_ms);
                }
            }
            Fault::CrashVoter { down_ms } => {
                for seat in &self.seats {
                    // Votes of the past do not count.
                    let _ = seat.disk.take_vote();
                }
                self.crash_voter = Some(down_ms);
            }
            Fault::Isolate(who) => {
                if let Some(id) = self.find(who) {
                    for other in self.others(id) {
                        self.sim.partition(network::host(id), network::host(other));
                    }
                }
            }
            Fault::OneWay { from, to } => {
                self.sim.partition_oneway(network::host(from), network::host(to));
            }
            Fault::Split(upto) => {
                for a in 1..=upto {
                    for b in upto + 1..=self.seats.len() as u64 {
                        self.sim.partition(network::host(a), network::host(b));
                    }
                }
            }
            Fault::Between(middle) => {
                let members = self.seats.len() as u64;
                let round = |steps: u64| network::host((middle - 1 + steps) % members + 1);
                let half = members.div_ceil(2);
                for a in 1..half {
                    for b in half..members {
                        self.sim.partition(round(a), round(b));
                    }
                }
            }
            Fault::Heal => self.repair(),
            Fault::Slow { a, b, ms } => {
                let latency = Duration::from_millis(ms);
                self.sim.set_link_max_message_latency(network::host(a), network::host(b), latency);
            }
            Fault::Stall(who, ms) => {
                if let Some(id) = self.find(who) {
                    self.seat(id).disk.stall(ms);
                }
            }
            Fault::Jump(who, offset_ms) => {
                if let Some(id) = self.find(who) {
                    self.seat(id).offset_ms.store(offset_ms, Ordering::Relaxed);
                }
            }
            Fault::Snapshot(id) => {
                let live = self.seat(id).live.borrow().clone();
                if let Some(live) = live {
                    // It is only a message to the group's own task.
                    let _ = futures::FutureExt::now_or_never(live.group.snapshot());
                }
            }
        }
    }

    fn repair(&self) {
        for seat in &self.seats {
            for other in self.others(seat.id).into_iter().filter(|other| *other > seat.id) {
                self.sim.repair(network::host(seat.id), network::host(other));
            }
        }
    }

    /// Makes everything whole.
    fn mend(&mut self) {
        self.repair();
        self.crash_voter = None;
        let now_ms = self.now_ms();
        self.history.borrow_mut().whole_from_ms = now_ms;
        self.down.values_mut().for_each(|at_ms| *at_ms = now_ms);
        for seat in &self.seats {
            for other in self.others(seat.id).into_iter().filter(|other| *other > seat.id) {
                let (a, b) = (network::host(seat.id), network::host(other));
                self.sim.set_link_max_message_latency(
                    a.clone(),
                    b.clone(),
                    Duration::from_millis(5),
                );
                self.sim.set_link_fail_rate(a, b, 0.0);
            }
        }
    }

    fn crash(&mut self, id: u64, kept_percent: u64, down_ms: u64) {
        if self.down.contains_key(&id) {
            return;
        }
        self.look(id);
        let seat = Rc::clone(self.seat(id));
        seat.live.replace(None);
        self.sim.crash(network::host(id));
        let unsynced = seat.disk.unsynced() as u64;
        let kept = unsynced * kept_percent / 100;
        seat.disk.crash(usize::try_from(kept).unwrap_or(usize::MAX));
        let now_ms = self.now_ms();
        self.trace.push(format!("{now_ms} member {id} is down, {kept} of {unsynced} writes stay"));
        self.down.insert(id, now_ms + down_ms);
    }

    fn crash_a_voter(&mut self) {
        let Some(down_ms) = self.crash_voter else { return };
        let voted = |s: &&Rc<Seat>| s.disk.take_vote().is_some_and(|candidate| candidate != s.id);
        if let Some(id) = self.seats.iter().find(voted).map(|s| s.id) {
            self.crash_voter = None;
            // The answer needs a moment to leave the machine.
            self.trace.push(format!("{} member {id} has voted", self.now_ms()));
            self.crash(id, 0, down_ms);
        }
    }

    fn bring_back(&mut self) {
        let now_ms = self.now_ms();
        for seat in self.seats.clone() {
            if let Some(reason) = seat.ended.take() {
                self.history
                    .borrow_mut()
                    .ends
                    .push(format!("{now_ms}: member {}: {reason}", seat.id));
                self.down.insert(seat.id, now_ms + RESTART_MS);
            }
        }
        let back: Vec<u64> =
            self.down.iter().filter(|(_, at_ms)| **at_ms <= now_ms).map(|(id, _)| *id).collect();
        for id in back {
            self.down.remove(&id);
            self.next_entry.remove(&id);
            self.trace.push(format!("{now_ms} member {id} is back"));
            self.sim.bounce(network::host(id));
        }
    }

    /// Notes how far a member is, its digest there, and the entries that it applied since.
    fn look(&mut self, id: u64) {
        let seat = Rc::clone(self.seat(id));
        let Some(live) = seat.live.borrow().clone() else { return };
        let at_ms = self.now_ms();
        let history = &mut *self.history.borrow_mut();
        history.lives.entry(live.group.boot()).or_insert((id, seat.started_ms.get()));
        let (applied, digest) = live.group.read(|m| (m.applied().0, m.digest()));
        let known = history.samples.iter().rev().find(|s| s.node == id);
        if known.is_some_and(|s| s.applied == applied && s.digest == digest) {
            return;
        }
        self.trace.push(format!("{at_ms} member {id} has applied {applied}: {digest:032x}"));
        history.samples.push(Sample { at_ms, node: id, applied, digest });
        let next = self.next_entry.entry(id).or_insert(0);
        loop {
            match live.group.entries(LogIndex(*next), ENTRIES_PER_LOOK) {
                Read::UpToDate => return,
                // An image stands for what came before.
                Read::Lagged => *next += 1,
                Read::Entries(entries) => {
                    for entry in entries {
                        *next = entry.index + 1;
                        let first =
                            history.log.entry(entry.index).or_insert(entry.proposal.clone());
                        if *first != entry.proposal {
                            history.contradictions.push(format!(
                                "{at_ms}: member {id} applied another entry {}: {first:?} and {:?}",
                                entry.index, entry.proposal
                            ));
                        }
                    }
                }
            }
        }
    }
}
