//! The vendor's kit: does an engine keep the promises of `mainstay_engine.h`?
//!
//! It drives an engine through the raw C functions, as the worker does and as the worker never would, and says
//! for each promise whether it was kept, in words that name the rule. Each case runs in a process of its own
//! ([`run`] starts them, [`run_case`] is what such a process does), because a wrong engine may crash, hang or
//! leak, and the next case must not suffer for it. What an engine does not claim to be able to do is not asked of
//! it: such a case ends as *not offered*, and is counted apart from those that passed.
//!
//! What it does not do: judge how good an engine's words are, or prove the absence of faults. Its own tests are
//! engines that are wrong on purpose, each of which it has to catch by the case that is made for it.

mod cache_model;
mod cases;
mod driver;
mod ledger;
pub mod reading;
mod report;
mod rng;
mod runner;
mod session;

pub use cases::{Case, cases};
pub use driver::Subject;
pub use report::{CaseReport, Outcome, Report, Totals};
pub use runner::{Child, Options, run};

use std::time::{Duration, Instant};

/// What a case is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// The engine.
    pub subject: Subject,
    /// What it is created with.
    pub config_json: String,
    /// All chance comes from here: the same seed asks the same of the same engine.
    pub seed: u64,
    /// How long it waits for what must come.
    pub patience: Duration,
}

/// Why a case ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// A promise was broken.
    Fault(String),
    /// The engine does not claim what the case asks.
    NotOffered(String),
}

impl From<String> for Stop {
    fn from(fault: String) -> Self {
        Self::Fault(fault)
    }
}

/// A case's end: what it measured, as name and value, or why it stopped.
pub type Ended = Result<Vec<(String, String)>, Stop>;

/// Runs one case in this process. A panic or a crash of the engine is the caller's to see.
///
/// # Errors
/// The name of a case that does not exist.
pub fn run_case(name: &str, context: &Context) -> Result<CaseReport, String> {
    let case = cases()
        .iter()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("there is no case {name}; list them with --list"))?;
    let begun = Instant::now();
    let ended = (case.run)(context);
    Ok(CaseReport::new(case, ended, begun.elapsed()))
}
