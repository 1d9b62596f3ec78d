//! Once nothing is broken any more, the cluster goes on by itself: writes and reads are answered again.

use crate::history::{Attempt, History};

/// What it may take: to give up connections that lost a message, to hold an election, to drain a stalled disk.
const RECOVERY_MS: u64 = 4_500;

pub(crate) fn check(history: &History) -> Vec<String> {
    let from_ms = history.whole_from_ms + RECOVERY_MS;
    let later = |a: &&Attempt| a.asked_ms > from_ms;
    let mut found = Vec::new();
    if !history.attempts.iter().filter(later).any(|a| a.written().is_some()) {
        found.push(format!("no write was answered from {from_ms} on"));
    }
    if !history.attempts.iter().filter(later).any(|a| a.read().is_some()) {
        found.push(format!("no read was answered from {from_ms} on"));
    }
    found
}
