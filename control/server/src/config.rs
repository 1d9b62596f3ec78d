//! How a member is started. Values come from the composition root; nothing here reads the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mainstay_identity::Identity;
use mainstay_raft::{Connector, Settings};
use mainstay_state::Limits;
use mainstay_types::{HashKey, NodeId, Region};

/// The usual time after which a silent worker's epoch is fenced.
pub const LEASE_TTL_MS: u64 = 2_000;
/// A shorter lease would fence workers for a pause that every busy machine has.
pub const LEASE_TTL_MS_MIN: u64 = 200;

/// Where a member's group comes from. A member that was in a group before resumes it, whatever this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This member alone is the group.
    Single,
    /// All of these, each started with this same list; the one with the lowest id founds the group.
    Members(Vec<(NodeId, String)>),
    /// An existing group, of which these are some members.
    Join(Vec<String>),
    /// Somebody else will add this member.
    Wait,
}

/// One member of the control plane.
#[derive(Clone)]
pub struct ControlConfig {
    /// Its id: never 0, never used again for another data directory.
    pub node_id: NodeId,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The `host:port` under which others reach it; the listener's own address if `None`.
    pub advertise: Option<String>,
    /// Where it is.
    pub region: Region,
    /// Whether it joins a group without a vote, and stays so: it serves reads and watches of its region.
    pub learner: bool,
    /// Where its log lies.
    pub data_dir: PathBuf,
    /// Where its group comes from.
    pub origin: Origin,
    /// How big the state may get; equal on all members.
    pub limits: Limits,
    /// How long a worker may be silent.
    pub lease_ttl_ms: u64,
    /// Frames of block events are entries of the log, and the index is inside the machine; equal on all members. It is
    /// exact and slow: the measure of the streams, and their oracle.
    pub plain_index: bool,
    /// The pace of the replicated log.
    pub settings: Settings,
    /// The key by which a group that this member founds names blocks; random if `None`. A group that has a key keeps it.
    pub hash_key: Option<HashKey>,
    /// How to reach other members; not asked where there is an identity.
    pub connector: Connector,
    /// Who this member is. With it all its connections are TLS and roles are checked.
    pub identity: Option<Identity>,
    /// Whether it may listen beyond loopback without an identity.
    pub insecure: bool,
}

impl ControlConfig {
    /// A member on loopback at a free port, alone in its group, in plain text.
    pub fn single(node_id: NodeId, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_id,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            region: Region::default(),
            learner: false,
            data_dir: data_dir.into(),
            origin: Origin::Single,
            limits: Limits::standard(),
            lease_ttl_ms: LEASE_TTL_MS,
            plain_index: false,
            settings: Settings::default(),
            hash_key: None,
            connector: Arc::new(mainstay_proto::client::channel),
            identity: None,
            insecure: false,
        }
    }
}
