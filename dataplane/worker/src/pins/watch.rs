//! The cluster's pins, followed from any member of the control plane.
//!
//! A replica of the state machine without the block index is fed by `Watch`; when a member goes, the next one
//! is asked to resume at the log index reached. While no member answers, the pins stay as they are and the
//! engine's own leases end them, later than the cluster would have. The replica also tells the cluster's hash
//! key, which the engine needs before it can be created.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::client::ControlPlane;
use mainstay_proto::convert::proposal_from_wire;
use mainstay_proto::v1;
use mainstay_proto::v1::watch_event::Event;
use mainstay_state::{Limits, Machine, Pin, VERSION_NEWEST};
use mainstay_types::{Command, LogIndex, Tier, WorkerId};
use tokio::time::Instant;
use tonic::Status;

use super::ledger::Wanted;
use super::recompute::Ordered;
use crate::backoff::Backoff;
use crate::shared::{Registration, Shared};
use crate::transfer::SOURCES_MAX;

/// A member sends progress or ticks several times a second; after so much silence it is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a member may show that it lives without an entry of the log.
const STALE_MAX: Duration = Duration::from_secs(4);
/// Pins change in bursts; so often at most is the ledger brought up to date.
const SYNC_INTERVAL: Duration = Duration::from_millis(50);

/// Time moves ten times a second; for that alone, so often is enough: an expiry seen late ends a lease late.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// Orders that are looked at; the keeper gives one worker a few.
const ORDERS_MAX: usize = 1_024;

/// What an event means for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    Nothing,
    /// Time moved, or something that is not of pins.
    Time,
    Pins,
}

