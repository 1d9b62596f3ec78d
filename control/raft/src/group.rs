//! A member's handle on the replicated log: start, propose, read, watch, end.
//!
//! The leader stamps each proposal with its tenure and clocks. A new leadership serves linearizable reads only
//! after an entry of its own was applied: openraft alone would let a leader that restarted within its term
//! answer from before the restart. A fault of the disk ends the group; [`Group::ended`] says why.

mod config;
mod lead;
mod membership;
mod proposer;
mod version;
mod view;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use mainstay_proto::client::MESSAGE_BYTES_MAX;
use mainstay_proto::v1::raft_server::RaftServer;
use mainstay_state::{Machine, Outcome, VERSION_NEWEST, VERSION_OLDEST};
use mainstay_types::{Command, CutSource, LogIndex, NodeId, Stamp, Tenure};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{Instant as _, ReadPolicy, ServerState};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use config::raft_config;
pub use config::{GroupConfig, Settings, WallClock};
pub use membership::Founder;
pub use proposer::Steps;
use proposer::{Done, Proposer, Refused, Stamper};
pub use view::{GroupStatus, Leadership, MemberStatus, Role};

use crate::error::{GroupError, ProposeError};
use crate::feed::Read;
use crate::machine::{Shared, StateMachine};
use crate::network::Network;
use crate::network::identity::{Doorkeeper, Identity, Instances};
use crate::network::service::Service;
use crate::snapshot::SnapshotStore;
use crate::store::{Folder, Log, LogStore};
use crate::streams::StreamHub;
use crate::types::{Raft, TypeConfig};

/// The most members of a group.
pub const MEMBERS_MAX: usize = 32;
/// The largest encoded proposal.
pub const PROPOSAL_BYTES_MAX: usize = 8 << 20;
/// How many proposals of this member may be under way at once; more wait.
const PROPOSALS_MAX: usize = 4096;
/// How long a proposal or a linearizable read is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of proposals after which a snapshot is built, however few they are.
const SNAPSHOT_BYTES: u64 = 256 << 20;
/// How long a new leader's first quorum contact is waited for, and how often it is looked at.
const LEASE_WAIT: Duration = Duration::from_secs(2);
const LEASE_PAUSE: Duration = Duration::from_millis(10);
/// How long a task may take to notice the end.
const TASK_WAIT: Duration = Duration::from_secs(1);

/// A member of the replicated log; clones are the same member.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    node: u64,
    /// The number in the data directory.
    instance: u64,
    /// Those of all members, for the clients.
    instances: Arc<Instances>,
    boot: u64,
    started: Instant,
    version_max: u8,
    raft: Raft,
    shared: Arc<Shared>,
    proposals: Semaphore,
    leadership: watch::Receiver<Leadership>,
    recovered: watch::Receiver<bool>,
    ended: watch::Receiver<Option<String>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    proposer: Proposer,
    /// Why the cluster's version is not raised; `None` until that was looked at.
    held_back: Mutex<Option<String>>,
    store: Mutex<Option<Log>>,
}

/// What a leader stamps its commands with.
struct Clocks {
    node: u64,
    boot: u64,
    started: Instant,
    wall_offset_ms: i64,
    wall_clock: WallClock,
}

impl Clocks {
    fn stamper(self, raft: Raft) -> Stamper {
        Box::new(move || Some(self.stamp(leading_term(&raft)?)))
    }

    /// The clocks of this member, under its tenure of `term`.
    fn stamp(&self, term: u64) -> Stamp {
        let tenure = Tenure { term, node: self.node, boot: self.boot };
        let wall = (self.wall_clock)();
        let milliseconds = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let stamp = Stamp {
            tenure,
            mono_ms: milliseconds(self.started.elapsed()),
            wall_ms: milliseconds(wall).saturating_add_signed(self.wall_offset_ms),
        };
        #[cfg(feature = "simulation")]
        let stamp = crate::simulation::stamp(stamp);
        stamp
    }
}

/// The term in which the member leads.
fn leading_term(raft: &Raft) -> Option<u64> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    (metrics.state == ServerState::Leader).then_some(metrics.current_term)
}

