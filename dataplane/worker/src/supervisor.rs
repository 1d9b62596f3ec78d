//! The engine's keeper: opens it, carries its reports onwards, and replaces it when it ends.
//!
//! A crash ends the requests in flight with an error that sends them to other workers, and the next engine
//! starts empty under a new epoch. Restarts pause ever longer and are bounded: an engine that cannot live is
//! given up, so that whoever supervises the process learns of it.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::{Code, EngineError, Output, Stats, caps};
use mainstay_types::HashKey;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::engine::{KvBatch, OpDone, Opener, Receivers};
use crate::error::WorkerError;
use crate::flights::Failure;
use crate::pins::drive::{drive, refused};
use crate::shared::{Life, Shared};
use crate::tiers::{Tiers, offload, tell, upload};

/// An engine that ran so long was a healthy one.
const LIFE_HEALTHY: Duration = Duration::from_secs(60);
/// How long to wait for what an engine said before its end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Set in the ids of operations that are not of pins. The bit above is the host's own.
const SNAPSHOT_OPS: u64 = 1 << 62;
/// How soon after a refusal, or after the last, a snapshot is asked for again.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(1);

/// An engine that has just been opened.
pub(crate) type Opened = (Arc<Life>, Receivers);

/// Opens an engine with the cluster's hash key in its configuration.
pub(crate) async fn open(
    shared: &Shared,
    opener: &Arc<dyn Opener>,
    number: u64,
    hash_key: HashKey,
) -> Result<Opened, String> {
    let mut config = shared.settings.engine_config.clone();
    config.insert("hash_key".into(), hash_key.to_hex().into());
    let config = serde_json::Value::Object(config).to_string();
    let (engine, receivers) = opener.open(config).await?;
    let (info, caps) = (engine.info(), engine.caps());
    let life = Life { number, engine, info, caps, hash_key, retire: tokio::sync::Notify::new() };
    tracing::info!(
        engine = life.engine.name(),
        device = life.info.device,
        blocks = life.info.blocks_total,
        "the engine is up"
    );
    Ok((Arc::new(life), receivers))
}

/// Has the tiers ready for an engine: those that are there if they fit, else new ones.
pub(crate) async fn attach_tiers(shared: &Shared, life: &Life) -> Result<(), String> {
    let model = crate::lifecycle::model_spec(&shared.settings, &life.info);
    if shared.tiers().is_some_and(|tiers| tiers.fits(life, &model)) {
        return Ok(());
    }
    // Whoever still uses the old ones has their folder; it is free once they are done.
    *shared.tiers.lock() = None;
    let opened = Tiers::open(&shared.settings.tiers, life, &model).await?;
    *shared.tiers.lock() = opened;
    Ok(())
}

/// Keeps an engine running until the worker stops, or the engine is given up.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    opener: Arc<dyn Opener>,
    first: Opened,
) -> Result<(), WorkerError> {
    let mut current = first;
    let mut restarts = 0;
    let mut backoff = Backoff::new(100, 10_000);
    loop {
        let (life, receivers) = current;
        let number = life.number;
        let began = Instant::now();
        let end = run(&shared, life, receivers).await;
        let Some(mut reason) = end else { return Ok(()) };
        tracing::error!(reason, "the engine ended");
        if began.elapsed() >= LIFE_HEALTHY {
            restarts = 0;
            backoff.reset();
        }
        current = loop {
            if restarts >= shared.settings.engine_restarts_max {
                return Err(WorkerError::EngineGone { restarts, reason });
            }
            restarts += 1;
            metrics::counter!("mainstay_worker_engine_restarts_total").increment(1);
            let Some(hash_key) = *shared.hash_key.borrow() else {
                return Err(WorkerError::System("the hash key is lost".into()));
            };
            tokio::select! {
                () = tokio::time::sleep(backoff.next_pause()) => {}
                () = shared.stopped() => return Ok(()),
            }
            let opened = tokio::select! {
                opened = open(&shared, &opener, number + 1, hash_key) => opened,
                () = shared.stopped() => return Ok(()),
            };
            match opened {
                Ok(opened) => {
                    // The tiers outlive an engine; those of another hash key are of no use to this one.
                    if let Err(error) = attach_tiers(&shared, &opened.0).await {
                        tracing::error!(error, "the worker goes on without its tiers");
                    }
                    break opened;
                }
                Err(error) => {
                    tracing::error!(error, "the engine does not start again");
                    reason = error;
                }
            }
        };
    }
}

