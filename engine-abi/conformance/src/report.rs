//! What the kit says: one line for a person, JSON for a program.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Case, Ended, Stop};

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The promise was kept.
    Passed,
    /// The promise was broken.
    Failed,
    /// The engine's process died.
    Crashed,
    /// The engine did not answer in time.
    TimedOut,
    /// The engine does not claim this.
    NotOffered,
}

impl Outcome {
    /// Whether the engine fails the kit by it.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Failed | Self::Crashed | Self::TimedOut)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed => "FAIL",
            Self::Crashed => "CRASH",
            Self::TimedOut => "TIMEOUT",
            Self::NotOffered => "-",
        }
    }
}

/// One case's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseReport {
    /// Its name, as `--case` takes it.
    pub case: String,
    /// The rule of the header, or the capability, that it is about.
    pub rule: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was wrong, or why it was not asked.
    pub reason: Option<String>,
    /// What it measured, by name.
    pub measured: Vec<(String, String)>,
    /// How long it took.
    pub ms: u64,
}

impl CaseReport {
    pub(crate) fn new(case: &Case, ended: Ended, took: Duration) -> Self {
        let (outcome, reason, measured) = match ended {
            Ok(measured) => (Outcome::Passed, None, measured),
            Err(Stop::Fault(reason)) => (Outcome::Failed, Some(reason), Vec::new()),
            Err(Stop::NotOffered(reason)) => (Outcome::NotOffered, Some(reason), Vec::new()),
        };
        Self::of(case, outcome, reason, measured, took)
    }

    pub(crate) fn of(
        case: &Case,
        outcome: Outcome,
        reason: Option<String>,
        measured: Vec<(String, String)>,
        took: Duration,
    ) -> Self {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let (case, rule) = (case.name.to_owned(), case.rule.to_owned());
        Self { case, rule, outcome, reason, measured, ms }
    }
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Kept promises.
    pub passed: usize,
    /// Broken ones, crashes and timeouts.
    pub bad: usize,
    /// What the engine does not claim.
    pub not_offered: usize,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The engine's file or builtin name.
    pub engine: String,
    /// Repeats the run.
    pub seed: u64,
    /// One per case, in the kit's order.
    pub cases: Vec<CaseReport>,
    /// Their sums.
    pub totals: Totals,
}

impl Report {
    pub(crate) fn new(engine: String, seed: u64, cases: Vec<CaseReport>) -> Self {
        let count = |pick: fn(Outcome) -> bool| cases.iter().filter(|c| pick(c.outcome)).count();
        let totals = Totals {
            passed: count(|outcome| outcome == Outcome::Passed),
            bad: count(Outcome::is_bad),
            not_offered: count(|outcome| outcome == Outcome::NotOffered),
        };
        Self { engine, seed, cases, totals }
    }

    /// A table with a line per case and the sums.
    #[must_use]
    pub fn table(&self) -> String {
        let wide = self.cases.iter().map(|case| case.case.len()).max().unwrap_or(0);
        let mut text = String::new();
        for case in &self.cases {
            let measured: Vec<String> =
                case.measured.iter().map(|(name, value)| format!("{name} {value}")).collect();
            let said = case.reason.clone().unwrap_or_else(|| measured.join(", "));
            let _ = writeln!(
                text,
                "{:<7} {:<wide$}  {:<4} {:>6} ms  {said}",
                case.outcome.word(),
                case.case,
                case.rule,
                case.ms,
            );
        }
        let Totals { passed, bad, not_offered } = self.totals;
        let _ = writeln!(
            text,
            "{}: {passed} passed, {bad} failed, {not_offered} not offered (seed {})",
            self.engine, self.seed
        );
        text
    }
}