impl Group {
    /// Opens the data directory and starts the member. A member that was never in a group waits to be
    /// initialised or added.
    ///
    /// Boxed, so that the library of consensus is compiled here and not once more where a group is started.
    pub fn start(config: GroupConfig) -> BoxFuture<'static, Result<Self, GroupError>> {
        Box::pin(Self::begin(config))
    }

    async fn begin(config: GroupConfig) -> Result<Self, GroupError> {
        let settings = raft_config(&config.settings)?;
        let node = config.node.0;
        if node == 0 {
            return Err(GroupError::Settings("a member's id must not be 0".into()));
        }
        let boot = boot_nonce()?;
        let (store, snapshots, folder) = open(&config).await?;
        // A simulated disk is never given to another member.
        let instance = folder.as_ref().map_or(node, Folder::instance);
        let snapshots = Arc::new(snapshots);
        let shared = Arc::new(Shared::new(config.limits));
        let mut machine = StateMachine::new(Arc::clone(&shared), snapshots, store.clone());
        machine.folder = folder;
        let instances = Arc::new(Instances::default());
        let network = Network {
            own: Identity { id: node, instance },
            instances: Arc::clone(&instances),
            connector: config.connector,
        };
        let raft = Raft::new(node, Arc::new(settings), network, store.clone(), machine)
            .await
            .map_err(|e| GroupError::Ended(e.to_string()))?;
        let (leadership_tx, leadership) = watch::channel(Leadership::None);
        let (recovered_tx, recovered) = watch::channel(false);
        let (ended_tx, ended) = watch::channel(None);
        let started = Instant::now();
        let clocks = Clocks {
            node,
            boot,
            started,
            wall_offset_ms: config.settings.wall_offset_ms,
            wall_clock: config.wall_clock,
        };
        let proposer = Proposer::start(raft.clone(), clocks.stamper(raft.clone()));
        let inner = Inner {
            node,
            instance,
            instances,
            boot,
            started,
            version_max: config.settings.version_max.clamp(VERSION_OLDEST, VERSION_NEWEST),
            raft,
            shared,
            proposals: Semaphore::new(PROPOSALS_MAX),
            leadership,
            recovered,
            ended,
            proposer,
            held_back: Mutex::default(),
            tasks: Mutex::default(),
            store: Mutex::new(Some(store)),
        };
        let group = Self { inner: Arc::new(inner) };
        group.supervise(leadership_tx, recovered_tx, ended_tx);
        group.elect_alone().await;
        Ok(group)
    }

    /// The service that members call on each other, to be mounted on the member's listener.
    #[must_use]
    pub fn service(&self) -> RaftServer<impl mainstay_proto::v1::raft_server::Raft + use<>> {
        let (raft, ended) = (self.inner.raft.clone(), self.ended());
        let door = Doorkeeper::new(Identity { id: self.inner.node, instance: self.instance() });
        RaftServer::new(Service { door, raft, ended })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// This member.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.inner.node)
    }

    /// The random number of this member's data directory: another directory under the same id is not this member.
    #[must_use]
    pub fn instance(&self) -> u64 {
        self.inner.instance
    }

    /// Tells this life of the member from others, in its stamps.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.inner.boot
    }

    /// Puts a command through the log and answers with its place and outcome.
    pub async fn propose(&self, command: Command) -> Result<(LogIndex, Outcome), ProposeError> {
        self.propose_timed(command).await.map(|(at, outcome, _)| (at, outcome))
    }

    /// [`Group::propose`], and when the command got how far.
    pub async fn propose_timed(
        &self,
        command: Command,
    ) -> Result<(LogIndex, Outcome, Steps), ProposeError> {
        let done = self.put_through(vec![command]).await?.into_iter().next();
        let done = done.ok_or(ProposeError::Unavailable("no answer came"))?;
        Ok((done.at, done.outcome, done.steps))
    }

    /// Puts commands through the log in their order, as one batch. When it fails, a first part of them may have
    /// been applied.
    pub async fn propose_many(
        &self,
        commands: Vec<Command>,
    ) -> Result<Vec<(LogIndex, Outcome)>, ProposeError> {
        let done = self.put_through(commands).await?;
        Ok(done.into_iter().map(|done| (done.at, done.outcome)).collect())
    }

    async fn put_through(&self, commands: Vec<Command>) -> Result<Vec<Done>, ProposeError> {
        let batch = u32::try_from(commands.len()).unwrap_or(u32::MAX);
        if commands.len() > PROPOSALS_MAX {
            return Err(ProposeError::TooLarge { bytes: commands.len(), max: PROPOSALS_MAX });
        }
        let work = async {
            // Before the permit: it may wait for the barrier of this leadership, which needs one, too.
            let commands: Arc<[Command]> = self.fit(commands).await?.into();
            let permit = self.inner.proposals.acquire_many(batch).await;
            let _permit = permit.map_err(|_| self.fatal("closed"))?;
            let until = Instant::now() + LEASE_WAIT;
            loop {
                match self.inner.proposer.write(Arc::clone(&commands)).await {
                    Err(Refused::Lease) if Instant::now() < until => {
                        tokio::time::sleep(LEASE_PAUSE).await;
                    }
                    Err(Refused::Lease) => {
                        return Err(ProposeError::Unavailable("the leader has lost its quorum"));
                    }
                    Err(Refused::NotLeading) => return Err(self.not_leading()),
                    Err(Refused::Fatal(fatal)) => return Err(self.fatal(fatal)),
                    Err(Refused::Because(error)) => return Err(error),
                    Ok(placed) => return Ok(placed),
                }
            }
        };
        tokio::time::timeout(PATIENCE, work)
            .await
            .unwrap_or(Err(ProposeError::Unavailable("no quorum answered in time")))
    }

    fn fatal(&self, error: impl ToString) -> ProposeError {
        let reason = self.inner.ended.borrow().clone();
        ProposeError::Fatal(reason.unwrap_or_else(|| error.to_string()))
    }

    /// Why a member that does not lead refuses.
    fn not_leading(&self) -> ProposeError {
        let metrics = self.inner.raft.metrics();
        let running = metrics.borrow_watched().running_state.clone();
        match running {
            Ok(()) => ProposeError::NotLeader { leader: self.leader_address() },
            Err(fatal) => self.fatal(fatal),
        }
    }

    /// How long ago this leader last moved cluster time; `None` if its tenure has yet to. What ends by cluster time
    /// may have ended since.
    #[must_use]
    pub fn stamp_age(&self) -> Option<Duration> {
        let time = self.read(Machine::time);
        let own = (self.inner.node, self.inner.boot) == (time.tenure.node, time.tenure.boot);
        own.then(|| {
            self.inner.started.elapsed().saturating_sub(Duration::from_millis(time.mono_ms))
        })
    }

    /// The term in which this member leads.
    fn leading_term(&self) -> Option<u64> {
        leading_term(&self.inner.raft)
    }

    /// Looks at the state as this member has it. The closure holds a lock: it must not wait for anything.
    pub fn read<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.inner.shared.machine.read())
    }

    /// Looks at a state that has everything acknowledged before this call, on the leader only.
    pub async fn read_linearizable<T>(
        &self,
        look: impl FnOnce(&Machine) -> T,
    ) -> Result<T, ProposeError> {
        let work = async {
            self.serving().await?;
            let until = Instant::now() + LEASE_WAIT;
            loop {
                let Err(error) = self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await
                else {
                    return Ok(());
                };
                let waits = matches!(
                    &error,
                    RaftError::APIError(
                        LinearizableReadError::QuorumNotEnough(_)
                            | LinearizableReadError::ForwardToLeader(ForwardToLeader {
                                reason: ForwardReason::LeaseExpired,
                                ..
                            })
                    )
                );
                if !waits || Instant::now() >= until {
                    return Err(self.unread(&error));
                }
                tokio::time::sleep(LEASE_PAUSE).await;
            }
        };
        tokio::time::timeout(PATIENCE, work)
            .await
            .unwrap_or(Err(ProposeError::Unavailable("no quorum answered in time")))?;
        Ok(self.read(look))
    }

    fn unread(
        &self,
        error: &RaftError<TypeConfig, LinearizableReadError<TypeConfig>>,
    ) -> ProposeError {
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
                let leader = to.leader_node.as_ref().map(|peer| peer.address.clone());
                ProposeError::NotLeader { leader }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                ProposeError::Unavailable("the leader has lost its quorum")
            }
            RaftError::Fatal(fatal) => self.fatal(fatal),
        }
    }

    /// Waits until this member serves as leader; an error at once if it does not lead.
    async fn serving(&self) -> Result<(), ProposeError> {
        if self.leading_term().is_none() {
            return Err(self.not_leading());
        }
        let mut recovered = self.inner.recovered.clone();
        let gone = || ProposeError::Unavailable("the group is ending");
        recovered.wait_for(|done| *done).await.map_err(|_| gone())?;
        let mut leadership = self.inner.leadership.clone();
        let term = self.leading_term();
        let seen = leadership
            .wait_for(|l| match l {
                Leadership::Serving { term: serving } => term.is_none_or(|t| *serving >= t),
                _ => self.leading_term() != term || term.is_none(),
            })
            .await
            .map(|l| *l)
            .map_err(|_| gone())?;
        match seen {
            Leadership::Serving { .. } => Ok(()),
            _ => Err(self.not_leading()),
        }
    }

    /// Whether this member leads and serves, and a quorum was in touch with it lately. A leader that was cut off
    /// says no within one lease.
    #[must_use]
    pub fn leads(&self) -> bool {
        let Leadership::Serving { term } = *self.inner.leadership.borrow() else { return false };
        let lease = Duration::from_millis(self.inner.raft.config().election_timeout_max);
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let alone = metrics.membership_config.voter_ids().count() <= 1;
        let in_touch = metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() < lease);
        metrics.state == ServerState::Leader && metrics.current_term == term && (alone || in_touch)
    }

    /// Follows whether this member leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// The streams of workers, as this member has them.
    #[must_use]
    pub fn streams(&self) -> &StreamHub {
        &self.inner.shared.streams
    }

    /// What a cut of now would say: the streams that moved since the last.
    #[must_use]
    pub fn cut(&self) -> Vec<CutSource> {
        self.read(|machine| self.inner.shared.streams.look(|streams| streams.cut(machine)))
    }

    /// Wakes whenever the applied index moves.
    #[must_use]
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.inner.shared.feed.watch()
    }

    /// Applied entries from `from` on, at most `max`, as far as they are still kept.
    #[must_use]
    pub fn entries(&self, from: LogIndex, max: usize) -> Read {
        self.inner.shared.feed.read(from.0, max)
    }

    /// Follows the reason why the group has ended: `None` while it goes on. A reason other than a shutdown means
    /// that the process should exit and be started again.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<Option<String>> {
        self.inner.ended.clone()
    }

    /// Where the leader is, if one is known.
    #[must_use]
    pub fn leader_address(&self) -> Option<String> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics.membership_config.get_node(&leader).map(|peer| peer.address.clone())
    }

    /// Builds a snapshot if the entries since the last are few but large. To be called now and then.
    pub async fn snapshot_if_large(&self) -> Result<(), ProposeError> {
        if self.inner.shared.bytes_since_image.load(Ordering::Relaxed) < SNAPSHOT_BYTES {
            return Ok(());
        }
        self.snapshot().await
    }

    /// Builds a snapshot now rather than when enough entries have come.
    pub async fn snapshot(&self) -> Result<(), ProposeError> {
        self.inner.raft.trigger().snapshot().await.map_err(|e| self.fatal(e))
    }

    /// Ends the member and lets go of its data directory. Others go on without it.
    pub async fn shutdown(&self) {
        // It has ended already if this fails.
        let _ = self.inner.raft.shutdown().await;
        let tasks: Vec<_> = self.inner.tasks.lock().drain(..).collect();
        for mut task in tasks {
            // They see the end by themselves; whoever does not is stopped.
            if tokio::time::timeout(TASK_WAIT, &mut task).await.is_err() {
                task.abort();
            }
        }
        let store = self.inner.store.lock().take();
        if let Some(store) = store {
            store.close().await;
        }
    }
}

/// Tells this life of the process from others.
fn boot_nonce() -> Result<u64, GroupError> {
    #[cfg(feature = "simulation")]
    if let Some(nonce) = crate::simulation::random() {
        return Ok(nonce);
    }
    getrandom::u64().map_err(|e| GroupError::Settings(format!("the system has no randomness: {e}")))
}

/// Opens the log and the images; answers which folder they are in, too.
async fn open(config: &GroupConfig) -> Result<(Log, SnapshotStore, Option<Folder>), GroupError> {
    #[cfg(feature = "simulation")]
    if let Some(disk) = &config.disk {
        return Ok((Log::in_memory(disk)?, SnapshotStore::in_memory(disk.clone()), None));
    }
    let (dir, node) = (config.data_dir.clone(), config.node.0);
    tokio::task::spawn_blocking(move || {
        let folder = Folder::claim(&dir, node)?;
        let store = LogStore::open(&folder)?;
        Ok((Log::Rocks(store), SnapshotStore::new(folder.snapshot()), Some(folder)))
    })
    .await
    .map_err(|e| GroupError::Ended(e.to_string()))?
}

#[cfg(test)]
pub(crate) mod tests;
