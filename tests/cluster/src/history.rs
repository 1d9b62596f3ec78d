//! Histories: what clients asked of the control plane, when they asked and were answered, and what was said.
//!
//! All times are microseconds of one monotonic clock. An outcome that is not known stays unknown: the checker
//! must allow for it having happened, at once or late, and for it never having happened. The checker is a pure
//! function of a history; what it demands is in [`check`].

pub mod check;
mod linear;
mod pin;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use check::{Bounds, Report, Violation, check};

/// What somebody asks to have pinned; retries send the same again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub id: u128,
    pub tenant: String,
    pub namespace: u128,
    /// Empty for none.
    pub owner: String,
    pub blocks: Vec<u128>,
    pub priority: u32,
    pub copies_min: u32,
    pub ttl_ms: u64,
}

/// What is asked. Reads and lists are linearizable ones.
#[derive(Debug, Clone)]
pub enum Asked {
    Create(Arc<Spec>),
    Extend { id: u128, ttl_ms: u64 },
    Release { id: u128 },
    Read { id: u128 },
    List { tenant: String },
}

impl Asked {
    /// The pin it is about; a list is about many.
    pub fn pin(&self) -> Option<u128> {
        match self {
            Self::Create(spec) => Some(spec.id),
            Self::Extend { id, .. } | Self::Release { id } | Self::Read { id } => Some(*id),
            Self::List { .. } => None,
        }
    }
}

/// Where a pin stands, as far as promises go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    Live,
    Expired,
    Released,
    /// A later pin of its session took its place.
    Superseded,
    Denied,
}

/// One pin in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub standing: Standing,
    /// The pin that took its place, if the answer named one.
    pub by: Option<u128>,
    pub created_index: u64,
}

/// Why something was refused for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    /// The pin has ended.
    Ended,
    Other(String),
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Pin { view: View, log_index: u64 },
    Pins { pins: Vec<(u128, View)>, log_index: u64, whole: bool },
    Refused(Refusal),
    Unknown,
}

/// One operation of one client.
#[derive(Debug, Clone)]
pub struct Op {
    pub client: u32,
    pub asked: Asked,
    pub invoked_us: u64,
    /// When it was answered or given up.
    pub returned_us: u64,
    /// How often it was sent; whatever was sent before the last time has an outcome nobody knows.
    pub attempts: u32,
    pub answer: Answer,
}

/// Where clients write down what they did.
pub struct Recorder {
    started: Instant,
    ops: Mutex<Vec<Op>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { started: Instant::now(), ops: Mutex::default() }
    }
}

impl Recorder {
    /// Now, by the history's clock.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).expect("a run is shorter than ages")
    }

    /// An instant of the history, for messages.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds an operation that is over.
    pub fn push(&self, op: Op) {
        self.ops.lock().expect("no holder panics").push(op);
    }

    /// How many operations are over.
    pub fn len(&self) -> usize {
        self.ops.lock().expect("no holder panics").len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The history so far, in the order of invocation.
    pub fn history(&self) -> Vec<Op> {
        let mut ops = self.ops.lock().expect("no holder panics").clone();
        ops.sort_by_key(|op| op.invoked_us);
        ops
    }
}

#[cfg(test)]
mod tests;
