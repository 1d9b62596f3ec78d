//! Cuts: twenty times a second the leader writes into the log where the streams stand that have moved.
//!
//! A cut is what makes the index part of the log: at its index the global index is exactly that, and every member
//! checks itself there. It says what this leader has applied and verified, so a leader that was cut off from some
//! workers says nothing of them rather than something old. While nothing moves, nothing is written.
//! Whoever leads, the same task looks whether few but large entries ask for a snapshot.

use std::time::Duration;

use mainstay_raft::{Group, ProposeError};
use mainstay_types::Command;

const PACE: Duration = Duration::from_millis(50);

/// Runs for as long as the member does.
pub(crate) async fn run(group: Group) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if group.snapshot_if_large().await.is_err() {
            return;
        }
        if !group.leads() {
            continue;
        }
        let sources = group.cut();
        if sources.is_empty() {
            continue;
        }
        metrics::counter!("mainstay_control_cut_sources_total").increment(sources.len() as u64);
        match group.propose(Command::Cut(sources)).await {
            Ok(_) => metrics::counter!("mainstay_control_cuts_total").increment(1),
            Err(ProposeError::Fatal(_)) => return,
            Err(error) => tracing::debug!(%error, "a cut has to wait"),
        }
    }
}
