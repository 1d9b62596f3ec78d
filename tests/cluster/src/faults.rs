//! The nemesis: draws faults from a seed, one after another, and undoes each, so that the cluster has to live
//! through all of them while clients go on.
//!
//! What a fault does to promises is bounded: wall clocks stay within the skew that cluster time allows, and a
//! torn log ends in bytes that nobody was told about. A member that ends by itself, other than for a full disk,
//! is a finding.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::fleet::Fleet;
use crate::proxy::{Link, Pass};
use crate::rng::Rng;

/// A kind of harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillMember,
    KillLeader,
    KillAll,
    Pause,
    Isolate,
    CutOneWay,
    SlowLinks,
    Resets,
    TornLog,
    FullDisk,
    ClockOffset,
}

/// What each run goes through, the likelier ones more often.
const DRAWN: [Fault; 17] = [
    Fault::KillMember,
    Fault::KillMember,
    Fault::KillLeader,
    Fault::KillLeader,
    Fault::KillAll,
    Fault::Pause,
    Fault::Pause,
    Fault::Isolate,
    Fault::Isolate,
    Fault::CutOneWay,
    Fault::CutOneWay,
    Fault::SlowLinks,
    Fault::SlowLinks,
    Fault::Resets,
    Fault::TornLog,
    Fault::FullDisk,
    Fault::ClockOffset,
];

/// The wall clock of a member is off by less than this: with what the machine's clock is off by itself, that stays
/// within the 250 ms of cluster time.
const CLOCK_OFFSET_MS_MAX: u64 = 230;
/// The longest that a stopped or cut-off member keeps what it was sent.
const STANDSTILL_MS_MAX: u64 = 4_000;
const RECOVERY: Duration = Duration::from_secs(30);

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub struct Tally {
    pub faults: BTreeMap<Fault, usize>,
    /// Members that ended though nobody ended them.
    pub deaths: Vec<String>,
    /// The longest time without a leader after a fault was undone.
    pub longest_recovery: Duration,
    /// The last leader's term: how many elections there were at most.
    pub term: u64,
}

impl Tally {
    /// All faults.
    pub fn total(&self) -> usize {
        self.faults.values().sum()
    }
}

/// Does harm to a fleet.
pub struct Nemesis {
    pub fleet: Fleet,
    rng: Rng,
    started: Instant,
    quiet_ms: std::ops::Range<u64>,
    tally: Tally,
}

impl Nemesis {
    /// One that leaves the fleet in peace for a time of `quiet_ms` between two faults.
    pub fn new(fleet: Fleet, rng: Rng, quiet_ms: std::ops::Range<u64>) -> Self {
        let (started, tally) = (Instant::now(), Tally::default());
        Self { fleet, rng, started, quiet_ms, tally }
    }

    /// Draws faults until `until`, then makes everything whole. Blocks: it wants a thread of its own.
    pub fn run(mut self, until: Instant) -> Result<(Fleet, Tally)> {
        // A short run meets the kinds in a drawn order before it meets one twice.
        let mut deck: Vec<Fault> = Vec::new();
        while Instant::now() < until {
            std::thread::sleep(self.rng.millis(self.quiet_ms.clone()));
            if deck.is_empty() {
                deck = self.shuffled();
            }
            let Some(fault) = deck.pop() else { continue };
            self.say(&format!("{fault:?}"));
            self.slow_all_sometimes();
            if self.inflict(fault)? {
                *self.tally.faults.entry(fault).or_insert(0) += 1;
            }
            self.fleet.net.heal();
            self.bury(fault)?;
            self.fleet.start_all()?;
            let healed = Instant::now();
            let lead = self.fleet.wait_leader(RECOVERY)?;
            self.tally.longest_recovery = self.tally.longest_recovery.max(healed.elapsed());
            self.tally.term = lead.term;
            self.say(&format!("member {} leads in term {}", lead.member, lead.term));
        }
        Ok((self.fleet, self.tally))
    }

    fn say(&self, text: &str) {
        println!("[{:7.2} s] {text}", self.started.elapsed().as_secs_f64());
    }

    fn shuffled(&mut self) -> Vec<Fault> {
        let mut deck = DRAWN.to_vec();
        if self.fleet.small_disk().is_none() {
            deck.retain(|fault| *fault != Fault::FullDisk);
        }
        for at in (1..deck.len()).rev() {
            let other = self.rng.pick(0..at as u64 + 1);
            deck.swap(at, usize::try_from(other).expect("a place in the deck"));
        }
        deck
    }

    /// Notes members that have ended by themselves.
    fn bury(&mut self, fault: Fault) -> Result<()> {
        for death in self.fleet.deaths()? {
            self.say(&death);
            if fault != Fault::FullDisk {
                self.tally.deaths.push(format!("after {fault:?}: {death}"));
            }
        }
        Ok(())
    }

    fn anybody(&mut self) -> u64 {
        let count = self.fleet.members.len() as u64;
        self.rng.pick(1..count + 1)
    }

    /// The leader, if there is one.
    fn leader(&mut self) -> u64 {
        match self.fleet.leader() {
            Some(lead) => lead.member,
            None => self.anybody(),
        }
    }

    /// The leader more often than not.
    fn somebody(&mut self) -> u64 {
        if self.rng.percent(60) { self.leader() } else { self.anybody() }
    }

    fn wait(&mut self, range: std::ops::Range<u64>) {
        std::thread::sleep(self.rng.millis(range));
    }