/// Follows the pins until the task is aborted.
pub(crate) async fn follow(shared: Arc<Shared>, control: ControlPlane) {
    let mut machine = None;
    let mut backoff = Backoff::new(50, 2_000);
    loop {
        let reached = machine.as_ref().map(Machine::applied);
        if let Err(status) = follow_one(&shared, &control, &mut machine).await {
            tracing::debug!(code = ?status.code(), reason = status.message(), "the watch ended");
        }
        if machine.as_ref().map(Machine::applied) != reached {
            backoff.reset();
        }
        control.rotate();
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

async fn follow_one(
    shared: &Shared,
    control: &ControlPlane,
    machine: &mut Option<Machine>,
) -> Result<(), Status> {
    let from_log_index = machine.as_ref().map_or(0, |m| m.applied().0 + 1);
    let request = v1::WatchRequest {
        from_log_index,
        without_blocks: true,
        positions: Vec::new(),
        version: u32::from(VERSION_NEWEST),
    };
    let mut client = control.current();
    let opened = tokio::time::timeout(SILENCE_MAX, client.watch(request)).await;
    let mut stream = opened.map_err(|_| silent())??.into_inner();
    let mut heard = Instant::now();
    let mut moved = Instant::now();
    let mut news = News::Nothing;
    let mut synced = None::<Instant>;
    loop {
        let silence = heard + SILENCE_MAX;
        let wait = due(news, synced).map_or(silence, |due| due.min(silence));
        match tokio::time::timeout_at(wait, stream.message()).await {
            Ok(message) => {
                let Some(message) = message? else { return Ok(()) };
                // A member that was cut off or removed says that it lives, and has nothing new for ever. While
                // this worker is registered the leader ticks ten times a second.
                if matches!(message.event, Some(Event::Progress(_))) {
                    if moved.elapsed() >= STALE_MAX {
                        return Err(Status::unavailable("the member has no news of the log"));
                    }
                } else {
                    moved = Instant::now();
                }
                news = news.max(take(machine, message)?);
                heard = Instant::now();
            }
            Err(_) if heard.elapsed() >= SILENCE_MAX => return Err(silent()),
            Err(_) => {}
        }
        if due(news, synced).is_some_and(|due| Instant::now() >= due) {
            if let Some(machine) = machine.as_ref() {
                sync(shared, machine);
            }
            (news, synced) = (News::Nothing, Some(Instant::now()));
        }
    }
}

/// When the ledger is to hear of what has gathered.
fn due(news: News, synced: Option<Instant>) -> Option<Instant> {
    let interval = match news {
        News::Nothing => return None,
        News::Time => EXPIRY_INTERVAL,
        News::Pins => SYNC_INTERVAL,
    };
    Some(synced.map_or_else(Instant::now, |at| at + interval))
}

fn silent() -> Status {
    Status::deadline_exceeded("the member fell silent")
}

/// Takes one event in.
fn take(machine: &mut Option<Machine>, event: v1::WatchEvent) -> Result<News, Status> {
    match event.event {
        Some(Event::Image(image)) => {
            let decoded = Machine::decode(&image.state, Limits::standard())
                .map_err(|error| Status::data_loss(format!("state image: {error}")))?;
            *machine = Some(decoded);
            Ok(News::Pins)
        }
        Some(Event::Entry(entry)) => {
            let proposal = entry.proposal.as_ref();
            let proposal = proposal.ok_or_else(|| Status::data_loss("an entry is empty"))?;
            let proposal = proposal_from_wire(proposal)?;
            // Before the first image, the state is that before the first entry.
            let machine = machine.get_or_insert_with(|| Machine::new(Limits::standard()));
            machine.apply(LogIndex(entry.log_index), &proposal);
            let pins = matches!(
                proposal.command,
                Command::PutPin(_)
                    | Command::ExtendPin { .. }
                    | Command::ReleasePin { .. }
                    | Command::Bootstrap { .. }
                    | Command::OrderPin { .. }
            );
            Ok(if pins { News::Pins } else { News::Time })
        }
        // The blocks of others were not asked for.
        Some(Event::Progress(_) | Event::Index(_) | Event::Items(_)) | None => Ok(News::Nothing),
    }
}

/// The orders for this worker in the life that it leads. Those of a former one ended with it.
fn tell_orders(shared: &Shared, machine: &Machine) {
    let orders: Vec<Ordered> = match shared.registration() {
        Some(Registration { worker, epoch, .. }) => machine
            .short_pins()
            .filter(|pin| pin.keeping.orders.get(&worker).is_some_and(|o| o.epoch == epoch))
            .take(ORDERS_MAX)
            .map(|pin| Ordered {
                id: pin.request.id,
                made: pin.created_index,
                worker,
                epoch,
                keepers: keepers(machine, pin, worker),
            })
            .collect(),
        None => Vec::new(),
    };
    shared.orders.send_if_modified(|known| {
        let news = *known != orders;
        if news {
            *known = orders;
        }
        news
    });
}

/// The other workers that keep some of a pin, most first.
fn keepers(machine: &Machine, pin: &Pin, own: WorkerId) -> Vec<(String, u32)> {
    let live = |(worker, blocks): (&WorkerId, &u32)| {
        let worker = machine.worker(*worker).filter(|worker| worker.is_live())?;
        (worker.id != own).then(|| (worker.address.clone(), *blocks))
    };
    let mut keepers: Vec<(String, u32)> = pin.holders.iter().filter_map(live).collect();
    keepers.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    keepers.truncate(SOURCES_MAX);
    keepers
}

fn sync(shared: &Shared, machine: &Machine) {
    if let Some(key) = machine.hash_key() {
        shared.hash_key.send_if_modified(|known| known.replace(key) != Some(key));
    }
    let now_ms = machine.time().now_ms;
    let live = machine.pins().filter(|pin| pin.is_live()).map(|pin| Wanted {
        id: pin.request.id,
        made: pin.created_index,
        namespace: pin.request.namespace,
        blocks: &pin.request.blocks,
        priority: pin.request.priority,
        ttl_left_ms: pin.expires_ms.saturating_sub(now_ms),
    });
    let mut guard = shared.events.lock();
    let state = &mut *guard;
    let map = &state.map;
    state.pins.sync(live, |block| map.holds(block, Tier::Device), shared.now_ms());
    shared.events.pin_news.notify_one();
    shared.events.news.notify_one();
    // Last, so that whoever takes an order up finds the pin known.
    drop(guard);
    tell_orders(shared, machine);
}
