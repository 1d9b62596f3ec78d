//! The one place from which a leader's commands enter the log, several callers' at a time.
//!
//! What comes while two batches are under way waits and goes as one batch: one message to the log's core, one write
//! to the disk and one append to each follower for all of them. A slow quorum holds this up for [`PACE`] and no
//! longer, so that distant members add their delay once and not once for each batch. Every caller is answered for
//! its own commands; one that has given up is left out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt};
use mainstay_proto::convert::proposal_to_wire;
use mainstay_state::Outcome;
use mainstay_types::{Command, LogIndex, Proposal, Stamp};
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader};
use openraft::raft::WriteResult;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{PATIENCE, PROPOSAL_BYTES_MAX, PROPOSALS_MAX};
use crate::error::ProposeError;
use crate::types::{Answer, Body, Raft, TypeConfig};

/// Batches that may be under way before the next one waits to grow: one on its way to a quorum, one behind it.
const UNDER_WAY: usize = 2;
/// The longest that a batch waits to grow.
const PACE: Duration = Duration::from_millis(10);
/// The most callers whose commands go in one batch, and the bytes after which a batch is full.
const CALLERS_MAX: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// How far a command got, and when, as its leader saw it.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// The term that its entry is of.
    pub term: u64,
    /// It left the queue of those who ask.
    pub taken: Instant,
    /// It was committed, and the entries that it was applied with began to be.
    pub applying: Instant,
    /// They were.
    pub applied: Instant,
}

/// Where a command went and what it did.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) at: LogIndex,
    pub(super) outcome: Outcome,
    pub(super) steps: Steps,
}

/// In the order of the commands.
type Placed = Vec<Done>;
type Replies =
    futures::stream::BoxStream<'static, Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>>;

/// Why commands were not written: not yet, or not at all.
pub(super) enum Refused {
    Lease,
    NotLeading,
    Fatal(Fatal<TypeConfig>),
    Because(ProposeError),
}

struct Waiting {
    commands: Arc<[Command]>,
    answer: oneshot::Sender<Result<Placed, Refused>>,
}

/// The callers' end.
pub(super) struct Proposer {
    queue: mpsc::Sender<Waiting>,
}

/// The stamp for a batch, if this member leads.
pub(super) type Stamper = Box<dyn Fn() -> Option<Stamp> + Send>;

impl Proposer {
    pub(super) fn start(raft: Raft, stamp: Stamper) -> Self {
        // Callers hold a permit for each command, so this never fills.
        let (queue, waiting) = mpsc::channel(PROPOSALS_MAX);
        // Ends when the last handle on the group drops its sender.
        tokio::spawn(run(raft, stamp, waiting));
        Self { queue }
    }

    /// Puts commands through the log in their order, with nobody else's between them.
    pub(super) async fn write(&self, commands: Arc<[Command]>) -> Result<Placed, Refused> {
        let ending = || Refused::Because(ProposeError::Unavailable("the group is ending"));
        let (answer, answered) = oneshot::channel();
        self.queue.send(Waiting { commands, answer }).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())?
    }
}

async fn run(raft: Raft, stamp: Stamper, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::with_capacity(CALLERS_MAX);
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() >= UNDER_WAY {
            if tokio::time::timeout(PACE, under_way.next()).await.is_err() {
                break;
            }
        }
        tokio::select! {
            Some(()) = under_way.next() => continue,
            taken = queue.recv_many(&mut waiting, CALLERS_MAX) => if taken == 0 { return },
        }
        let mut rest = waiting.drain(..);
        while let Some(batch) = Batch::fill(&stamp, &mut rest) {
            let answers = batch.submit(&raft).await;
            under_way.push(answers);
        }
    }
}

/// Encoded commands and who waits for how many of them.
struct Batch {
    bodies: Vec<Body>,
    callers: Vec<(usize, oneshot::Sender<Result<Placed, Refused>>)>,
    taken: Instant,
}