    fn cut(&mut self) -> Pass {
        if self.rng.percent(50) { Pass::Swallow } else { Pass::Hold }
    }

    /// Does one fault from beginning to end; members that it killed are started again by the caller if it did not.
    fn inflict(&mut self, fault: Fault) -> Result<bool> {
        match fault {
            Fault::KillMember => {
                let victim = self.anybody();
                self.kill_for_a_while(victim, 0..2_500)?;
            }
            Fault::KillLeader => {
                let victim = self.leader();
                self.kill_for_a_while(victim, 0..4_000)?;
            }
            Fault::KillAll => {
                for id in 1..=self.fleet.members.len() as u64 {
                    self.fleet.kill(id)?;
                }
                self.wait(0..500);
            }
            Fault::Pause => {
                let victim = self.somebody();
                self.say(&format!("  stops member {victim}"));
                self.fleet.stop(victim)?;
                self.wait(200..STANDSTILL_MS_MAX);
                self.fleet.go_on(victim)?;
            }
            Fault::Isolate => {
                let (victim, pass) = (self.somebody(), self.cut());
                let clients = self.rng.percent(30);
                self.say(&format!("  {pass:?} around member {victim}, clients too: {clients}"));
                self.fleet.net.change_around(victim, clients, |link| link.pass = pass);
                self.wait(500..STANDSTILL_MS_MAX);
            }
            Fault::CutOneWay => self.cut_one_way(),
            Fault::SlowLinks => self.slow_links(),
            Fault::Resets => {
                let victim = self.somebody();
                for _ in 0..3 {
                    self.fleet.net.change_around(victim, true, |link| link.resets += 1);
                    self.wait(50..600);
                }
            }
            Fault::TornLog => return self.tear_log(),
            Fault::FullDisk => return self.fill_disk(),
            Fault::ClockOffset => {
                let victim = self.somebody();
                let off = self.rng.pick(0..2 * CLOCK_OFFSET_MS_MAX + 1).cast_signed();
                let off = off - CLOCK_OFFSET_MS_MAX.cast_signed();
                self.say(&format!("  member {victim} is off by {off} ms"));
                self.fleet.member(victim).clock_offset_ms = off;
                self.kill_for_a_while(victim, 0..500)?;
            }
        }
        Ok(true)
    }

    /// A fault is worse on slow links: more is under way when it strikes.
    fn slow_all_sometimes(&mut self) {
        if self.rng.percent(25) {
            let delay = self.rng.millis(5..40);
            self.say(&format!("  with {delay:?} on all links"));
            for id in 1..=self.fleet.members.len() as u64 {
                self.fleet.net.change_around(id, false, |link| link.delay = delay);
            }
        }
    }

    fn kill_for_a_while(&mut self, victim: u64, down_ms: std::ops::Range<u64>) -> Result<()> {
        self.say(&format!("  kills member {victim}"));
        self.fleet.kill(victim)?;
        // Some come back before anybody missed them, within their term.
        if self.rng.percent(70) {
            self.wait(down_ms);
        }
        self.fleet.restart(victim)
    }

    fn cut_one_way(&mut self) {
        let (victim, pass) = (self.somebody(), self.cut());
        let outwards = self.rng.percent(50);
        let others: Vec<u64> =
            (1..=self.fleet.members.len() as u64).filter(|m| *m != victim).collect();
        // One link, or all of that direction.
        let only = self.rng.percent(40).then(|| *self.rng.one_of(&others));
        self.say(&format!("  {pass:?} of member {victim}, outwards: {outwards}, only: {only:?}"));
        for other in others.into_iter().filter(|other| only.is_none_or(|o| o == *other)) {
            let (from, to) = if outwards { (victim, other) } else { (other, victim) };
            self.fleet.net.change(from, to, |link| link.pass = pass);
        }
        self.wait(500..STANDSTILL_MS_MAX);
    }

    fn slow_links(&mut self) {
        let (victim, delay) = (self.somebody(), self.rng.millis(20..200));
        let narrow = self.rng.percent(30).then(|| self.rng.pick(20_000..200_000));
        self.say(&format!("  {delay:?}, {narrow:?} bytes a second around member {victim}"));
        let slow = |link: &mut Link| {
            link.delay = delay;
            link.bytes_per_second = narrow;
        };
        self.fleet.net.change_around(victim, false, slow);
        self.wait(2_000..6_000);
    }

    fn tear_log(&mut self) -> Result<bool> {
        let victim = self.anybody();
        self.fleet.kill(victim)?;
        let torn = self.fleet.tear_log(victim, &mut self.rng)?;
        self.say(&format!("  kills member {victim}; its log is torn: {torn}"));
        self.fleet.restart(victim)?;
        Ok(torn)
    }

    /// Fills a member's disk while it runs, kills it, lets it try to start on the full disk, and frees it.
    fn fill_disk(&mut self) -> Result<bool> {
        let Some(victim) = self.fleet.small_disk() else { return Ok(false) };
        self.fleet.fill_disk()?;
        self.say(&format!("  member {victim} has a full disk"));
        self.wait(1_000..3_000);
        self.fleet.kill(victim)?;
        let answered = self.fleet.try_start(victim, Duration::from_secs(3))?;
        self.say(&format!("  on a full disk it answers: {answered}"));
        self.wait(200..1_500);
        self.fleet.kill(victim)?;
        self.fleet.free_disk()?;
        self.fleet.restart(victim)?;
        Ok(true)
    }
}
