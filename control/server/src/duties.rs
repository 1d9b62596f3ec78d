//! What a leader does unasked: gives the cluster its key, moves time on, ends the epochs of silent workers, keeps
//! pins.
//!
//! All of it goes through the log. A member that stops leading stops at once; proposals that it still makes are
//! refused. While nothing depends on time, time is moved seldom, so that an idle cluster writes next to nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_raft::{Connector, Group, Leadership, ProposeError};
use mainstay_types::{Command, Epoch, FenceCause, HashKey, WorkerId};

use crate::keeper::Keeper;
use crate::leases::Leases;
use crate::versions;

/// Between two looks at leases, and between two ticks while pins or workers live.
const PACE: Duration = Duration::from_millis(100);
/// Between two ticks of an idle cluster.
const IDLE_TICK: Duration = Duration::from_secs(10);

/// Runs for as long as the member does.
pub(crate) async fn run(
    group: Group,
    leases: Arc<Leases>,
    connector: Connector,
    hash_key: Option<HashKey>,
) {
    let mut leadership = group.leadership();
    loop {
        let serving = leadership.wait_for(|l| matches!(l, Leadership::Serving { .. })).await;
        let Ok(serving) = serving.map(|l| *l) else { return };
        // Everybody gets a full lease from a new leader.
        leases.clear();
        let ended = {
            let changed = async { leadership.wait_for(|l| *l != serving).await.is_err() };
            tokio::select! {
                ended = changed => ended,
                () = lead(&group, &leases, &connector, hash_key) => true,
            }
        };
        if ended {
            return;
        }
    }
}

/// Returns only when the group has ended.
async fn lead(group: &Group, leases: &Leases, connector: &Connector, hash_key: Option<HashKey>) {
    if hash_key.is_some()
        && group.read(|m| m.hash_key().is_some_and(|known| Some(known) != hash_key))
    {
        tracing::warn!("this cluster has a hash key already; that of --hash-key-file is not used");
    }
    let mut ticked = Instant::now();
    let mut looked = Instant::now();
    let mut keeper = Keeper::default();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let result = async {
            if group.read(|m| m.hash_key().is_none()) {
                // In this order, so that whoever finds a key finds a version, too.
                versions::begin(group, connector).await?;
                bootstrap(group, hash_key).await?;
            }
            // Whoever was cut off from its quorum, or asleep, has heard nobody; that is not the workers' silence.
            let absent = !group.leads() || looked.elapsed() > leases.ttl() / 2;
            looked = Instant::now();
            if absent {
                leases.clear();
            } else {
                fence_silent(group, leases).await?;
            }
            let busy = group.read(|m| {
                m.live_pin_count() > 0 || m.workers().any(mainstay_state::Worker::is_live)
            });
            if busy || ticked.elapsed() >= IDLE_TICK {
                ticked = Instant::now();
                group.propose(Command::Tick).await?;
            }
            keeper.look(group).await?;
            Ok(())
        };
        match result.await {
            Ok(()) => {}
            Err(ProposeError::Fatal(_)) => return,
            Err(error) => tracing::debug!(%error, "a leader's duty has to wait"),
        }
    }
}

async fn bootstrap(group: &Group, given: Option<HashKey>) -> Result<(), ProposeError> {
    let mut hash_key = [0; 16];
    if let Some(given) = given {
        hash_key = given.0;
    } else if let Err(error) = getrandom::fill(&mut hash_key) {
        tracing::error!(%error, "the system has no randomness");
        return Ok(());
    }
    group.propose(Command::Bootstrap { hash_key }).await?;
    tracing::info!("the cluster has its hash key");
    Ok(())
}

async fn fence_silent(group: &Group, leases: &Leases) -> Result<(), ProposeError> {
    let live: Vec<(WorkerId, Epoch)> =
        group.read(|m| m.workers().filter(|w| w.is_live()).map(|w| (w.id, w.epoch)).collect());
    for (worker, epoch) in leases.sweep(&live, Instant::now()) {
        // It may have been heard while another was fenced.
        if leases.left_ms(worker, Instant::now()) > 0 {
            continue;
        }
        tracing::warn!(%worker, %epoch, "a worker was silent for its lease; its epoch ends");
        let cause = FenceCause::LeaseExpired;
        group.propose(Command::FenceWorker { worker, epoch, cause }).await?;
        metrics::counter!("mainstay_control_leases_expired_total").increment(1);
    }
    Ok(())
}
