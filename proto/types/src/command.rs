//! What the Raft log carries: each entry is one [`Proposal`].

use crate::{
    CutSource, Epoch, EventFrame, JoinRequest, JoinTokenRequest, KeyId, PinId, PinRequest, Quota,
    Region, ResponseId, ResponseRecord, SecretHash, Stamp, TenantId, WorkerId,
};

/// What a worker serves; equal specs may stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name clients ask for.
    pub name: String,
    /// Tells two checkpoints of one name apart.
    pub revision: String,
    /// Tokens per block.
    pub block_tokens: u32,
    /// The longest prompt plus output.
    pub context_tokens_max: u32,
}

/// Why an epoch was fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceCause {
    /// Its lease ended without a heartbeat.
    LeaseExpired,
    /// It said goodbye.
    Left,
}

/// One change of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Only moves time on.
    Tick,
    /// Sets what the cluster decides once: its hash key. Later ones are refused.
    Bootstrap {
        /// The cluster's secret.
        hash_key: [u8; 16],
    },
    /// A worker starts a life: fences its former epoch and gets a new one.
    RegisterWorker {
        /// Unique in the cluster; the same name is the same worker.
        name: String,
        /// Where gateways reach it, as `host:port`.
        address: String,
        /// Random per registration attempt, so that a retry gets the same epoch.
        incarnation: u64,
        /// What it serves.
        model: ModelSpec,
        /// How many blocks its device tier can hold.
        blocks_total: u64,
        /// Where it is.
        region: Region,
    },
    /// Ends an epoch: its blocks leave the index at this log index, everywhere.
    FenceWorker {
        /// Who.
        worker: WorkerId,
        /// Which life; a newer one is left alone.
        epoch: Epoch,
        /// Why.
        cause: FenceCause,
    },
    /// A frame of block events, where frames are entries: the plain form of the index.
    Blocks(EventFrame),
    /// What the index is at this log index: where the streams stand that moved since the last cut.
    Cut(Vec<CutSource>),
    /// Makes a pin.
    PutPin(PinRequest),
    /// Lets a pin end later; never earlier.
    ExtendPin {
        /// Which.
        id: PinId,
        /// Measured from this entry.
        ttl_ms: u64,
    },
    /// Ends a pin.
    ReleasePin {
        /// Which.
        id: PinId,
    },
    /// A worker says how many blocks of a pin its engine keeps.
    ReportPin {
        /// Who.
        worker: WorkerId,
        /// Which life.
        epoch: Epoch,
        /// Which pin.
        id: PinId,
        /// How many of the pin's blocks are held and protected.
        blocks_held: u32,
    },
    /// The keeper has a worker compute what a pin lacks.
    OrderPin {
        /// Which pin.
        id: PinId,
        /// Who.
        worker: WorkerId,
        /// Which life of it.
        epoch: Epoch,
    },
    /// Makes a tenant, or changes its quota.
    PutTenant {
        /// Which.
        name: TenantId,
        /// What it may use.
        quota: Quota,
    },
    /// Forgets a tenant and its keys; its pins go on until they end.
    RemoveTenant {
        /// Which.
        name: TenantId,
    },
    /// Gives a tenant a key.
    PutKey {
        /// Whose.
        tenant: TenantId,
        /// The key's public name, unique within the tenant.
        key: KeyId,
        /// Of the key.
        hash: SecretHash,
    },
    /// Takes a key back.
    RemoveKey {
        /// Whose.
        tenant: TenantId,
        /// Which.
        key: KeyId,
    },
    /// Makes a token by which one node may join.
    PutJoinToken(JoinTokenRequest),
    /// A node shows such a token; it is used up by that.
    UseJoinToken(JoinRequest),
    /// Takes a token back.
    RemoveJoinToken {
        /// Which.
        id: KeyId,
    },
    /// From here on the log may say what that version knows. Every member does, or it would not be proposed.
    RaiseVersion {
        /// The version of the cluster.
        version: u8,
    },
    /// Keeps a response, or the end of one that runs.
    PutResponse(ResponseRecord),
    /// Has a running response stop, or forgets a response.
    EndResponse {
        /// Whose.
        tenant: TenantId,
        /// Which.
        id: ResponseId,
        /// It shall stop and be remembered as cancelled; else it is forgotten.
        cancelled: bool,
    },
}

/// A log entry: a command and the clocks of the leader that proposed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// When.
    pub stamp: Stamp,
    /// What.
    pub command: Command,
}
