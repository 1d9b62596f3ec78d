//! One watcher's stream: an image if it needs one, then every entry, then signs of life.
//!
//! The stream's queue is short and the ring it reads from is shared, so a slow watcher costs a few entries of
//! memory; if the ring passes it by, it gets a new image. A watcher that is ahead of this member is sent to
//! another one, so that nobody's view goes back in time.

use std::time::Duration;

use mainstay_proto::v1;
use mainstay_proto::v1::command::Command;
use mainstay_proto::v1::watch_event::Event;
use mainstay_raft::{Applied, Group, Read};
use mainstay_types::LogIndex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

/// Between two signs of life.
const PROGRESS: Duration = Duration::from_millis(100);
/// Entries taken from the ring at a time.
const BATCH: usize = 256;
/// Events that wait for a slow watcher.
pub(crate) const QUEUE: usize = 64;
/// How long a member that is behind a watcher may take to catch up with it.
const BEHIND_MAX: Duration = Duration::from_secs(2);
/// The largest image that fits a message, with some room for what surrounds it.
const IMAGE_BYTES_MAX: usize = mainstay_proto::client::MESSAGE_BYTES_MAX - (1 << 10);

pub(crate) type Item = Result<v1::WatchEvent, Status>;

pub(crate) struct Watcher {
    pub(crate) group: Group,
    pub(crate) request: v1::WatchRequest,
    pub(crate) out: mpsc::Sender<Item>,
    /// Turns true when the member stops.
    pub(crate) closes: watch::Receiver<bool>,
}

impl Watcher {
    /// Runs until the watcher or the member is gone.
    pub(crate) async fn run(mut self) {
        let mut closes = self.closes.clone();
        let out = self.out.clone();
        let end = tokio::select! {
            end = self.follow() => end,
            _ = closes.wait_for(|closing| *closing) => Err(Status::unavailable("this member stops")),
            () = out.closed() => return,
        };
        if let Err(status) = end {
            // It may be gone.
            let _ = out.try_send(Err(status));
        }
    }

    async fn follow(&mut self) -> Result<(), Status> {
        let mut applied = self.group.watch_applied();
        let mut next = LogIndex(self.request.from_log_index);
        if next.0 == 0 {
            next = self.send_image().await?;
        } else {
            self.catch_up(next, &mut applied).await?;
        }
        let mut told = Instant::now();
        loop {
            // Also while there is much to do and nothing of it is for this watcher.
            if told.elapsed() >= PROGRESS {
                let log_index = next.0.saturating_sub(1);
                self.send(Event::Progress(v1::Progress { log_index })).await?;
                told = Instant::now();
            }
            applied.mark_unchanged();
            match self.group.entries(next, BATCH) {
                Read::Entries(entries) => {
                    for entry in entries {
                        next = LogIndex(entry.index + 1);
                        if let Some(event) = self.event(entry) {
                            self.send(event).await?;
                            told = Instant::now();
                        }
                    }
                }
                Read::Lagged => {
                    metrics::counter!("mainstay_control_watchers_lagged_total").increment(1);
                    next = self.send_image().await?;
                }
                Read::UpToDate => {
                    let changed = tokio::time::timeout_at(told + PROGRESS, applied.changed()).await;
                    match changed {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Err(Status::unavailable("this member stops")),
                        // Silence: it is told at the top.
                        Err(_) => {}
                    }
                }
            }
        }
    }

    /// Waits for a member that is a little behind its watcher.
    async fn catch_up(
        &self,
        next: LogIndex,
        applied: &mut watch::Receiver<u64>,
    ) -> Result<(), Status> {
        let until = Instant::now() + BEHIND_MAX;
        let reached = tokio::time::timeout_at(until, applied.wait_for(|at| at + 1 >= next.0)).await;
        if matches!(reached, Ok(Ok(_))) {
            return Ok(());
        }
        Err(Status::unavailable(format!(
            "this member has applied entries up to {}, not yet {}; ask another",
            self.group.status().applied,
            next.0.saturating_sub(1)
        )))
    }

    /// Sends the whole state; answers with the entry that comes after it.
    async fn send_image(&self) -> Result<LogIndex, Status> {
        let group = self.group.clone();
        // Entries without a proposal move the log on, but not the machine; all up to here are in the image.
        let floor = *group.watch_applied().borrow();
        let bare = self.request.without_blocks;
        // Encoding a big state takes a while; it is not for the async threads.
        let (at, state) = tokio::task::spawn_blocking(move || {
            group.read(|m| (m.applied(), if bare { m.encode_without_blocks() } else { m.encode() }))
        })
        .await
        .map_err(|e| Status::internal(e.to_string()))?;
        if state.len() > IMAGE_BYTES_MAX {
            return Err(Status::resource_exhausted(format!(
                "the state takes {} bytes, more than a message may have; watch with without_blocks",
                state.len()
            )));
        }
        let version = state.first().copied().map_or(0, u32::from);
        let image = v1::StateImage { log_index: at.0, state: state.into(), version };
        self.send(Event::Image(image)).await?;
        Ok(LogIndex(at.0.max(floor)).next())
    }

    /// The event of an entry, if it has one for this watcher.
    fn event(&self, entry: Applied) -> Option<Event> {
        let proposal = entry.proposal?;
        let command = proposal.command.as_ref().and_then(|c| c.command.as_ref());
        if self.request.without_blocks && matches!(command, Some(Command::Blocks(_))) {
            return None;
        }
        let proposal = Some(v1::Proposal::clone(&proposal));
        Some(Event::Entry(v1::Entry { log_index: entry.index, proposal }))
    }

    async fn send(&self, event: Event) -> Result<(), Status> {
        let event = v1::WatchEvent { event: Some(event) };
        self.out.send(Ok(event)).await.map_err(|_| Status::cancelled("the watcher is gone"))
    }
}
