//! The demands on a history of pins.
//!
//! - An acknowledged pin is in every linearizable read asked after the acknowledgement and answered before its
//!   invocation + TTL, unless its release was asked for or a pin that covers it may have taken its place:
//!   else `Lost`, or `Early` where the answer says that its time ended.
//! - It is in no read asked later than its acknowledgement + TTL + `late_ms`: else `Late`. Leaderless time is
//!   not added here: a new leader moves time before it serves. A caller whose faults hold a leader from its quorum
//!   for a while adds that while to `late_ms`.
//! - Once it has ended it stays gone: else `Revived`. It is made once: else `Twice`.
//! - A read sees everything acknowledged before it was asked, by log index: else `Stale`.
//! - Each pin's own operations have an order that explains all answers: else `Unexplained`.
//!
//! With unknown outcomes every demand is the weakest of what may have happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::linear::{self, Verdict};
use super::pin::{Life, Seen, covers, seen};
use super::{Answer, Asked, Op, Standing, View};

/// Violations that a report spells out; the rest are counted.
const SHOWN_MAX: usize = 40;

/// What the checker allows.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long after its time a pin may still be seen: four skews, a tick and its way through the log.
    pub late_ms: u64,
    /// How long after it was given up a request may still arrive: held bytes, a stopped process, a server's
    /// own patience.
    pub stray_ms: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { late_ms: 2_000, stray_ms: 15_000 }
    }
}

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Lost,
    Early,
    Late,
    Revived,
    Twice,
    Stale,
    Unexplained,
}

/// One broken promise.
#[derive(Debug, Clone)]
pub struct Violation {
    pub kind: Kind,
    pub pin: Option<u128>,
    pub at_us: u64,
    pub text: String,
}

/// What the checker found.
#[derive(Debug, Default)]
pub struct Report {
    pub ops: usize,
    pub unknown: usize,
    pub refused: usize,
    pub pins: usize,
    pub acknowledged: usize,
    pub extended: usize,
    pub released: usize,
    pub reads: usize,
    pub lists: usize,
    /// Times that a list or a read was held against a pin's promise.
    pub looks: usize,
    /// Pins with too many operations to search all orders.
    pub unsearched: usize,
    /// How long after its time a pin was still seen, at most.
    pub latest_ms: u64,
    pub counts: BTreeMap<Kind, usize>,
    pub violations: Vec<Violation>,
}

impl Report {
    /// How often this promise was broken.
    pub fn count(&self, kind: Kind) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    fn add(&mut self, kind: Kind, pin: Option<u128>, op: &Op, text: String) {
        *self.counts.entry(kind).or_insert(0) += 1;
        if self.violations.len() < SHOWN_MAX {
            self.violations.push(Violation { kind, pin, at_us: op.returned_us, text });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} operations ({} unknown, {} refused); pins: {} asked for, {} acknowledged; {} extended, {} released; \
             {} reads, {} lists, {} looks at promises",
            self.ops,
            self.unknown,
            self.refused,
            self.pins,
            self.acknowledged,
            self.extended,
            self.released,
            self.reads,
            self.lists,
            self.looks
        )?;
        write!(f, "broken:")?;
        for kind in [
            Kind::Lost,
            Kind::Early,
            Kind::Late,
            Kind::Revived,
            Kind::Twice,
            Kind::Stale,
            Kind::Unexplained,
        ] {
            write!(f, " {kind:?} {}", self.count(kind))?;
        }
        writeln!(
            f,
            "; latest {} ms past its time; {} unsearched",
            self.latest_ms, self.unsearched
        )?;
        for violation in &self.violations {
            let pin = violation.pin.map(|id| format!("p-{id:032x}")).unwrap_or_default();
            let at = violation.at_us as f64 / 1e6;
            writeln!(f, "  {:?} {pin} at {at:.3} s: {}", violation.kind, violation.text)?;
        }
        Ok(())
    }
}

struct Checker<'a> {
    lives: HashMap<u128, Life<'a>>,
    owners: HashMap<(String, String, u128), Vec<u128>>,
    bounds: Bounds,
    report: Report,
}

