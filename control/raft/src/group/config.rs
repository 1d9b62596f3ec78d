//! How a member of the replicated log is started, and what that means to openraft.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainstay_state::{Limits, VERSION_NEWEST};
use mainstay_types::NodeId;
use openraft::SnapshotPolicy;

use crate::error::GroupError;
use crate::network::Connector;

/// A snapshot of a full state over a slow link.
const SNAPSHOT_TIMEOUT_MS: u64 = 120_000;

/// The pace of a group. Failover takes about 1.7 times the longest election timeout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Between two heartbeats.
    pub heartbeat_ms: u64,
    /// The shortest silence after which a follower asks for an election.
    pub election_ms_min: u64,
    /// The longest such silence; also how long a leader's lease lasts.
    pub election_ms_max: u64,
    /// Entries between two snapshots.
    pub snapshot_entries: u64,
    /// Entries kept before a snapshot, for members that are a little behind.
    pub kept_entries: u64,
    /// Added to the wall clock in this member's stamps. Zero but in tests, where members' clocks must disagree
    /// while they share a machine's.
    pub wall_offset_ms: i64,
    /// The newest version of the cluster that this member agrees to. Lower than the newest that the program knows keeps the
    /// way back to the program before it open.
    pub version_max: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            election_ms_min: 500,
            election_ms_max: 1_000,
            snapshot_entries: 65_536,
            kept_entries: 8_192,
            wall_offset_ms: 0,
            version_max: VERSION_NEWEST,
        }
    }
}

/// The time since 1970, as a member's machine has it.
pub type WallClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How to start a member.
#[derive(Clone)]
pub struct GroupConfig {
    /// Its id, never 0, never used again for another data directory.
    pub node: NodeId,
    /// Where its log lies.
    pub data_dir: PathBuf,
    /// The limits of the state; equal on all members.
    pub limits: Limits,
    /// The pace.
    pub settings: Settings,
    /// How to reach a member.
    pub connector: Connector,
    /// What its stamps take for the time of day.
    pub wall_clock: WallClock,
    /// Where its log lies instead of `data_dir`, in a simulation.
    #[cfg(feature = "simulation")]
    pub disk: Option<crate::simulation::Disk>,
}

impl GroupConfig {
    /// A member with the usual pace, whose network is in plain text.
    pub fn new(node: NodeId, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node,
            data_dir: data_dir.into(),
            limits: Limits::standard(),
            settings: Settings::default(),
            connector: Arc::new(mainstay_proto::client::channel),
            wall_clock: Arc::new(|| {
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
            }),
            #[cfg(feature = "simulation")]
            disk: None,
        }
    }
}

pub(super) fn raft_config(settings: &Settings) -> Result<openraft::Config, GroupError> {
    let config = openraft::Config {
        cluster_name: "mainstay".into(),
        heartbeat_interval: settings.heartbeat_ms,
        election_timeout_min: settings.election_ms_min,
        election_timeout_max: settings.election_ms_max,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(settings.snapshot_entries),
        max_in_snapshot_log_to_keep: settings.kept_entries,
        // Beyond this a member gets a snapshot; less than a snapshot's distance would send them in circles.
        replication_lag_threshold: settings.snapshot_entries.saturating_mul(2),
        // Fewer, larger deletions; never so large that a small log is kept for ever.
        purge_batch_size: (settings.snapshot_entries / 8).clamp(1, 256),
        enable_pre_vote: Some(true),
        // A leader that restarts within its term would answer reads from before the restart.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    #[cfg(feature = "simulation")]
    let config = openraft::Config {
        enable_leader_restore: Some(crate::simulation::lacks(
            crate::simulation::Safeguard::FreshTerm,
        )),
        ..config
    };
    config.validate().map_err(|e| GroupError::Settings(e.to_string()))
}
