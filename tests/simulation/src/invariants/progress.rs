//! Once nothing is broken any more, the cluster goes on by itself: writes and reads are answered again.

use super::RECOVERY_MS;
use crate::history::{Attempt, History};

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
