//! A profile: stacks, and how often each was seen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

/// A function on a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Frame {
    pub(super) name: String,
    /// Empty if not known.
    pub(super) file: String,
    /// 0 if not known.
    pub(super) line: u32,
}

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) started: SystemTime,
    pub(super) duration: Duration,
    /// Of processor time, between two samples.
    pub(super) period: Duration,
    pub(super) stacks: Vec<Stack>,
}

/// One stack of one thread, and how often it was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stack {
    pub(super) thread: String,
    /// From the function that ran to the one that the thread began with.
    pub(super) frames: Vec<Frame>,
    pub(super) count: u64,
}

impl Profile {
    pub(super) fn new(
        report: &pprof::Report,
        started: SystemTime,
        duration: Duration,
        frequency: i32,
    ) -> Self {
        // The same stack stands there once for each thread and time of its sample.
        let mut counts: BTreeMap<(String, Vec<Frame>), u64> = BTreeMap::new();
        for (stack, count) in &report.data {
            let symbols = stack.frames.iter().flatten();
            let frames = symbols
                .map(|symbol| Frame {
                    name: symbol.name(),
                    file: symbol
                        .filename
                        .as_ref()
                        .map_or_else(String::new, |_| symbol.filename().into_owned()),
                    line: symbol.lineno.unwrap_or_default(),
                })
                .collect();
            let count = u64::try_from(*count).unwrap_or_default();
            *counts.entry((stack.thread_name_or_id(), frames)).or_default() += count;
        }
        let stacks = counts
            .into_iter()
            .map(|((thread, frames), count)| Stack { thread, frames, count })
            .collect();
        let period = Duration::from_secs(1) / frequency.unsigned_abs().max(1);
        Self { started, duration, period, stacks }
    }

    /// A line for each stack, outermost first, with its count: what flame graphs are drawn from.
    pub(super) fn folded(&self) -> String {
        let mut text = String::new();
        for Stack { thread, frames, count } in &self.stacks {
            text.push_str(&plain(thread));
            for frame in frames.iter().rev() {
                text.push(';');
                text.push_str(&plain(&frame.name));
            }
            // Writing to a string does not fail.
            let _ = writeln!(text, " {count}");
        }
        text
    }
}

/// Without what parts one frame, and one stack, from the next.
fn plain(name: &str) -> String {
    name.replace([';', '\n'], ":")
}
