//! Prefixes brought back before their sessions return: as the rules order it, or as a client asks.
//!
//! The worker that served a session last is asked, or whom the router would choose if that one can't take requests. It
//! loads from lower tiers and other workers and computes nothing. All of it is a hint: what finds no room, fails or
//! comes too late is counted, and the turn that returns computes what is missing.

use std::sync::Arc;
use std::time::Duration;

use mainstay_block::{Order, SessionId};
use mainstay_proto::convert::u128_to_wire;
use mainstay_proto::v1;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::ahead::{Ahead, Entered};
use super::{Line, Place, Prefix, Retainer};
use crate::placement::Placement;
use crate::workers::WorkerEntry;

/// Sessions in line for a prefetch.
const WAITING_MAX: usize = 1_024;
/// Prefetches under way from this gateway.
const RUNNING_MAX: usize = 16;
/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(100);
/// A worker gives a load 3 s at most.
const PATIENCE: Duration = Duration::from_secs(5);
/// What blocks are worth that wait for their session, as while its tools run.
pub(crate) const WORTH: u32 = 80;
/// How long they wait for it.
pub(crate) const HOLD_MS: u32 = 60_000;

/// Who wants a prefetch.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// The rules: somebody is about to return.
    Return,
    Client,
}

/// A prefetch that a worker carried out.
pub(crate) struct Prefetched {
    pub(crate) worker: Arc<WorkerEntry>,
    pub(crate) prefix: Prefix,
    /// Leading blocks that were there, and those that came.
    pub(crate) held: u32,
    pub(crate) brought: u32,
}

impl Prefetched {
    /// A word for how it ended.
    pub(crate) fn ended(&self) -> &'static str {
        match self {
            _ if self.brought > 0 => "brought",
            _ if self.held as usize >= self.prefix.blocks.len() => "held",
            _ => "nothing",
        }
    }
}

/// Why nothing was brought in.
#[derive(Debug)]
pub(crate) enum Missed {
    /// Nothing is known of the session's prefix here.
    Unknown,
    /// It is being brought in.
    UnderWay,
    /// Too many are.
    Crowded,
    /// The session was back first.
    CalledOff,
    /// No worker takes requests.
    Nobody,
    /// The worker said no.
    Refused(tonic::Status),
    /// It took too long.
    Late,
}

impl Missed {
    const fn ended(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::UnderWay => "under_way",
            Self::Crowded => "crowded",
            Self::CalledOff => "called_off",
            Self::Nobody => "nobody",
            Self::Refused(_) => "refused",
            Self::Late => "late",
        }
    }
}

pub(super) fn line() -> Ahead {
    Ahead::new(WAITING_MAX, RUNNING_MAX)
}

fn count(asked: Asked, ended: &'static str) {
    let asked = match asked {
        Asked::Return => "return",
        Asked::Client => "client",
    };
    metrics::counter!("mainstay_gateway_prefetches_total", "asked" => asked, "ended" => ended)
        .increment(1);
}

/// Counts one that had been in line when its session came back.
pub(super) fn called_off() {
    count(Asked::Return, Missed::CalledOff.ended());
}

/// A prefetch that has its place.
struct Begun(Place);

impl Begun {
    /// Carries it out, unless the session is back before.
    async fn run(self, placement: Placement, asked: Asked) -> Result<Prefetched, Missed> {
        let outcome = tokio::select! {
            biased;
            () = self.0.called_off() => Err(Missed::CalledOff),
            outcome = self.ask(&placement) => outcome,
        };
        match &outcome {
            Ok(done) => {
                count(asked, done.ended());
                metrics::counter!("mainstay_gateway_prefetched_blocks_total")
                    .increment(done.brought.into());
            }
            Err(missed) => count(asked, missed.ended()),
        }
        outcome
    }

    async fn ask(&self, placement: &Placement) -> Result<Prefetched, Missed> {
        let prefix = self.0.retainer.prefix(self.0.session).ok_or(Missed::Unknown)?;
        let (worker, sources) = placement.near(&prefix).ok_or(Missed::Nobody)?;
        let request = v1::PrefetchRequest {
            namespace: u128_to_wire(prefix.namespace.0),
            blocks: prefix.blocks.iter().flat_map(|block| block.0.to_le_bytes()).collect(),
            priority: WORTH,
            duration_ms: HOLD_MS,
            sources,
            epoch: worker.epoch.0,
        };
        let mut client = worker.client.clone();
        match tokio::time::timeout(PATIENCE, client.prefetch(request)).await {
            Ok(Ok(reply)) => {
                let v1::PrefetchReply { held, brought } = reply.into_inner();
                Ok(Prefetched { worker, prefix, held, brought })
            }
            Ok(Err(status)) => {
                tracing::debug!(worker = worker.id.0, %status, "a prefetch was refused");
                Err(Missed::Refused(status))
            }
            Err(_) => Err(Missed::Late),
        }
    }
}

impl Retainer {
    /// A session's last known prefix, unless it has none.
    pub(super) fn prefix(&self, session: SessionId) -> Option<Prefix> {
        let state = self.shared.state.lock();
        state.served.get(session).filter(|prefix| !prefix.blocks.is_empty()).cloned()
    }

    /// Puts those in line who are about to return.
    fn note_due(&self) {
        let now_ms = self.now_ms();
        let mut state = self.shared.state.lock();
        for (_, order) in state.retention.due(now_ms) {
            let Order::Prefetch { session } = order else { continue };
            if state.prefetches.enter(session) == Entered::Full {
                count(Asked::Return, Missed::Crowded.ended());
            }
        }
    }

    fn next_prefetch(&self) -> Option<Begun> {
        let (session, stop) = self.shared.state.lock().prefetches.next()?;
        Some(Begun(self.place(session, stop, Line::Prefetches)))
    }

    /// Brings a session's prefix back because its client says so.
    pub(crate) async fn prefetch(
        &self,
        placement: &Placement,
        tenant: &str,
        key: &str,
    ) -> Result<Prefetched, Missed> {
        let begun = self.session(tenant, key).ok_or(Missed::Unknown).and_then(|session| {
            let begun = self.shared.state.lock().prefetches.begin(session);
            let stop = begun.map_err(|why| match why {
                Entered::Full => Missed::Crowded,
                Entered::Waits | Entered::Known => Missed::UnderWay,
            })?;
            Ok(Begun(self.place(session, stop, Line::Prefetches)))
        });
        match begun {
            Ok(begun) => begun.run(placement.clone(), Asked::Client).await,
            Err(missed) => {
                count(Asked::Client, missed.ended());
                Err(missed)
            }
        }
    }
}

/// Carries out what the rules order, for as long as the gateway runs.
pub(crate) async fn fetch_ahead(retainer: Retainer, placement: Placement) {
    if !retainer.shared.on {
        return;
    }
    let mut tasks = JoinSet::new();
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = clock.tick() => retainer.note_due(),
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
        while let Some(begun) = retainer.next_prefetch() {
            tasks.spawn(begun.run(placement.clone(), Asked::Return));
        }
    }
}
