//! What the machine answers to a command.
//!
//! A refusal is an answer like any other: the entry stays in the log, every member refuses it alike, and only
//! time has moved.

use mainstay_types::{
    Epoch, ErrorCode, EventSequence, HashKey, PinId, PinState, ResponseState, WorkerId,
};

/// The answer to one command, equal on all members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Time moved.
    Ticked,
    /// The cluster's hash key is this.
    Bootstrapped {
        /// The key.
        hash_key: HashKey,
    },
    /// The worker lives.
    Registered {
        /// Its id, the same for the same name.
        worker: WorkerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// That epoch is over, now or before.
    Fenced,
    /// A frame was looked at.
    Blocks {
        /// The sequence that the worker has to send next.
        next_sequence: EventSequence,
        /// False for a gap: nothing was applied.
        accepted: bool,
    },
    /// Streams stand where the cut says.
    Cut,
    /// Where a pin stands now.
    Pin {
        /// Which.
        id: PinId,
        /// Its state.
        state: PinState,
        /// When it ends, in cluster time.
        expires_ms: u64,
    },
    /// A worker's report on a pin was noted.
    Reported,
    /// An order to compute a pin was noted, or was there already.
    Ordered,
    /// A tenant, its quota and its keys are as they were asked to be.
    Tenant {
        /// False if they were so before.
        changed: bool,
    },
    /// A join token is there, or gone, as asked.
    JoinToken {
        /// False if it was so before.
        changed: bool,
    },
    /// The node may have its certificate.
    Joined,
    /// The cluster has this version, or a newer one.
    Raised {
        /// The version of the cluster.
        version: u8,
    },
    /// A response is kept, cancelled or forgotten, as asked.
    Response {
        /// Where it stands, or stood when it was forgotten.
        state: ResponseState,
        /// False if it was so before.
        changed: bool,
    },
    /// Nothing was done.
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
}

/// Why a command is not carried out.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { code: refusal.code, message: refusal.message }
    }
}
