//! Tells the cluster what the local tiers hold, so that the router sends prompts where their blocks are, and the tiers
//! which of their blocks the cluster has pinned.
//!
//! The store of objects is nobody's: an index of holders has no place for it, and who has the prompt knows its
//! objects' names.

use std::sync::Arc;
use std::time::Duration;

use mainstay_tier::Move;
use mainstay_types::Tier;
use tokio::time::{Instant, MissedTickBehavior};

use super::local::Local;
use super::{Tiers, figures, now_ms};
use crate::shared::Shared;

/// How often moves are read.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// How often what was written to the disk is made to outlive a crash.
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// How often figures are published.
const FIGURES_EVERY: Duration = Duration::from_secs(1);

/// Tells until the task is aborted.
pub(crate) async fn tell(shared: Arc<Shared>, tiers: Arc<Tiers>) {
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published = Instant::now();
    let mut committed = Instant::now();
    let mut committing: Option<tokio::task::JoinHandle<()>> = None;
    // What was told by a task before this one may be of other tiers.
    let mut all = true;
    // The same of pins.
    shared.events.lock().pins.mark_from_now();
    loop {
        ticks.tick().await;
        while tiers.carry_marks(&shared) {
            tokio::task::yield_now().await;
        }
        all |= shared.events.wants_tiers();
        tell_once(&shared, &tiers, std::mem::take(&mut all));
        if published.elapsed() >= FIGURES_EVERY {
            published = Instant::now();
            figures::publish(&tiers);
        }
        // One at a time: a disk that hangs keeps one thread, and not one more each time.
        let idle = committing.as_ref().is_none_or(tokio::task::JoinHandle::is_finished);
        if idle && committed.elapsed() >= COMMIT_EVERY {
            committed = Instant::now();
            let tiers = Arc::clone(&tiers);
            committing = Some(tokio::task::spawn_blocking(move || {
                // What it says is in the disk's health.
                let _ = tiers.local().is_none_or(Local::commit);
            }));
        }
    }
}

fn tell_once(shared: &Shared, tiers: &Tiers, all: bool) {
    let Some(local) = tiers.local() else { return };
    for (tier, moved) in local.take_moves() {
        for went in &moved.moves {
            if let Move::Went { since_ms, .. } = went {
                let age = now_ms().saturating_sub(*since_ms) as f64 / 1e3;
                metrics::histogram!("mainstay_tier_age_at_eviction_seconds", "tier" => tier.name())
                    .record(age);
            }
        }
        if all || moved.lost {
            // Moves from here on come after what is told now, and say the same again at worst.
            shared.events.take_tier(tier, &local.keys(tier));
        } else {
            shared.events.take_moves(tier, &moved.moves);
        }
    }
    if all && local.disk().is_none() {
        shared.events.take_tier(Tier::Disk, &[]);
    }
}
