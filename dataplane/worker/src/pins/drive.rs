//! The task that asks the engine for what the pin ledger wants.
//!
//! It wakes when pins or blocks change and four times a second for retries and renewals; an engine without
//! pins is never asked, so its pins stay unreported and the cluster sees that nobody keeps them.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::{Code, EngineError, Pin, caps};

use super::ledger::Action;
use crate::shared::{Life, Shared};

const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Drives the pins of one engine until the task is aborted.
pub(crate) async fn drive(shared: Arc<Shared>, life: Arc<Life>) {
    if life.caps & caps::PIN == 0 {
        tracing::warn!("this engine has no pins; the cluster's pins are not kept here");
        return;
    }
    loop {
        let actions = shared.events.lock().pins.actions(shared.now_ms());
        for action in actions {
            ask(&shared, &life, action).await;
        }
        // Either way it is time to look again.
        let _ = tokio::time::timeout(CHECK_INTERVAL, shared.events.pin_news.notified()).await;
    }
}

async fn ask(shared: &Shared, life: &Life, action: Action) {
    let op_id = action.op_id();
    let asked = match action {
        Action::Pin { id, blocks, ttl_ms, priority, .. } => {
            let priority = u32::from(priority.min(100));
            life.engine.pin(Pin { op_id, pin_id: id.0, blocks, ttl_ms, priority }).await
        }
        Action::Unpin { id, .. } => life.engine.unpin(op_id, id.0).await,
    };
    if let Err(error) = asked {
        refused(shared, op_id, &error);
    }
}

/// Notes that the engine did not do what an operation asked.
pub(crate) fn refused(shared: &Shared, op_id: u64, error: &EngineError) {
    let gone = !matches!(error.rc, Code::Exhausted | Code::Unavailable);
    if shared.events.lock().pins.refused(op_id, gone, shared.now_ms()) {
        tracing::debug!(op_id, %error, "the engine refused a pin operation");
        metrics::counter!("mainstay_worker_pin_refusals_total").increment(1);
        shared.events.news.notify_one();
    }
}
