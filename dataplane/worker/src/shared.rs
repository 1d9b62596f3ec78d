//! What a worker's tasks share: the engine of the moment, the registration of the moment, and the tables.
//!
//! The engine and the registration come and go independently: an engine may crash while the control plane is
//! away, and a worker may be fenced while its engine is well. Each is a watched value, so that every task sees
//! the change and none asks another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_engine_abi::sdk::{Info, Stats};
use mainstay_proto::client::ControlPlane;
use mainstay_tier::Retention;
use mainstay_types::{Epoch, HashKey, SequenceHash, WorkerId};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::Settings;
use crate::engine::Engine;
use crate::events::Events;
use crate::events::frames::FrameLimits;
use crate::flights::{Failure, Flights};
use crate::load::Meter;
use crate::pins::recompute::Ordered;
use crate::tiers::Tiers;
use crate::tiers::leased::Leased;
use crate::tiers::wants::Wants;
use crate::transfer::Transfers;

/// One engine, from its opening to its end.
pub(crate) struct Life {
    /// Counts up within this process.
    pub(crate) number: u64,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) info: Info,
    pub(crate) caps: u64,
    /// What its block hashes are made with.
    pub(crate) hash_key: HashKey,
    /// Asks for this engine to be replaced although it is well: the cluster's hash key is another now.
    pub(crate) retire: Notify,
}

/// The worker's place in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) worker: WorkerId,
    pub(crate) epoch: Epoch,
    pub(crate) lease_ttl: Duration,
    /// The engine that it stands for.
    pub(crate) life: u64,
    /// Frames go to the leader alone, who makes each an entry of the log.
    pub(crate) plain: bool,
}

/// Everything that more than one task touches.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    /// Where gateways reach this worker.
    pub(crate) address: String,
    pub(crate) control: ControlPlane,
    /// The cluster's hash key, once the watch or a registration told it.
    pub(crate) hash_key: watch::Sender<Option<HashKey>>,
    pub(crate) life: watch::Sender<Option<Arc<Life>>>,
    pub(crate) registration: watch::Sender<Option<Registration>>,
    /// Why the last registration failed.
    pub(crate) trouble: Mutex<String>,
    pub(crate) flights: Flights,
    pub(crate) events: Events,
    /// What the keeper asks of this worker.
    pub(crate) orders: watch::Sender<Vec<Ordered>>,
    pub(crate) meter: Meter,
    /// Blocks on their way to and from other workers.
    pub(crate) transfers: Transfers,
    /// What requests said of their blocks.
    pub(crate) wants: Mutex<Wants>,
    /// Which leases claim which blocks.
    pub(crate) leased: Mutex<Leased>,
    /// The tiers below the engine's memory, once it is known what its blocks are.
    pub(crate) tiers: Mutex<Option<Arc<Tiers>>>,
    /// The engine's figures of the last sample.
    pub(crate) stats: Mutex<Stats>,
    pub(crate) load: watch::Sender<mainstay_proto::v1::Load>,
    /// Set once the requests are ended: every task stops.
    pub(crate) stop: watch::Sender<bool>,
    draining: AtomicBool,
    started: Instant,
}

impl Shared {
    pub(crate) fn new(
        settings: Settings,
        address: String,
        control: ControlPlane,
        limits: FrameLimits,
    ) -> Self {
        let transfers = Transfers::new(settings.identity.clone());
        Self {
            settings,
            address,
            control,
            hash_key: watch::Sender::new(None),
            life: watch::Sender::new(None),
            registration: watch::Sender::new(None),
            trouble: Mutex::default(),
            flights: Flights::new(),
            events: Events::new(limits),
            orders: watch::Sender::new(Vec::new()),
            meter: Meter::default(),
            transfers,
            wants: Mutex::default(),
            leased: Mutex::default(),
            tiers: Mutex::default(),
            stats: Mutex::default(),
            load: watch::Sender::new(mainstay_proto::v1::Load::default()),
            stop: watch::Sender::new(false),
            draining: AtomicBool::new(false),
            started: Instant::now(),
        }
    }

    /// This process's monotonic clock.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn life(&self) -> Option<Arc<Life>> {
        self.life.borrow().clone()
    }

    pub(crate) fn tiers(&self) -> Option<Arc<Tiers>> {
        self.tiers.lock().clone()
    }

    /// How much a block is wanted, as far as anybody said.
    pub(crate) fn wanted(&self, block: SequenceHash) -> Retention {
        self.wants.lock().of(block).unwrap_or_default()
    }

    pub(crate) fn registration(&self) -> Option<Registration> {
        *self.registration.borrow()
    }

    /// The epoch that gateways should believe in; 0 before the first.
    pub(crate) fn epoch(&self) -> Epoch {
        self.registration().map(|r| r.epoch).unwrap_or_default()
    }

    /// Whether the engine is up and registered as it is, and requests are admitted.
    pub(crate) fn is_ready(&self) -> bool {
        let life = self.life().map(|life| life.number);
        let registered = self.registration().map(|r| r.life);
        life.is_some() && life == registered && !self.is_draining()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Returns once the worker is to stop.
    pub(crate) async fn stopped(&self) {
        // An error would mean that the sender is gone, which `self` holds.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Returns once the engine is another than `number`, or gone.
    pub(crate) async fn life_ended(&self, number: u64) {
        let other = |life: &Option<Arc<Life>>| life.as_ref().map(|l| l.number) != Some(number);
        let _ = self.life.subscribe().wait_for(other).await;
    }

    /// Ends all requests of engines up to `life` and has the engine forget them.
    pub(crate) fn fail_requests(&self, life: u64, error: &Failure) {
        let ids = self.flights.fail_all(life, error);
        if let Some(life) = self.life() {
            for id in ids {
                life.engine.cancel(id);
            }
        }
    }
}
