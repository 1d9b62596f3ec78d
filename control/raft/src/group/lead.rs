//! What goes on beside the log: noticing leadership and its barrier write, recovery, and the end.

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use tokio::sync::watch;

use super::{Group, Inner, Leadership};
use crate::error::ProposeError;
use crate::types::TypeConfig;

/// The reason of an end that was asked for.
const SHUT_DOWN: &str = "shut down";
const BARRIER_PAUSE: Duration = Duration::from_millis(20);

type Metrics = openraft::RaftMetrics<TypeConfig>;

impl Group {
    /// Starts the tasks that live as long as the member.
    pub(super) fn supervise(
        &self,
        leadership: watch::Sender<Leadership>,
        recovered: watch::Sender<bool>,
        ended: watch::Sender<Option<String>>,
    ) {
        // Tasks hold the group weakly where they can outlive its last handle.
        let raft = self.inner.raft.clone();
        let wait = tokio::spawn(async move {
            if raft.wait_for_recovery(None).await.is_ok() {
                recovered.send_replace(true);
            }
        });
        let weak = Arc::downgrade(&self.inner);
        let instances = Arc::clone(&self.inner.instances);
        let mut metrics = self.inner.raft.metrics();
        let follow = tokio::spawn(async move {
            let mut barrier = None;
            loop {
                let seen = metrics.borrow_and_update().clone();
                report(&seen);
                instances.note(seen.membership_config.nodes());
                if let Err(fatal) = &seen.running_state {
                    leadership.send_replace(Leadership::None);
                    if matches!(fatal, Fatal::Stopped) {
                        ended.send_replace(Some(SHUT_DOWN.into()));
                    } else {
                        tracing::error!(reason = %fatal, "the replicated log has ended");
                        ended.send_replace(Some(fatal.to_string()));
                    }
                    return;
                }
                let leads = seen.state == ServerState::Leader;
                let known = *leadership.borrow();
                match (leads, known) {
                    (false, Leadership::None) => {}
                    (false, _) => {
                        tracing::info!(term = seen.current_term, "leads no more");
                        leadership.send_replace(Leadership::None);
                    }
                    (true, Leadership::Starting { term } | Leadership::Serving { term })
                        if term == seen.current_term => {}
                    (true, _) => {
                        let term = seen.current_term;
                        tracing::info!(term, "leads");
                        leadership.send_replace(Leadership::Starting { term });
                        let Some(inner) = weak.upgrade() else { return };
                        barrier = Some(tokio::spawn(make_barrier(inner, term, leadership.clone())));
                    }
                }
                if metrics.changed().await.is_err() {
                    if let Some(task) = barrier {
                        task.abort();
                    }
                    ended.send_replace(Some(SHUT_DOWN.into()));
                    return;
                }
            }
        });
        self.inner.tasks.lock().extend([wait, follow]);
    }

    /// A member that is the only voter need not wait for an election timeout: nobody else could lead.
    pub(super) async fn elect_alone(&self) {
        let alone = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.voter_ids().eq([self.inner.node])
        };
        if alone {
            // An election timeout would do the same a little later.
            let _ = self.inner.raft.trigger().elect(false).await;
        }
    }
}

/// Commits one entry of this leadership, then lets it serve. The entry's stamp also moves time past whatever the
/// former leader had promised.
async fn make_barrier(inner: Arc<Inner>, term: u64, leadership: watch::Sender<Leadership>) {
    let group = Group { inner };
    #[cfg(feature = "simulation")]
    if crate::simulation::lacks(crate::simulation::Safeguard::Barrier) {
        leadership.send_replace(Leadership::Serving { term });
        return;
    }
    while *leadership.borrow() == (Leadership::Starting { term }) {
        match group.propose(group.barrier()).await {
            Ok(_) => {
                leadership.send_if_modified(|l| {
                    let starting = *l == Leadership::Starting { term };
                    if starting {
                        *l = Leadership::Serving { term };
                    }
                    starting
                });
                return;
            }
            Err(ProposeError::Fatal(_)) => return,
            Err(_) => tokio::time::sleep(BARRIER_PAUSE).await,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
fn report(metrics: &Metrics) {
    let index = |id: Option<crate::types::LogId>| id.map_or(0, |id| id.index) as f64;
    metrics::gauge!("mainstay_control_term").set(metrics.current_term as f64);
    metrics::gauge!("mainstay_control_leader")
        .set(f64::from(u8::from(metrics.state == ServerState::Leader)));
    metrics::gauge!("mainstay_control_last_log_index")
        .set(metrics.last_log_index.unwrap_or(0) as f64);
    metrics::gauge!("mainstay_control_committed_index").set(index(metrics.cluster_committed));
    metrics::gauge!("mainstay_control_applied_index").set(index(metrics.last_applied));
    metrics::gauge!("mainstay_control_snapshot_index").set(index(metrics.snapshot));
}
