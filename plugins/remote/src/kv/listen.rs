//! Listens to the server's events and keeps the mirror: connects, asks for what it missed, tells what is new.
//!
//! A connection that is refused, a number that falls and a tail that is not what it was each mean another life of
//! the server: then what was told is taken back under a new epoch, and built again from what the server still
//! remembers. Where nothing can be asked for, a gap and a connection that breaks do the same.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::HostLog;
use mainstay_engine_proxy::Teller;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::decode::decode;
use super::order::{Order, Verdict};
use super::zmtp::{Message, Peer, Role};

/// How soon a lost connection is tried again, at first and at last.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);
/// How long no event may come before the server is asked whether its last one was lost.
const QUIET: Duration = Duration::from_secs(1);
/// The longest that is waited for the next message of a replay.
const REPLAY_STEP: Duration = Duration::from_secs(5);
/// Batches of one replay: a server keeps 10,000.
const REPLAYED_MAX: u64 = 1 << 20;
/// Lives that begin within one attempt to catch up, before the connection is made anew.
const LIVES_MAX: u32 = 3;

const TARGET: &str = "remote";
/// The number that ends a replay.
const END: [u8; 8] = [0xff; 8];

/// Where the events are.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    pub(crate) events: String,
    pub(crate) replay: Option<String>,
    pub(crate) topic: String,
}

/// Asks for everything that is held.
pub(crate) struct Snapshot {
    pub(crate) op_id: u64,
}

pub(crate) struct Listener {
    pub(crate) endpoints: Endpoints,
    pub(crate) teller: Arc<Teller>,
    pub(crate) log: HostLog,
    pub(crate) order: Order,
    /// A thing that is worth one line of the log, not one for each event.
    pub(crate) has_warned: bool,
}

