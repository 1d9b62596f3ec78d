//! A schedule: how many members, what network and disks, whose clocks are off, and which faults happen when.
//!
//! All of it is drawn from the seed before the cluster starts, so that a printed plan says what a run went
//! through. Only "the leader" and "a voter" are found out as the run goes on.

use mainstay_types::ClusterTime;

use crate::dice::Dice;

/// Until then faults happen; afterwards everything is whole and the clients go on.
pub const FAULTS_UNTIL_MS: u64 = 14_000;
/// When the clients stop.
pub const END_MS: u64 = 20_000;
/// Before this, members find each other undisturbed.
const START_MS: u64 = 1_000;

/// Whom a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// This member.
    Member(u64),
    /// Whoever leads at that time; nobody if nobody does.
    Leader,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The machine goes down: of the unsynced writes this percentage stays. It is back after a while.
    Crash {
        /// Who.
        who: Who,
        /// How much of what was not synced stays; 100 is a killed process.
        kept_percent: u64,
        /// How long it is down.
        down_ms: u64,
    },
    /// The next member that votes for another loses its power right after its answer went out.
    CrashVoter {
        /// How long it is down.
        down_ms: u64,
    },
    /// Nothing goes to or from this member.
    Isolate(Who),
    /// Nothing goes from one member to another; the way back is open.
    OneWay {
        /// From here.
        from: u64,
        /// To here.
        to: u64,
    },
    /// Members up to this one do not reach the others.
    Split(u64),
    /// This member reaches everybody, those before it don't reach those after it in the round. Where the two
    /// sides are in touch with it alone, everything hangs on what it remembers.
    Between(u64),
    /// All ways are open again.
    Heal,
    /// Messages between two members take this long.
    Slow {
        /// One of them.
        a: u64,
        /// The other.
        b: u64,
        /// How long.
        ms: u64,
    },
    /// The next fsync takes this much longer.
    Stall(Who, u64),
    /// The wall clock is set to this difference from the truth.
    Jump(Who, i64),
    /// An image is built now.
    Snapshot(u64),
}

/// A whole schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where it came from.
    pub seed: u64,
    /// How many members.
    pub members: u64,
    /// How many clients.
    pub clients: u64,
    /// The longest time a message takes.
    pub latency_ms_max: u64,
    /// Of a million messages, how many break the connection between two members.
    pub losses_ppm: u64,
    /// The longest time an fsync takes.
    pub sync_ms_max: u64,
    /// How far each member's wall clock is off at the start.
    pub offsets_ms: Vec<i64>,
    /// What happens, and when.
    pub faults: Vec<(u64, Fault)>,
}

impl Plan {
    /// The schedule of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let dice = &mut Dice::new(seed, 1);
        let members = if dice.chance(35) { 5 } else { 3 };
        let offsets_ms = (0..members).map(|_| offset(dice)).collect();
        let mut plan = Self {
            seed,
            members,
            clients: dice.within(2, 4),
            latency_ms_max: dice.pick(&[1, 2, 5, 20]),
            losses_ppm: dice.pick(&[0, 0, 100, 1_000]),
            sync_ms_max: dice.pick(&[0, 1, 5, 20]),
            offsets_ms,
            faults: Vec::new(),
        };
        // Some schedules know one kind of trouble only, which goes deeper than a bit of everything.
        let theme = dice.within(0, 7);
        let mut at_ms = START_MS + dice.within(0, 1_000);
        if theme == 7 {
            plan.hang_on_one(dice, at_ms);
            return plan;
        }
        while at_ms < FAULTS_UNTIL_MS {
            let fault = plan.fault(dice, theme);
            plan.faults.push((at_ms, fault));
            at_ms += dice.within(50, if theme == 2 { 600 } else { 1_600 });
        }
        plan
    }

    /// Faults around one member in the middle, which is down for a moment again and again, best right after it
    /// has voted.
    fn hang_on_one(&mut self, dice: &mut Dice, from_ms: u64) {
        let mut at_ms = from_ms;
        while at_ms < FAULTS_UNTIL_MS {
            let middle = dice.within(1, self.members);
            self.faults.push((at_ms, Fault::Between(middle)));
            for _ in 0..dice.within(1, 3) {
                at_ms += dice.within(50, 900);
                self.faults.push((at_ms, Fault::CrashVoter { down_ms: dice.within(1, 20) }));
                let who = Who::Member(middle);
                let (kept_percent, down_ms) = (100, dice.within(1, 300));
                self.faults.push((at_ms, Fault::Crash { who, kept_percent, down_ms }));
            }
            at_ms += dice.within(100, 1_500);
            self.faults.push((at_ms, Fault::Heal));
            at_ms += dice.within(10, 700);
        }
    }

    fn fault(&self, dice: &mut Dice, theme: u64) -> Fault {
        let kind = match theme {
            0 => dice.pick(&[0, 0, 0, 1, 8]),
            1 => dice.pick(&[2, 3, 4, 5, 5, 7]),
            2 => dice.pick(&[0, 1, 6]),
            3 => dice.pick(&[9, 9, 0, 2, 5]),
            _ => dice.within(0, 10),
        };
        let other = |dice: &mut Dice, than: u64| {
            let shift = dice.within(1, self.members - 1);
            (than - 1 + shift) % self.members + 1
        };
        let one = dice.within(1, self.members);
        let who = if dice.chance(60) { Who::Leader } else { Who::Member(one) };
        match kind {
            0 => Fault::Crash {
                who,
                kept_percent: dice.pick(&[0, 0, 50, 100]),
                down_ms: dice.within(1, 3_000),
            },
            // Back within its term.
            1 => Fault::Crash {
                who: Who::Leader,
                kept_percent: dice.pick(&[0, 50, 100]),
                down_ms: dice.within(1, 40),
            },
            2 => Fault::Isolate(who),
            3 => Fault::OneWay { from: one, to: other(dice, one) },
            4 => Fault::Split(dice.within(1, self.members - 1)),
            5 => Fault::Heal,
            6 => Fault::CrashVoter { down_ms: dice.within(1, 30) },
            7 => Fault::Slow { a: one, b: other(dice, one), ms: dice.within(20, 300) },
            8 => Fault::Stall(who, dice.within(100, 1_500)),
            9 => Fault::Jump(who, offset(dice)),
            _ => Fault::Snapshot(one),
        }
    }
}

/// Within the bound that members promise, at its ends more often than between.
fn offset(dice: &mut Dice) -> i64 {
    let bound = i64::try_from(ClusterTime::SKEW_MS_MAX).expect("a small constant");
    let between = i64::try_from(dice.within(0, 2 * bound.unsigned_abs())).expect("small") - bound;
    dice.pick(&[-bound, bound, between])
}
