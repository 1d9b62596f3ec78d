//! The lane threads of an engine in this process.
//!
//! One plain thread per lane waits on the engine and pushes into a bounded channel; a full channel
//! stops the thread, the engine's lane fills, and the engine holds back (or, on lane KV, resets).

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mainstay_engine_abi::sdk::{OpDone, Output};
use tokio::sync::mpsc;

use crate::KvBatch;
use crate::decode::Broken;
use crate::error::{ExitReason, LoadError};
use crate::instance::{Instance, Next};
use crate::shared::Shared;

/// How long a lane thread waits before it looks whether it shall stop.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Starts a named thread; what it captured is dropped when that fails.
pub(crate) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, LoadError> {
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|error| LoadError::Resources { what: "threads".into(), reason: error.to_string() })
}

pub(crate) fn start(
    instance: &Arc<Instance>,
    shared: &Arc<Shared>,
    outputs: mpsc::Sender<Vec<Output>>,
    kv: mpsc::Sender<KvBatch>,
    ops: mpsc::Sender<OpDone>,
) -> Result<(), LoadError> {
    let (i, s) = (Arc::clone(instance), Arc::clone(shared));
    let started = spawn("engine-out", move || run_outputs(&i, &s, &outputs))
        .and_then(|_| {
            let (i, s) = (Arc::clone(instance), Arc::clone(shared));
            spawn("engine-kv", move || {
                run(&s, || i.next_kv(TICK), |batch| drop(kv.blocking_send(batch)));
            })
        })
        .and_then(|_| {
            let (i, s) = (Arc::clone(instance), Arc::clone(shared));
            spawn("engine-op", move || {
                let send = |batch: Vec<OpDone>| {
                    for done in batch {
                        let _ = ops.blocking_send(done);
                    }
                };
                run(&s, || i.next_ops(TICK), send);
                i.close_transfers();
            })
        });
    // The threads that did start must not keep an engine that nobody holds.
    started.map(drop).inspect_err(|_| drop(shared.end(ExitReason::Stopped)))
}

fn run_outputs(instance: &Instance, shared: &Shared, to: &mpsc::Sender<Vec<Output>>) {
    run(shared, || instance.next_outputs(TICK), |outputs| shared.deliver(to, outputs));
    // Only now is everything that the engine said passed on, so what is still live is owed its end.
    let reason = shared.end(ExitReason::Closed);
    for owed in shared.owed(&reason) {
        let _ = to.blocking_send(owed);
    }
}

/// Takes from a lane until it closes, breaks, or everything stops.
fn run<T>(
    shared: &Shared,
    mut next: impl FnMut() -> Result<Next<T>, Broken>,
    mut give: impl FnMut(T),
) {
    while !shared.stopping() {
        match next() {
            Ok(Next::Items(items)) => give(items),
            Ok(Next::TimedOut) => {}
            Ok(Next::Closed) => return,
            Err(broken) => {
                shared.end(ExitReason::Broken(broken));
                return;
            }
        }
    }
}
