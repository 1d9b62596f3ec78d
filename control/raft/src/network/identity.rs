//! Which data directory stands behind each member's id, and what messages say about it.
//!
//! A message names the directory it comes from and the one it is meant for. A voter that lost its disk and came
//! back under its old id has forgotten what it voted for and what it held, so its peers refuse what it says, and
//! it refuses what they say: it counts for no quorum, in neither direction. Where one side does not know the
//! other's number yet, which is 0, the id alone counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::error::MemberError;
use crate::types::{Peer, Raft};

/// The metadata key that names the member a request is meant for.
const TARGET: &str = "mainstay-member";
const TARGET_INSTANCE: &str = "mainstay-member-instance";
const SENDER: &str = "mainstay-sender";
const SENDER_INSTANCE: &str = "mainstay-sender-instance";

/// The instances of the group's members as this member last heard of them. Clients outlive changes of the
/// membership, so they look here for each request.
#[derive(Default)]
pub(crate) struct Instances(RwLock<BTreeMap<u64, u64>>);

impl Instances {
    pub(crate) fn note<'a>(&self, peers: impl Iterator<Item = (&'a u64, &'a Peer)>) {
        *self.0.write() = peers.map(|(id, peer)| (*id, peer.instance)).collect();
    }

    pub(crate) fn of(&self, id: u64) -> Option<u64> {
        self.0.read().get(&id).copied()
    }
}

/// Whether two numbers can stand for the same directory.
pub(crate) fn same(one: u64, other: u64) -> bool {
    one == other || one == 0 || other == 0
}

/// A member and its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    pub(crate) instance: u64,
}

/// Writes on a request who sends it to whom.
pub(crate) fn address<T>(request: &mut Request<T>, from: Identity, to: Identity) {
    let metadata = request.metadata_mut();
    for (key, value) in [
        (TARGET, to.id),
        (TARGET_INSTANCE, to.instance),
        (SENDER, from.id),
        (SENDER_INSTANCE, from.instance),
    ] {
        metadata.insert(key, value.into());
    }
}

fn number(metadata: &MetadataMap, key: &str) -> Option<u64> {
    metadata.get(key)?.to_str().ok()?.parse().ok()
}

/// What a member checks on every request before it looks at its contents.
pub(crate) struct Doorkeeper {
    pub(crate) own: Identity,
    /// The cure was logged; once is enough.
    pub(crate) told: AtomicBool,
}

impl Doorkeeper {
    pub(crate) fn new(own: Identity) -> Self {
        Self { own, told: AtomicBool::new(false) }
    }

    /// Refuses what is meant for somebody else, or comes from a directory that is not its member's.
    pub(crate) async fn admit(&self, metadata: &MetadataMap, raft: &Raft) -> Result<(), Status> {
        let target = number(metadata, TARGET);
        if target != Some(self.own.id) {
            return Err(Status::failed_precondition(format!(
                "this is member {}, the message is for {}",
                self.own.id,
                target.map_or_else(|| "nobody".to_owned(), |id| id.to_string())
            )));
        }
        if !same(number(metadata, TARGET_INSTANCE).unwrap_or(0), self.own.instance) {
            return Err(self.refuse(self.own.id));
        }
        let (Some(sender), instance) =
            (number(metadata, SENDER), number(metadata, SENDER_INSTANCE).unwrap_or(0))
        else {
            return Ok(());
        };
        // Asked of openraft itself: what it reports to others may lag behind what it acts on.
        let known = raft.with_raft_state(move |state| {
            let membership = state.membership_state.effective();
            membership.get_node(&sender).map_or(0, |peer| peer.instance)
        });
        let known = known
            .await
            .map_err(|e| Status::unavailable(format!("the replicated log has ended: {e}")))?;
        if same(known, instance) { Ok(()) } else { Err(self.refuse(sender)) }
    }

    fn refuse(&self, id: u64) -> Status {
        let error = MemberError::OtherInstance { id };
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(member = self.own.id, "{error}");
        }
        Status::failed_precondition(error.to_string())
    }
}
