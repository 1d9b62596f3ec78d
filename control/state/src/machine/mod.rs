//! The machine: one log entry in, one outcome out.
//!
//! Each entry first moves time by its stamp and ends the pins whose time is over, then carries out its command.
//! So whether a pin lives at a log index never depends on who asks, or on when the member got there.

use mainstay_index::BlockIndex;
use mainstay_types::{
    ClusterTime, Command, Epoch, ErrorCode, EventFrame, EventSequence, FenceCause, HashKey,
    LogIndex, NamespaceId, PinId, Proposal, Region, ResponseId, SecretHash, SessionId, TenantId,
    WorkerId,
};

use crate::image::{self, ImageError};
use crate::join_tokens::{JoinToken, JoinTokens};
use crate::limits::Limits;
use crate::outcome::{Outcome, Refusal};
use crate::pins::{MissingCopies, Pin, Pins, matters};
use crate::responses::{Response, Responses};
use crate::tenants::{Tenant, Tenants};
use crate::version::{VERSION_NEWEST, VERSION_OLDEST, fit, workers_max};
use crate::workers::{Registration, Worker, Workers};

/// The whole replicated state.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(crate) limits: Limits,
    /// What the log may say.
    pub(crate) version: u8,
    /// The entry that raised the version last; 0 if none did.
    pub(crate) raised: LogIndex,
    pub(crate) applied: LogIndex,
    pub(crate) time: ClusterTime,
    pub(crate) hash_key: Option<HashKey>,
    pub(crate) workers: Workers,
    pub(crate) pins: Pins,
    pub(crate) tenants: Tenants,
    pub(crate) join_tokens: JoinTokens,
    pub(crate) responses: Responses,
    pub(crate) index: BlockIndex,
}