impl Listener {
    /// Listens until the engine ends, which drops the other end of `snapshots`.
    pub(crate) async fn run(mut self, mut snapshots: mpsc::UnboundedReceiver<Snapshot>) {
        let mut pause = RETRY_FIRST;
        let mut connections = 0_u64;
        loop {
            let began = Instant::now();
            let connected = tokio::select! {
                peer = self.connect() => peer,
                () = self.serve_snapshots(&mut snapshots) => return,
            };
            let error = match connected {
                Ok(mut peer) => {
                    if self.endpoints.replay.is_none() && connections > 0 {
                        self.reset();
                    }
                    connections += 1;
                    self.order.connected();
                    match self.hear(&mut peer, &mut snapshots).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => {
                    // Nobody listens there any more: what the server held went with it. A silence says nothing of that.
                    if is_refused(&error) {
                        self.reset();
                    }
                    error
                }
            };
            if began.elapsed() > RETRY_LAST {
                pause = RETRY_FIRST;
            }
            let endpoint = &self.endpoints.events;
            self.log.warn(TARGET, &format!("no events from {endpoint}: {error}; trying again"));
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_LAST),
                () = self.serve_snapshots(&mut snapshots) => return,
            }
        }
    }

    async fn connect(&self) -> io::Result<Peer> {
        let mut peer = Peer::connect(&self.endpoints.events, Role::Subscriber).await?;
        peer.subscribe(&self.endpoints.topic).await?;
        Ok(peer)
    }

    /// Serves snapshots while there is nothing to hear; returns when the engine ends.
    async fn serve_snapshots(&self, snapshots: &mut mpsc::UnboundedReceiver<Snapshot>) {
        while let Some(snapshot) = snapshots.recv().await {
            self.teller.snapshot(snapshot.op_id);
        }
    }

    /// Hears one connection to its end. `Ok` when the engine ends.
    async fn hear(
        &mut self,
        peer: &mut Peer,
        snapshots: &mut mpsc::UnboundedReceiver<Snapshot>,
    ) -> io::Result<()> {
        self.catch_up().await?;
        let mut quiet = QUIET;
        loop {
            tokio::select! {
                message = timeout(quiet, peer.receive()) => match message {
                    Ok(message) => {
                        quiet = QUIET;
                        self.take(&message?).await?;
                    }
                    Err(_) => {
                        // A tail that was lost is seen by nothing else. It is asked for ever more rarely.
                        self.catch_up().await?;
                        quiet = (quiet * 2).min(QUIET * 8);
                    }
                },
                snapshot = snapshots.recv() => match snapshot {
                    Some(snapshot) => self.teller.snapshot(snapshot.op_id),
                    None => return Ok(()),
                },
            }
        }
    }

    async fn take(&mut self, message: &Message) -> io::Result<()> {
        let Some((number, payload)) = numbered(message) else {
            self.warn_once("an event message without number and payload");
            return Ok(());
        };
        match self.order.live(number, digest(payload)) {
            Verdict::Apply => self.apply(payload),
            Verdict::Known => {}
            Verdict::Missing { .. } => self.fetch(number, payload).await?,
            Verdict::Anew => {
                self.reset();
                self.fetch(number, payload).await?;
            }
        }
        Ok(())
    }

    /// Gets what came before a batch, and the batch with it. Where that can't be had, all begins with this one.
    async fn fetch(&mut self, number: u64, payload: &[u8]) -> io::Result<()> {
        self.catch_up().await?;
        if self.order.is_new() {
            self.begin_at(number, payload);
        } else if self.order.replay_from() < number {
            self.reset();
            self.begin_at(number, payload);
        }
        Ok(())
    }

    fn begin_at(&mut self, number: u64, payload: &[u8]) {
        self.order.begin_at(number, digest(payload));
        self.apply(payload);
    }

    /// Asks for what came after the last batch, until the server has no more.
    async fn catch_up(&mut self) -> io::Result<()> {
        let Some(endpoint) = self.endpoints.replay.clone() else { return Ok(()) };
        for _ in 0..LIVES_MAX {
            if self.replay(&endpoint).await? {
                return Ok(());
            }
            self.reset();
        }
        Err(io::Error::other("the server's numbers make no sense"))
    }

    /// One replay; false if the server lives another life than the last batch is of.
    async fn replay(&mut self, endpoint: &str) -> io::Result<bool> {
        let mut peer = Peer::connect(endpoint, Role::Dealer).await?;
        let from = self.order.replay_from();
        peer.send(&[b"", &from.to_be_bytes()]).await?;
        let mut batches = 0;
        while batches < REPLAYED_MAX {
            let message = timeout(REPLAY_STEP, peer.receive()).await;
            let message =
                message.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no replay"))??;
            if message.len() >= 2 && message[message.len() - 2] == END {
                return Ok(self.order.replay_ended(batches));
            }
            let Some((number, payload)) = numbered(&message) else {
                return Err(io::Error::other("a replayed message without number and payload"));
            };
            batches += 1;
            match self.order.replayed(number, digest(payload)) {
                Verdict::Apply => self.apply(payload),
                Verdict::Known => {}
                Verdict::Missing { .. } | Verdict::Anew => return Ok(false),
            }
        }
        Err(io::Error::other("a replay without an end"))
    }

    fn apply(&mut self, payload: &[u8]) {
        let batch = match decode(payload) {
            Ok(batch) => batch,
            Err(error) => {
                self.warn_once(&format!("an event batch can't be read: {error}"));
                return;
            }
        };
        if batch.unknown > 0 {
            self.warn_once("the server tells events that are not known here; they are passed over");
        }
        let misshapen = self.teller.passed().misshapen;
        self.teller.apply(batch.events);
        if self.teller.passed().misshapen > misshapen {
            self.warn_once(
                "the server tells blocks of another size than it says it has; they are not indexed",
            );
        }
    }

    /// Another life of the server: nothing of what was told is so any more.
    fn reset(&mut self) {
        self.order.forget();
        if self.teller.forget() {
            self.log.warn(TARGET, "the server's cache is another one; its blocks are told anew");
        }
    }

    fn warn_once(&mut self, message: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            self.log.warn(TARGET, message);
        }
    }
}

/// Whether nobody listens there any more.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Number and payload: the last two frames, whatever stands before them.
fn numbered(message: &Message) -> Option<(u64, &[u8])> {
    let [.., number, payload] = message.as_slice() else { return None };
    let number = number.as_slice().try_into().ok()?;
    Some((u64::from_be_bytes(number), payload))
}

fn digest(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}