/// Runs one engine to its end. `None` when the worker stops.
async fn run(shared: &Arc<Shared>, life: Arc<Life>, receivers: Receivers) -> Option<String> {
    let number = life.number;
    let Receivers { outputs, kv, ops, exit } = receivers;
    shared.meter.reset();
    *shared.stats.lock() = Stats::default();
    shared.events.engine_began(life.caps, &life.info, shared.now_ms());
    let tiers = shared.tiers();
    let mut pumps = JoinSet::new();
    pumps.spawn(pump_outputs(Arc::clone(shared), Arc::clone(&life), outputs));
    pumps.spawn(pump_kv(Arc::clone(shared), Arc::clone(&life), kv));
    pumps.spawn(pump_ops(Arc::clone(shared), ops));
    let mut driver = JoinSet::new();
    driver.spawn(drive(Arc::clone(shared), Arc::clone(&life)));
    if let Some(tiers) = tiers {
        driver.spawn(offload(Arc::clone(shared), Arc::clone(&life), Arc::clone(&tiers)));
        driver.spawn(upload(Arc::clone(shared), Arc::clone(&life), Arc::clone(&tiers)));
        driver.spawn(tell(Arc::clone(shared), tiers));
    }
    shared.life.send_replace(Some(Arc::clone(&life)));
    let end = tokio::select! {
        biased;
        () = shared.stopped() => None,
        reason = exit => Some(reason.map_or_else(|_| "its host is gone".into(), |r| r.to_string())),
        () = life.retire.notified() => Some("it is replaced".to_owned()),
    };
    shared.life.send_replace(None);
    driver.abort_all();
    life.engine.stop();
    // The host ends every request before it closes the lanes.
    let words = async { while pumps.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_WORDS, words).await;
    shared.flights.fail_all(number, &Failure::unavailable("the engine of this worker ended"));
    pumps.shutdown().await;
    driver.shutdown().await;
    end
}

async fn pump_outputs(
    shared: Arc<Shared>,
    life: Arc<Life>,
    mut outputs: mpsc::Receiver<Vec<Output>>,
) {
    while let Some(batch) = outputs.recv().await {
        for late in shared.flights.deliver(batch, Instant::now().into_std(), &shared.meter) {
            life.engine.cancel(late);
        }
    }
}

async fn pump_kv(shared: Arc<Shared>, life: Arc<Life>, mut kv: mpsc::Receiver<KvBatch>) {
    let mut op_id = SNAPSHOT_OPS;
    let mut wanted = false;
    loop {
        let batch = if wanted {
            tokio::time::timeout(SNAPSHOT_RETRY, kv.recv()).await.ok()
        } else {
            Some(kv.recv().await)
        };
        match batch {
            Some(None) => return,
            Some(Some(batch)) => {
                // A reset without a gap is the snapshot itself, or an engine that tells all by itself.
                wanted = (wanted && !batch.reset) || batch.gap;
                if batch.gap {
                    metrics::counter!("mainstay_worker_engine_gaps_total").increment(1);
                }
                let gap = batch.gap;
                let tiers = shared.tiers();
                let jobs = tiers.as_ref().map(|tiers| tiers.jobs_of(&batch));
                shared.events.take(batch, shared.now_ms());
                // Behind the map, which knows where in its chain a block is.
                if let Some((tiers, jobs)) = tiers.zip(jobs) {
                    tiers.note(jobs);
                }
                if !gap {
                    continue;
                }
            }
            None => {}
        }
        if life.caps & caps::KV_SNAPSHOT == 0 {
            tracing::warn!("events of the engine are lost and it makes no snapshots");
            wanted = false;
            continue;
        }
        op_id += 1;
        if let Err(error) = life.engine.kv_snapshot(op_id).await {
            tracing::warn!(%error, "the engine gives no snapshot now");
        }
    }
}

async fn pump_ops(shared: Arc<Shared>, mut ops: mpsc::Receiver<OpDone>) {
    while let Some(op) = ops.recv().await {
        if op.op_id & SNAPSHOT_OPS != 0 {
            continue;
        }
        if op.rc == 0 {
            if shared.events.lock().pins.done(op.op_id, op.done, shared.now_ms()) {
                shared.events.news.notify_one();
            }
        } else {
            refused(&shared, op.op_id, &EngineError::new(Code::from_rc(op.rc), "refused later"));
        }
        // The next operations may have waited for room.
        shared.events.pin_news.notify_one();
    }
}