/// Holds a history against the promises.
pub fn check(history: &[Op], bounds: Bounds) -> Report {
    let mut ops: Vec<&Op> = history.iter().collect();
    ops.sort_by_key(|op| op.invoked_us);
    let mut lives: HashMap<u128, Life<'_>> = HashMap::new();
    for op in &ops {
        if let Asked::Create(spec) = &op.asked {
            lives
                .entry(spec.id)
                .or_insert_with(|| Life { spec: Arc::clone(spec), ops: Vec::new() });
        }
    }
    let mut owners: HashMap<_, Vec<u128>> = HashMap::new();
    for life in lives.values().filter(|life| !life.spec.owner.is_empty()) {
        let spec = &life.spec;
        let key = (spec.tenant.clone(), spec.owner.clone(), spec.namespace);
        owners.entry(key).or_default().push(spec.id);
    }
    for op in &ops {
        if let Some(life) = op.asked.pin().and_then(|id| lives.get_mut(&id)) {
            life.ops.push(op);
        }
    }
    let mut checker = Checker { lives, owners, bounds, report: Report::default() };
    checker.count(&ops);
    checker.look_at_pins();
    checker.look_at_lists(&ops);
    checker.look_at_indexes(&ops);
    checker.report
}

impl Checker<'_> {
    fn count(&mut self, ops: &[&Op]) {
        let report = &mut self.report;
        report.ops = ops.len();
        report.pins = self.lives.len();
        report.acknowledged = self.lives.values().filter(|life| life.acknowledged()).count();
        for op in ops {
            match (&op.asked, &op.answer) {
                (_, Answer::Unknown) => report.unknown += 1,
                (_, Answer::Refused(_)) => report.refused += 1,
                (Asked::Extend { .. }, _) => report.extended += 1,
                (Asked::Release { .. }, _) => report.released += 1,
                (Asked::Read { .. }, _) => report.reads += 1,
                (Asked::List { .. }, _) => report.lists += 1,
                (Asked::Create(_), _) => {}
            }
        }
    }

    fn look_at_pins(&mut self) {
        let ids: Vec<u128> = self.lives.keys().copied().collect();
        for id in ids {
            let ops = self.lives[&id].ops.clone();
            let mut created = HashSet::new();
            for op in ops {
                if let Some(seen) = seen(op) {
                    let by = match &op.answer {
                        Answer::Pin { view, .. } => view.by,
                        _ => None,
                    };
                    self.look(id, op, seen, by);
                }
                if let Answer::Pin { view: View { created_index, .. }, .. } = op.answer
                    && created.insert(created_index)
                    && created.len() > 1
                {
                    let text = format!("it was made at the log indexes {created:?}");
                    self.report.add(Kind::Twice, Some(id), op, text);
                }
            }
            match linear::explain(&self.lives[&id]) {
                Verdict::Explained => {}
                Verdict::TooLong => self.report.unsearched += 1,
                Verdict::Unexplained(text) => {
                    let last = self.lives[&id].ops.last().copied();
                    if let Some(last) = last {
                        self.report.add(Kind::Unexplained, Some(id), last, text);
                    }
                }
            }
        }
    }

    fn look_at_lists(&mut self, ops: &[&Op]) {
        let mut tenants: HashMap<String, Vec<u128>> = HashMap::new();
        for life in self.lives.values() {
            tenants.entry(life.spec.tenant.clone()).or_default().push(life.spec.id);
        }
        for op in ops {
            let Asked::List { tenant } = &op.asked else { continue };
            let Answer::Pins { pins, whole, .. } = &op.answer else { continue };
            let mut listed = HashSet::new();
            for (id, view) in pins {
                if !listed.insert(*id) {
                    self.report.add(Kind::Twice, Some(*id), op, "a list names it twice".into());
                }
                if view.standing == Standing::Live && self.lives.contains_key(id) {
                    self.look(*id, op, Seen::Live, None);
                }
            }
            if !whole {
                continue;
            }
            for id in tenants.get(tenant).into_iter().flatten() {
                if !listed.contains(id) {
                    self.look(*id, op, Seen::Absent, None);
                }
            }
        }
    }

    /// Holds one sight of a pin against its promises.
    fn look(&mut self, id: u128, op: &Op, seen: Seen, by: Option<u128>) {
        let life = &self.lives[&id];
        if seen == Seen::Live {
            self.report.looks += 1;
            let due_us = life.may_until_us(op.returned_us, &self.bounds);
            let late_ms = op.invoked_us.saturating_sub(due_us) / 1_000;
            self.report.latest_ms = self.report.latest_ms.max(late_ms);
            if late_ms > self.bounds.late_ms {
                let text = format!("{late_ms} ms past its time: {}", show(op));
                self.report.add(Kind::Late, Some(id), op, text);
            }
            if self.lives[&id].ended_us().is_some_and(|ended| ended < op.invoked_us) {
                let text = format!("it had ended before: {}", show(op));
                self.report.add(Kind::Revived, Some(id), op, text);
            }
            return;
        }
        let first_end = life.first_sent_us() + life.spec.ttl_ms * 1_000;
        if seen == Seen::Ended(Standing::Expired) && op.returned_us < first_end {
            let early_ms = (first_end - op.returned_us) / 1_000;
            let text = format!("{early_ms} ms before its time: {}", show(op));
            self.report.add(Kind::Early, Some(id), op, text);
            return;
        }
        let Some(until_us) = life.must_until_us(op.invoked_us) else { return };
        if op.returned_us > until_us || life.release_sent(op.returned_us) {
            return;
        }
        self.report.looks += 1;
        let successors = self.successors(id, op.returned_us, until_us);
        let kind = match (seen, by) {
            (Seen::Ended(Standing::Superseded), Some(by)) if successors.contains(&by) => return,
            (Seen::Ended(Standing::Expired), _) => Kind::Early,
            // Who took its place is not said.
            (Seen::Absent, _) if !successors.is_empty() => return,
            _ => Kind::Lost,
        };
        let left_ms = (until_us - op.returned_us) / 1_000;
        let text = format!("{seen:?} by {by:x?} with {left_ms} ms left: {}", show(op));
        self.report.add(kind, Some(id), op, text);
    }

    /// The pins that may have taken a pin's place before `answered_us`.
    fn successors(&self, id: u128, answered_us: u64, until_us: u64) -> Vec<u128> {
        let spec = &self.lives[&id].spec;
        let key = (spec.tenant.clone(), spec.owner.clone(), spec.namespace);
        let mates = self.owners.get(&key).into_iter().flatten();
        // The machine compares ends in cluster time, which moves by up to four skews against real time when another
        // leads; what is as long there may look a little shorter here.
        let slack_us = self.bounds.late_ms * 1_000;
        let may = mates.filter(|mate| {
            let later = &self.lives[*mate];
            covers(&later.spec, spec)
                && later.first_sent_us() < answered_us
                && later.may_until_us(answered_us, &self.bounds) + slack_us >= until_us
        });
        may.copied().collect()
    }

    /// Log indexes against real time, over all clients.
    fn look_at_indexes(&mut self, ops: &[&Op]) {
        let index = |op: &Op| match &op.answer {
            Answer::Pin { log_index, .. } | Answer::Pins { log_index, .. } => Some(*log_index),
            _ => None,
        };
        let mut asked: Vec<(&Op, u64)> =
            ops.iter().filter_map(|op| Some((*op, index(op)?))).collect();
        let mut answered = asked.clone();
        asked.sort_by_key(|(op, _)| op.invoked_us);
        answered.sort_by_key(|(op, _)| op.returned_us);
        let mut answered = answered.into_iter().peekable();
        let mut reached = 0;
        for (op, index) in asked {
            while let Some((_, earlier)) =
                answered.next_if(|(earlier, _)| earlier.returned_us < op.invoked_us)
            {
                reached = reached.max(earlier);
            }
            let reads = matches!(op.asked, Asked::Read { .. } | Asked::List { .. });
            if index < reached || (!reads && index == reached) {
                let text = format!("index {index} after {reached} was known: {}", show(op));
                self.report.add(Kind::Stale, op.asked.pin(), op, text);
            }
        }
    }
}

/// An operation on one line.
pub fn show(op: &Op) -> String {
    let asked = match &op.asked {
        Asked::Create(spec) => format!("create for {} ms", spec.ttl_ms),
        Asked::Extend { ttl_ms, .. } => format!("extend by {ttl_ms} ms"),
        Asked::Release { .. } => "release".into(),
        Asked::Read { .. } => "read".into(),
        Asked::List { tenant } => format!("list of {tenant}"),
    };
    let answer = match &op.answer {
        Answer::Pin { view, log_index } => format!("{:?} at index {log_index}", view.standing),
        Answer::Pins { pins, log_index, .. } => format!("{} pins at {log_index}", pins.len()),
        Answer::Refused(refusal) => format!("{refusal:?}"),
        Answer::Unknown => "unknown".into(),
    };
    let (from, to) = (op.invoked_us as f64 / 1e6, op.returned_us as f64 / 1e6);
    format!("c{} {asked} {from:.3}..{to:.3} s x{}: {answer}", op.client, op.attempts)
}
