//! A member as a simulated machine runs it: the real `Group` over a simulated disk, its listener, the leader's
//! ticks, and a door by which clients ask it.
//!
//! Clients come in by a channel rather than by the network, so that also a leader that is cut off from all others
//! is asked, which is where stale answers come from. The answers are made in the member's own runtime, by its
//! clocks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use mainstay_proto::client::MESSAGE_BYTES_MAX;
use mainstay_raft::simulation::Disk;
use mainstay_raft::{Founder, Group, GroupConfig, Leadership, ProposeError, Settings};
use mainstay_state::Limits;
use mainstay_types::{Command, NodeId};
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Server;

use crate::history::{Answer, Ask, PinView, Seen};
use crate::network;

/// Between two ticks of a leader: how old its last stamp gets while it has its quorum.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// What the simulated clocks show at the start, so that no offset leads before 1970.
pub(crate) const START: Duration = Duration::from_secs(1_000_000_000);
const REQUESTS_MAX: usize = 256;

/// The limits of the simulated cluster, low enough to be met.
#[must_use]
pub(crate) fn limits() -> Limits {
    Limits {
        pins_max: 24,
        pins_per_tenant_max: 14,
        pin_blocks_max: 8,
        pinned_blocks_max: 64,
        pinned_blocks_per_tenant_max: 30,
        ttl_ms_max: 60_000,
        ..Limits::standard()
    }
}

/// A question to a member and the way back.
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) reply: oneshot::Sender<Result<Answer, ProposeError>>,
}

/// A member that runs.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) group: Group,
    pub(crate) requests: mpsc::Sender<Request>,
}

/// What of a member outlives its process.
pub(crate) struct Seat {
    pub(crate) id: u64,
    pub(crate) members: Vec<(NodeId, String)>,
    pub(crate) disk: Disk,
    pub(crate) offset_ms: Arc<AtomicI64>,
    pub(crate) live: RefCell<Option<Live>>,
    /// When its present life began.
    pub(crate) started_ms: Cell<u64>,
    /// Why its last life ended by itself.
    pub(crate) ended: RefCell<Option<String>>,
}

/// True time.
pub(crate) fn now_ms() -> u64 {
    let now = turmoil::sim_elapsed().unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn config(seat: &Seat) -> GroupConfig {
    let mut config = GroupConfig::new(NodeId(seat.id), "");
    config.disk = Some(seat.disk.clone());
    config.limits = limits();
    config.connector = network::connector();
    config.settings = Settings {
        heartbeat_ms: 50,
        election_ms_min: 200,
        election_ms_max: 400,
        snapshot_entries: 100,
        kept_entries: 30,
        ..Settings::default()
    };
    let offset_ms = Arc::clone(&seat.offset_ms);
    config.wall_clock = Arc::new(move || {
        let wall = START + turmoil::sim_elapsed().unwrap_or_default();
        let offset_ms = offset_ms.load(Ordering::Relaxed);
        let offset = Duration::from_millis(offset_ms.unsigned_abs());
        if offset_ms < 0 { wall - offset } else { wall + offset }
    });
    config
}

/// One life of a member; it returns when its group has ended.
pub(crate) async fn run(seat: Rc<Seat>) -> turmoil::Result {
    let listener = network::listen().await?;
    seat.started_ms.set(now_ms());
    let group = Group::start(config(&seat)).await?;
    let service = group.service().max_decoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .add_service(service)
        .serve_with_incoming(network::incoming(listener));
    tokio::spawn(server);
    if seat.id == 1 {
        // On later lives it says that there is a group already.
        let founder = |(id, address): &(NodeId, String)| Founder {
            id: *id,
            address: address.clone(),
            instance: id.0,
        };
        let founders: Vec<Founder> = seat.members.iter().map(founder).collect();
        group.initialise(&founders).await?;
    }
    let (requests, mut inbox) = mpsc::channel(REQUESTS_MAX);
    tokio::spawn(tick(group.clone()));
    seat.live.replace(Some(Live { group: group.clone(), requests }));
    let mut ended = group.ended();
    loop {
        tokio::select! {
            biased;
            reason = async { ended.wait_for(Option::is_some).await.ok().and_then(|r| r.clone()) } => {
                seat.live.replace(None);
                seat.ended.replace(Some(reason.unwrap_or_default()));
                return Ok(());
            }
            request = inbox.recv() => {
                let Some(Request { ask, reply }) = request else { return Ok(()) };
                let (group, node) = (group.clone(), seat.id);
                tokio::spawn(async move {
                    // Who asked may have given up.
                    let _ = reply.send(answer(&group, node, ask).await);
                });
            }
        }
    }
}

/// The leader's duty to move time on.
async fn tick(group: Group) {
    let mut leadership = group.leadership();
    loop {
        if leadership.wait_for(|l| matches!(l, Leadership::Serving { .. })).await.is_err() {
            return;
        }
        // A tick that is refused is made up for by the next.
        let _ = group.propose(Command::Tick).await;
        tokio::time::sleep(TICK).await;
    }
}

async fn answer(group: &Group, node: u64, ask: Ask) -> Result<Answer, ProposeError> {
    match ask {
        Ask::Write(command) => {
            let (index, outcome) = group.propose(command).await?;
            Ok(Answer::Written(index.0, outcome))
        }
        Ask::Read(ids) => {
            let mut seen = group
                .read_linearizable(|machine| {
                    let view = |id| {
                        let pin = machine.pin(id);
                        PinView {
                            id,
                            live: pin.is_some_and(mainstay_state::Pin::is_live),
                            expires_ms: pin.map_or(0, |p| p.expires_ms),
                        }
                    };
                    Seen {
                        node,
                        applied: machine.applied().0,
                        time: machine.time(),
                        serving_term: None,
                        pins: ids.into_iter().map(view).collect(),
                    }
                })
                .await?;
            if let Leadership::Serving { term } = *group.leadership().borrow() {
                seen.serving_term = Some(term);
            }
            Ok(Answer::Read(seen))
        }
    }
}