impl Batch {
    /// Takes callers until the batch is full; `None` when there is nobody left to take.
    fn fill(stamp: &Stamper, waiting: &mut impl Iterator<Item = Waiting>) -> Option<Self> {
        let taken = Instant::now();
        let (mut batch, mut bytes) = (Self { bodies: Vec::new(), callers: Vec::new(), taken }, 0);
        while bytes < BATCH_BYTES
            && let Some(Waiting { commands, answer }) = waiting.next()
        {
            if answer.is_closed() {
                continue;
            }
            // Looked at for each, so that a tenure that ends meanwhile stamps nothing more.
            let Some(stamp) = stamp() else {
                // A caller that has gone needs no answer, here and below.
                let _ = answer.send(Err(Refused::NotLeading));
                continue;
            };
            match commands
                .iter()
                .map(|command| encode(stamp, command))
                .collect::<Result<Vec<_>, _>>()
            {
                Ok(bodies) => {
                    bytes += bodies.iter().map(|body| body.0.len()).sum::<usize>();
                    batch.callers.push((bodies.len(), answer));
                    batch.bodies.extend(bodies);
                }
                Err(error) => {
                    let _ = answer.send(Err(Refused::Because(error)));
                }
            }
        }
        (!batch.callers.is_empty()).then_some(batch)
    }

    /// Hands the batch to the log; what comes back answers the callers, and ends when all are answered or nobody
    /// waits any more.
    async fn submit(self, raft: &Raft) -> impl Future<Output = ()> + use<> {
        let written = raft.client_write_many(self.bodies).await;
        let (callers, taken) = (self.callers, self.taken);
        async move {
            match written {
                Ok(replies) => {
                    // Those who are left then hear that no answer came, as their own patience tells them.
                    let _ = tokio::time::timeout(PATIENCE, answer(callers, replies, taken)).await;
                }
                Err(fatal) => {
                    for (_, caller) in callers {
                        let _ = caller.send(Err(Refused::Fatal(fatal.clone())));
                    }
                }
            }
        }
    }
}

async fn answer(
    callers: Vec<(usize, oneshot::Sender<Result<Placed, Refused>>)>,
    mut replies: Replies,
    taken: Instant,
) {
    for (count, caller) in callers {
        let _ = caller.send(placed(count, &mut replies, taken).await);
    }
}

/// One caller's part of the replies. All of it is read, so that the next caller's part begins where it should.
async fn placed(count: usize, replies: &mut Replies, taken: Instant) -> Result<Placed, Refused> {
    let (mut placed, mut failed) = (Vec::with_capacity(count), None);
    for _ in 0..count {
        let reply = replies.try_next().await.map_err(Refused::Fatal)?;
        let no_answer = || ProposeError::Unavailable("some answers did not come");
        match reply.ok_or_else(|| Refused::Because(no_answer()))? {
            Ok(reply) => {
                let Answer { outcome, applying, applied } = reply.response;
                let term = reply.log_id.committed_leader_id().term;
                let steps = Steps { term, taken, applying, applied };
                let at = LogIndex(reply.log_id.index);
                match outcome {
                    Some(outcome) => placed.push(Done { at, outcome, steps }),
                    None => failed = failed.or(Some(Refused::Because(no_answer()))),
                }
            }
            Err(error) => failed = failed.or_else(|| Some(refused(&error, placed.is_empty()))),
        }
    }
    failed.map_or(Ok(placed), Err)
}

fn refused(error: &ClientWriteError<TypeConfig>, first: bool) -> Refused {
    match error {
        // Only commands of which nothing was taken may be sent again as they are.
        ClientWriteError::ForwardToLeader(ForwardToLeader {
            reason: ForwardReason::LeaseExpired,
            ..
        }) if first => Refused::Lease,
        ClientWriteError::ForwardToLeader(to) => {
            let leader = to.leader_node.as_ref().map(|peer| peer.address.clone());
            Refused::Because(ProposeError::NotLeader { leader })
        }
        _ => Refused::Because(ProposeError::Unavailable("leadership changed meanwhile")),
    }
}

fn encode(stamp: Stamp, command: &Command) -> Result<Body, ProposeError> {
    let command = command.clone();
    #[cfg(feature = "simulation")]
    let command = crate::simulation::command(command);
    let proposal = proposal_to_wire(&Proposal { stamp, command });
    let bytes = proposal.encoded_len();
    if bytes > PROPOSAL_BYTES_MAX {
        return Err(ProposeError::TooLarge { bytes, max: PROPOSAL_BYTES_MAX });
    }
    Ok(Body(Bytes::from(proposal.encode_to_vec())))
}
