//! What an engine's handle and its lane threads share: the live requests and the one end.

use std::sync::atomic::{AtomicBool, Ordering};

use mainstay_engine_abi::sdk::Output;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::error::ExitReason;
use crate::live::Live;

/// Final outputs in one batch when an engine has ended.
const OWED_BATCH: usize = 1024;

pub(crate) struct Shared {
    pub(crate) live: Live,
    stopping: AtomicBool,
    end: Mutex<End>,
}

struct End {
    reason: Option<ExitReason>,
    tell: Option<oneshot::Sender<ExitReason>>,
}

impl Shared {
    pub(crate) fn new() -> (Self, oneshot::Receiver<ExitReason>) {
        let (tell, told) = oneshot::channel();
        let end = Mutex::new(End { reason: None, tell: Some(tell) });
        (Self { live: Live::default(), stopping: AtomicBool::new(false), end }, told)
    }

    /// Ends the engine for `reason`, unless it ended before; returns the reason that holds.
    pub(crate) fn end(&self, reason: ExitReason) -> ExitReason {
        let mut end = self.end.lock();
        if let Some(first) = &end.reason {
            return first.clone();
        }
        end.reason = Some(reason.clone());
        self.stopping.store(true, Ordering::Release);
        if let Some(tell) = end.tell.take() {
            // Nobody may be listening; the outputs tell the rest.
            let _ = tell.send(reason.clone());
        }
        reason
    }

    /// Whether the lane threads shall stop.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn reason(&self) -> ExitReason {
        self.end.lock().reason.clone().unwrap_or(ExitReason::Stopped)
    }

    /// The final outputs that are owed after the end, in batches. Call it once all that the engine
    /// said has been passed on.
    pub(crate) fn owed(&self, reason: &ExitReason) -> Vec<Vec<Output>> {
        let owed = self.live.close(reason);
        owed.chunks(OWED_BATCH).map(<[Output]>::to_vec).collect()
    }

    /// From a lane's own thread: passes outputs on, waiting for room. A consumer that is gone costs
    /// nothing but the outputs.
    pub(crate) fn deliver(&self, to: &mpsc::Sender<Vec<Output>>, mut outputs: Vec<Output>) {
        self.live.pass(&mut outputs);
        if !outputs.is_empty() {
            let _ = to.blocking_send(outputs);
        }
    }
}