impl Machine {
    /// The state before the first entry. All members must have equal limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            version: VERSION_OLDEST,
            raised: LogIndex(0),
            applied: LogIndex(0),
            time: ClusterTime::default(),
            hash_key: None,
            workers: Workers::default(),
            pins: Pins::default(),
            tenants: Tenants::default(),
            join_tokens: JoinTokens::default(),
            responses: Responses::default(),
            index: BlockIndex::new(limits.index_blocks_max),
        }
    }

    /// Applies the entry at `index`. Indexes may be skipped (Raft has entries of its own) but never go back:
    /// an entry that was applied before is refused and changes nothing. Entries count from 1.
    pub fn apply(&mut self, index: LogIndex, proposal: &Proposal) -> Outcome {
        if index <= self.applied {
            let message = format!("log index {index} comes after {} was applied", self.applied);
            return Refusal::new(ErrorCode::FailedPrecondition, message).into();
        }
        self.applied = index;
        self.time = self.time.advance(proposal.stamp);
        self.pins.expire(index, self.time.now_ms);
        self.responses.expire(self.time.now_ms);
        match fit(self.version, &proposal.command) {
            Ok(fitted) => {
                let command = fitted.as_ref().unwrap_or(&proposal.command);
                self.run(index, command).unwrap_or_else(Outcome::from)
            }
            // No leader that follows the rules proposes it.
            Err(newer) => Refusal::new(ErrorCode::FailedPrecondition, newer.to_string()).into(),
        }
    }

    fn run(&mut self, index: LogIndex, command: &Command) -> Result<Outcome, Refusal> {
        match command {
            Command::Tick => Ok(Outcome::Ticked),
            Command::Bootstrap { hash_key } => self.bootstrap(HashKey(*hash_key)),
            Command::RaiseVersion { version } => self.raise(index, *version),
            Command::RegisterWorker { name, address, incarnation, model, blocks_total, region } => {
                let registration = Registration {
                    name,
                    address,
                    incarnation: *incarnation,
                    model,
                    blocks_total: *blocks_total,
                    region,
                };
                self.register(index, &registration)
            }
            Command::FenceWorker { worker, epoch, cause } => {
                self.fence(index, *worker, *epoch, *cause)
            }
            Command::Blocks(frame) => self.take_frame(frame),
            Command::Cut(sources) => {
                self.workers.cut(sources);
                Ok(Outcome::Cut)
            }
            Command::PutPin(request) => {
                let limits = self.limits_of(&request.tenant);
                self.pins.put(index, self.time, &limits, self.raised, request)
            }
            Command::ExtendPin { id, ttl_ms } => {
                self.pins.extend(index, self.time, &self.limits, *id, *ttl_ms)
            }
            Command::ReleasePin { id } => self.pins.release(index, *id),
            Command::ReportPin { worker, epoch, id, blocks_held } => {
                self.workers.live(*worker, *epoch)?;
                let held = (*worker, *blocks_held);
                self.pins.report(index, self.time.now_ms, &self.workers, *id, held)
            }
            Command::OrderPin { id, worker, epoch } => {
                self.workers.live(*worker, *epoch)?;
                self.pins.order(index, self.time.now_ms, *id, *worker, *epoch)
            }
            Command::PutTenant { .. }
            | Command::RemoveTenant { .. }
            | Command::PutKey { .. }
            | Command::RemoveKey { .. }
            | Command::PutJoinToken(_)
            | Command::UseJoinToken(_)
            | Command::RemoveJoinToken { .. } => self.change_access(command),
            Command::PutResponse(record) => {
                self.responses.put(index, self.time, &self.limits, record)
            }
            Command::EndResponse { tenant, id, cancelled } => {
                self.responses.end(tenant, id, *cancelled)
            }
        }
    }

    /// Commands about who may use the cluster and who may join it.
    fn change_access(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let (now_ms, limits) = (self.time.now_ms, &self.limits);
        match command {
            Command::PutTenant { name, quota } => self.tenants.put(now_ms, limits, name, *quota),
            Command::RemoveTenant { name } => {
                self.responses.remove_tenant(name);
                Ok(self.tenants.remove(name))
            }
            Command::PutKey { tenant, key, hash } => {
                self.tenants.put_key(now_ms, limits, tenant, key, *hash)
            }
            Command::RemoveKey { tenant, key } => Ok(self.tenants.remove_key(tenant, key)),
            Command::PutJoinToken(request) => self.join_tokens.put(now_ms, limits, request),
            Command::UseJoinToken(join) => self.join_tokens.take(now_ms, join),
            Command::RemoveJoinToken { id } => Ok(self.join_tokens.remove(id)),
            _ => Err(Refusal::new(ErrorCode::Internal, "the command is about something else")),
        }
    }

    /// The limits of this version, with the tenant's own pin budget in place of the general one.
    fn limits_of(&self, tenant: &TenantId) -> Limits {
        let own = self.tenants.get(tenant).and_then(|t| t.quota.pinned_blocks_max);
        let general = self.limits.pinned_blocks_per_tenant_max;
        Limits {
            workers_max: self.workers_max(),
            pinned_blocks_per_tenant_max: own.unwrap_or(general),
            ..self.limits
        }
    }

    fn workers_max(&self) -> u32 {
        workers_max(self.version, self.limits.workers_max)
    }

    /// From here on the log may say what that version knows. What an older image does not hold begins here on every
    /// member, whether it has read such an image or has applied all entries.
    fn raise(&mut self, index: LogIndex, version: u8) -> Result<Outcome, Refusal> {
        if version > VERSION_NEWEST {
            let message =
                format!("version {version} is newer than {VERSION_NEWEST}, the newest known");
            return Err(Refusal::new(ErrorCode::FailedPrecondition, message));
        }
        if version > self.version {
            self.version = version;
            self.raised = index;
            self.pins.begin_keeping(self.time.now_ms, &self.workers);
        }
        Ok(Outcome::Raised { version: self.version })
    }

    fn bootstrap(&mut self, hash_key: HashKey) -> Result<Outcome, Refusal> {
        match self.hash_key {
            Some(known) if known != hash_key => Err(Refusal::new(
                ErrorCode::AlreadyExists,
                "the cluster has its hash key already; it cannot change",
            )),
            _ => {
                self.hash_key = Some(hash_key);
                Ok(Outcome::Bootstrapped { hash_key })
            }
        }
    }

    fn register(
        &mut self,
        index: LogIndex,
        registration: &Registration<'_>,
    ) -> Result<Outcome, Refusal> {
        let regions = self.workers.live_region_count();
        let registered = self.workers.register(index, self.workers_max(), registration)?;
        if registered.fenced {
            self.drop_holdings(index, registered.worker);
        }
        self.follow_regions(index, regions);
        Ok(Outcome::Registered { worker: registered.worker, epoch: registered.epoch })
    }

    fn fence(
        &mut self,
        index: LogIndex,
        worker: WorkerId,
        epoch: Epoch,
        cause: FenceCause,
    ) -> Result<Outcome, Refusal> {
        let regions = self.workers.live_region_count();
        if self.workers.fence(index, worker, epoch, cause)? {
            self.drop_holdings(index, worker);
        }
        self.follow_regions(index, regions);
        Ok(Outcome::Fenced)
    }

    fn drop_holdings(&mut self, index: LogIndex, worker: WorkerId) {
        self.index.remove_worker(worker);
        self.pins.drop_worker(index, self.time.now_ms, &self.workers, worker);
    }

    /// Pins that want to be in two regions follow how many there are.
    fn follow_regions(&mut self, index: LogIndex, before: usize) {
        if matters(before, self.workers.live_region_count()) {
            self.pins.regions_changed(index, &self.workers);
        }
    }

    fn take_frame(&mut self, frame: &EventFrame) -> Result<Outcome, Refusal> {
        let worker = self.workers.live(frame.worker, frame.epoch)?;
        let expected = worker.next_sequence;
        if frame.sequence == expected {
            // At the end of all numbers the stream stands still rather than wrap or panic.
            worker.next_sequence = EventSequence(expected.0.saturating_add(1));
            self.index.apply_all(frame.worker, &frame.events);
            let next_sequence = EventSequence(expected.0.saturating_add(1));
            return Ok(Outcome::Blocks { next_sequence, accepted: true });
        }
        // An earlier one was applied already, so that its sender may forget it; a later one leaves a gap.
        Ok(Outcome::Blocks { next_sequence: expected, accepted: frame.sequence < expected })
    }

    /// The limits that it was made with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The version of the cluster at the last applied entry.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.version
    }

    /// How large an image is, about.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        const WORKER_BYTES: u64 = 512;
        const TENANT_BYTES: u64 = 512;
        const HELD_BYTES: u64 = 32;
        let workers = self.workers.iter().count() as u64;
        let tenants = self.tenants.iter().len() as u64;
        self.pins.image_bytes()
            + workers * WORKER_BYTES
            + tenants * TENANT_BYTES
            + self.responses.bytes()
            + self.index.held_count() * HELD_BYTES
    }

    /// Cluster time at the last applied entry.
    #[must_use]
    pub fn time(&self) -> ClusterTime {
        self.time
    }

    /// The last applied entry; 0 before the first.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The cluster's key for block hashes, once it is set.
    #[must_use]
    pub fn hash_key(&self) -> Option<HashKey> {
        self.hash_key
    }

    /// All workers that are remembered, fenced ones too, by id.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter()
    }

    /// One worker.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(id)
    }

    /// A worker's name; empty where nobody has that number.
    #[must_use]
    pub fn worker_name(&self, id: WorkerId) -> String {
        self.worker(id).map(|worker| worker.name.clone()).unwrap_or_default()
    }

    /// The worker of that name.
    #[must_use]
    pub fn worker_named(&self, name: &str) -> Option<&Worker> {
        self.workers.named(name)
    }

    /// All pins that are remembered, ended ones too, by id.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.pins.iter()
    }

    /// Live pins of one owner in a namespace, oldest first; at most [`crate::OWNER_PINS_MAX`].
    pub fn pins_of_owner(
        &self,
        tenant: &TenantId,
        owner: &SessionId,
        namespace: NamespaceId,
    ) -> impl Iterator<Item = &Pin> {
        self.pins.of_owner(tenant, owner, namespace)
    }

    /// Live pins that lack copies and could be computed again, by id.
    pub fn short_pins(&self) -> impl Iterator<Item = &Pin> {
        self.pins.short()
    }

    /// How many pins are live.
    #[must_use]
    pub fn live_pin_count(&self) -> usize {
        self.pins.live_count()
    }

    /// How many different blocks a tenant's live pins name: what its budget is charged.
    #[must_use]
    pub fn tenant_pinned_blocks(&self, tenant: &TenantId) -> u64 {
        self.pins.tenant_blocks(tenant)
    }

    /// All tenants that the log knows, by name.
    pub fn tenants(&self) -> impl ExactSizeIterator<Item = &Tenant> {
        self.tenants.iter()
    }

    /// Whether keys are asked for: since the first tenant was made, even if none is left.
    #[must_use]
    pub fn asks_for_keys(&self) -> bool {
        self.tenants.closed()
    }

    /// One tenant.
    #[must_use]
    pub fn tenant(&self, name: &TenantId) -> Option<&Tenant> {
        self.tenants.get(name)
    }

    /// Whose key hashes to that.
    #[must_use]
    pub fn tenant_by_key(&self, hash: &SecretHash) -> Option<&Tenant> {
        self.tenants.by_key(hash)
    }

    /// All join tokens that are remembered, by id.
    pub fn join_tokens(&self) -> impl ExactSizeIterator<Item = &JoinToken> {
        self.join_tokens.iter()
    }

    /// All stored responses, by tenant and id.
    pub fn responses(&self) -> impl ExactSizeIterator<Item = &Response> {
        self.responses.iter()
    }

    /// One stored response.
    #[must_use]
    pub fn response(&self, tenant: &TenantId, id: &ResponseId) -> Option<&Response> {
        self.responses.get(tenant, id)
    }

    /// The chain that ends in a response, that one first; it stops where one is gone.
    pub fn response_chain<'a>(
        &'a self,
        tenant: &TenantId,
        id: &ResponseId,
    ) -> impl Iterator<Item = &'a Response> + use<'a> {
        self.responses.chain(tenant, id)
    }

    /// What a tenant's stored responses take of its budget.
    #[must_use]
    pub fn tenant_response_bytes(&self, tenant: &TenantId) -> u64 {
        self.responses.tenant_bytes(tenant)
    }

    /// One pin.
    #[must_use]
    pub fn pin(&self, id: PinId) -> Option<&Pin> {
        self.pins.get(id)
    }

    /// Regions with live workers, by name.
    pub fn live_regions(&self) -> impl Iterator<Item = &Region> {
        self.workers.live_regions()
    }

    /// Which copies a live pin lacks, and where; nothing for one that is kept, or ended, or unknown.
    #[must_use]
    pub fn missing_copies(&self, id: PinId) -> Vec<MissingCopies> {
        let pin = self.pins.get(id).filter(|pin| pin.is_live());
        pin.map(|pin| pin.missing(&self.workers)).unwrap_or_default()
    }

    /// The block index in its plain form: what [`Command::Blocks`] put into it.
    #[must_use]
    pub fn index(&self) -> &BlockIndex {
        &self.index
    }

    /// Equal on members with equal states, of whatever program: it covers what the cluster's version knows. Blocks come in by their digest and count per worker, so that it costs
    /// the number of workers and pinned blocks and not the number of all blocks.
    #[must_use]
    pub fn digest(&self) -> u128 {
        image::digest(self)
    }

    /// The whole state as bytes, in the cluster's version; a state that was read from them gives the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        image::encode(self, self.version, image::Parts { blocks: true, tokens: true })
    }

    /// The state without the tokens that pins keep, for readers that are no members. Its digest is the same.
    #[must_use]
    pub fn encode_without_tokens(&self) -> Vec<u8> {
        image::encode(self, self.version, image::Parts { blocks: true, tokens: false })
    }

    /// The state without the block index and the tokens, for readers that fill their index from streams.
    #[must_use]
    pub fn encode_without_blocks(&self) -> Vec<u8> {
        image::encode(self, self.version, image::Parts { blocks: false, tokens: false })
    }

    /// The state without the tokens, with or without the block index, for a reader of `version`. What an older version
    /// has no words for is left out of it, so such a reader may show a pin in another state than members do.
    #[must_use]
    pub fn encode_for(&self, version: u8, blocks: bool) -> Vec<u8> {
        let version = version.clamp(VERSION_OLDEST, self.version);
        image::encode(self, version, image::Parts { blocks, tokens: false })
    }

    /// Reads what [`Machine::encode`] and its like wrote; what was left out of it is empty or withheld. Any bytes are
    /// safe to hand in.
    ///
    /// # Errors
    /// If the bytes are cut, altered, of another version, or hold more than the limits allow.
    pub fn decode(bytes: &[u8], limits: Limits) -> Result<Self, ImageError> {
        image::decode(bytes, limits)
    }
}

#[cfg(test)]
mod tests;
