//! Stored responses: what was answered, for whoever continues, reads or deletes it later.
//!
//! A response holds what is new in it and names the one before, so a conversation is a chain. Putting one touches its
//! whole chain: what it continues is kept as long as itself. They are a convenience and no promise, so over a budget
//! the least recently touched ones make room, those of the tenant that uses most first; a chain never makes room for
//! its own next link, and no response goes before one that continues it. A tenant may delete any of its responses;
//! what continued it is still there to be read, but not to be continued.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use mainstay_types::{
    ClusterTime, ErrorCode, LogIndex, ResponseId, ResponseRecord, ResponseState, TenantId,
};

use crate::limits::Limits;
use crate::outcome::{Outcome, Refusal};

/// What a record costs beside its payload; it bounds how many there can be, too.
pub const RESPONSE_BYTES: u64 = 256;

/// A response as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// What was put.
    pub record: ResponseRecord,
    /// Cluster time when it was first put.
    pub created_ms: u64,
    /// Cluster time when it is forgotten.
    pub expires_ms: u64,
    /// The entry that first put it.
    pub created_index: LogIndex,
    /// The last entry that put it, or one that continues it.
    pub touched_index: LogIndex,
}

impl Response {
    fn charged(&self) -> u64 {
        charged(&self.record)
    }

    fn key(&self) -> Key {
        (self.record.tenant.clone(), self.record.id.clone())
    }

    fn age(&self) -> Age {
        (self.touched_index, Reverse(self.created_index), self.record.id.clone())
    }

    const fn outcome(&self, changed: bool) -> Outcome {
        Outcome::Response { state: self.record.state, changed }
    }
}

fn charged(record: &ResponseRecord) -> u64 {
    u64::from(record.payload.bytes()) + RESPONSE_BYTES
}

type Key = (TenantId, ResponseId);
/// The order in which a tenant's responses make room. What continues another was created later and is touched no
/// later, so it comes first.
type Age = (LogIndex, Reverse<LogIndex>, ResponseId);

/// What a tenant's responses use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TenantUse {
    bytes: u64,
    ages: BTreeSet<Age>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Responses {
    all: BTreeMap<Key, Response>,
    expiries: BTreeSet<(u64, Key)>,
    tenants: BTreeMap<TenantId, TenantUse>,
    /// Tenants by what they use.
    by_use: BTreeSet<(u64, TenantId)>,
    bytes: u64,
}

impl Responses {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Response> {
        self.all.values()
    }

    pub(crate) fn get(&self, tenant: &TenantId, id: &ResponseId) -> Option<&Response> {
        self.all.get(&(tenant.clone(), id.clone()))
    }

    /// What they take in an image, about.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn tenant_bytes(&self, tenant: &TenantId) -> u64 {
        self.tenants.get(tenant).map_or(0, |usage| usage.bytes)
    }

    /// The chain that ends in a response, that one first. It stops where one is gone.
    pub(crate) fn chain<'a>(
        &'a self,
        tenant: &TenantId,
        id: &ResponseId,
    ) -> impl Iterator<Item = &'a Response> + use<'a> {
        let first = self.get(tenant, id);
        std::iter::successors(first, |response| {
            let before = self.get(&response.record.tenant, response.record.previous.as_ref()?)?;
            // What took the place of a deleted one under its id is another conversation.
            (before.created_index < response.created_index).then_some(before)
        })
    }

    /// Forgets all whose time is over.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some((expires_ms, key)) = self.expiries.first()
            && *expires_ms <= now_ms
        {
            let key = key.clone();
            self.remove(&key);
        }
    }

    /// Keeps a response, or puts the end of a running one in its place.
    pub(crate) fn put(
        &mut self,
        index: LogIndex,
        time: ClusterTime,
        limits: &Limits,
        record: &ResponseRecord,
    ) -> Result<Outcome, Refusal> {
        let key = (record.tenant.clone(), record.id.clone());
        let known = self.all.get(&key);
        if let Some(known) = known.filter(|known| known.record == *record) {
            return Ok(known.outcome(false));
        }
        check(record, limits)?;
        let begun = known.map(|known| may_end(known, record)).transpose()?;
        let chain = self.chain_before(record, limits)?;
        let kept: BTreeSet<&ResponseId> = chain.iter().chain([&record.id]).collect();
        let freed = known.map_or(0, Response::charged);
        let leaving = self.make_room(limits, record, &kept, freed)?;
        for key in leaving.iter().chain([&key]) {
            self.remove(key);
        }
        let expires_ms = time.expiry(record.ttl_ms);
        for id in &chain {
            self.touch(&(record.tenant.clone(), id.clone()), index, expires_ms);
        }
        let (created_ms, created_index) = begun.unwrap_or((time.now_ms, index));
        let response = Response {
            record: record.clone(),
            created_ms,
            expires_ms,
            created_index,
            touched_index: index,
        };
        let outcome = response.outcome(true);
        self.insert(response);
        Ok(outcome)
    }

    /// Forgets all that a tenant had.
    pub(crate) fn remove_tenant(&mut self, tenant: &TenantId) {
        let ids: Vec<ResponseId> = match self.tenants.get(tenant) {
            Some(usage) => usage.ages.iter().map(|(_, _, id)| id.clone()).collect(),
            None => return,
        };
        for id in ids {
            self.remove(&(tenant.clone(), id));
        }
    }

    /// Cancels a running response, or forgets any.
    pub(crate) fn end(
        &mut self,
        tenant: &TenantId,
        id: &ResponseId,
        cancelled: bool,
    ) -> Result<Outcome, Refusal> {
        let key = (tenant.clone(), id.clone());
        let unknown = || Refusal::new(ErrorCode::NotFound, format!("no response {id}"));
        let known = self.all.get_mut(&key).ok_or_else(unknown)?;
        if !cancelled {
            let outcome = known.outcome(true);
            self.remove(&key);
            return Ok(outcome);
        }
        match known.record.state {
            ResponseState::Cancelled => Ok(known.outcome(false)),
            ResponseState::Running => {
                known.record.state = ResponseState::Cancelled;
                Ok(known.outcome(true))
            }
            ResponseState::Ended => Err(Refusal::new(
                ErrorCode::FailedPrecondition,
                format!("response {id} has ended already; only a running one can be cancelled"),
            )),
        }
    }

    /// The ids of all that a new response continues, the nearest first.
    fn chain_before(
        &self,
        record: &ResponseRecord,
        limits: &Limits,
    ) -> Result<Vec<ResponseId>, Refusal> {
        let Some(previous) = &record.previous else { return Ok(Vec::new()) };
        let most = limits.response_chain_max as usize;
        let chain: Vec<&Response> = self.chain(&record.tenant, previous).take(most).collect();
        let whole = chain.last().is_some_and(|root| root.record.previous.is_none());
        if chain.len() >= most {
            return Err(Refusal::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "a chain has at most {most} responses; put the whole conversation as a new one"
                ),
            ));
        }
        if !whole || chain.iter().any(|response| response.record.id == record.id) {
            return Err(Refusal::new(
                ErrorCode::NotFound,
                format!("response {previous}, or one that it continues, is not kept any more"),
            ));
        }
        if chain[0].record.state != ResponseState::Ended {
            return Err(Refusal::new(
                ErrorCode::FailedPrecondition,
                format!("response {previous} has not ended; only one that has can be continued"),
            ));
        }
        Ok(chain.into_iter().map(|response| response.record.id.clone()).collect())
    }

    /// Which responses have to go so that `record` fits in place of what took `freed`; a refusal if that is not enough.
    /// Nothing changes yet: a refused response leaves everything as it was.
    fn make_room(
        &self,
        limits: &Limits,
        record: &ResponseRecord,
        kept: &BTreeSet<&ResponseId>,
        freed: u64,
    ) -> Result<Vec<Key>, Refusal> {
        let mut leaving = Vec::new();
        let wanted = charged(record);
        let over = |used: u64, limit: u64| (used - freed + wanted).saturating_sub(limit);
        let own = over(self.tenant_bytes(&record.tenant), limits.response_bytes_per_tenant_max);
        let own_gone = self.oldest(&record.tenant, own, kept, &mut leaving);
        let mut gone = own_gone;
        if gone < own {
            let limit = limits.response_bytes_per_tenant_max;
            return Err(full("of the tenant", limit));
        }
        let all = over(self.bytes, limits.response_bytes_max);
        for (_, tenant) in self.by_use.iter().rev() {
            if gone >= all {
                break;
            }
            // Its oldest may be among the leaving already; then they are counted once, from the start.
            let before = if *tenant == record.tenant { own_gone } else { 0 };
            if *tenant == record.tenant {
                leaving.retain(|(owner, _)| owner != tenant);
            }
            let nobody = BTreeSet::new();
            let kept = if *tenant == record.tenant { kept } else { &nobody };
            let more = self.oldest(tenant, all - gone + before, kept, &mut leaving);
            gone = gone - before + more;
        }
        if gone < all {
            return Err(full("of the cluster", limits.response_bytes_max));
        }
        Ok(leaving)
    }

    /// Adds a tenant's oldest responses until they take `bytes`; answers what they take.
    fn oldest(
        &self,
        tenant: &TenantId,
        bytes: u64,
        kept: &BTreeSet<&ResponseId>,
        leaving: &mut Vec<Key>,
    ) -> u64 {
        let mut gone = 0;
        let Some(usage) = self.tenants.get(tenant) else { return gone };
        for (_, _, id) in &usage.ages {
            if gone >= bytes {
                break;
            }
            let key = (tenant.clone(), id.clone());
            if let Some(response) = self.all.get(&key).filter(|_| !kept.contains(id)) {
                gone += response.charged();
                leaving.push(key);
            }
        }
        gone
    }

    fn touch(&mut self, key: &Key, index: LogIndex, expires_ms: u64) {
        let Some(response) = self.all.get_mut(key) else { return };
        let Some(usage) = self.tenants.get_mut(&key.0) else { return };
        usage.ages.remove(&response.age());
        response.touched_index = index;
        usage.ages.insert(response.age());
        if expires_ms > response.expires_ms {
            self.expiries.remove(&(response.expires_ms, key.clone()));
            response.expires_ms = expires_ms;
            self.expiries.insert((expires_ms, key.clone()));
        }
    }

    fn insert(&mut self, response: Response) {
        let key = response.key();
        self.expiries.insert((response.expires_ms, key.clone()));
        let usage = self.tenants.entry(key.0.clone()).or_default();
        usage.ages.insert(response.age());
        self.bytes += response.charged();
        let was = usage.bytes;
        usage.bytes += response.charged();
        self.by_use.remove(&(was, key.0.clone()));
        self.by_use.insert((usage.bytes, key.0.clone()));
        self.all.insert(key, response);
    }

    fn remove(&mut self, key: &Key) {
        let Some(response) = self.all.remove(key) else { return };
        self.expiries.remove(&(response.expires_ms, key.clone()));
        self.bytes -= response.charged();
        let Some(usage) = self.tenants.get_mut(&key.0) else { return };
        usage.ages.remove(&response.age());
        self.by_use.remove(&(usage.bytes, key.0.clone()));
        usage.bytes -= response.charged();
        if usage.ages.is_empty() {
            self.tenants.remove(&key.0);
        } else {
            self.by_use.insert((usage.bytes, key.0.clone()));
        }
    }

    /// Takes back the payload that an image named only; false if it is not that one.
    pub(crate) fn restore_payload(
        &mut self,
        tenant: &TenantId,
        id: &ResponseId,
        held: &[u8],
    ) -> bool {
        let response = self.all.get_mut(&(tenant.clone(), id.clone()));
        response.is_some_and(|response| response.record.payload.restore(held))
    }

    /// Rebuilds everything from an image's responses; `None` if one is there twice.
    pub(crate) fn restore(responses: Vec<Response>) -> Option<Self> {
        let mut all = Self::default();
        for response in responses {
            if all.all.contains_key(&response.key()) {
                return None;
            }
            all.insert(response);
        }
        Some(all)
    }
}

fn full(whose: &str, limit: u64) -> Refusal {
    Refusal::new(
        ErrorCode::ResourceExhausted,
        format!("the conversation takes more than all responses {whose} may, {limit} bytes"),
    )
}

pub(crate) fn check(record: &ResponseRecord, limits: &Limits) -> Result<(), Refusal> {
    let invalid = |text: String| Err(Refusal::new(ErrorCode::InvalidArgument, text));
    let bytes = u64::from(record.payload.bytes());
    if bytes == 0 || bytes > u64::from(limits.response_payload_bytes_max) {
        let most = limits.response_payload_bytes_max;
        return invalid(format!("a response of {bytes} bytes; one may have 1 to {most}"));
    }
    if record.ttl_ms == 0 || record.ttl_ms > limits.ttl_ms_max {
        let most = limits.ttl_ms_max;
        return invalid(format!("a TTL of {} ms; it may be 1 to {most}", record.ttl_ms));
    }
    if record.state == ResponseState::Cancelled {
        return invalid("a response is not put as cancelled; cancel a running one".to_owned());
    }
    Ok(())
}

/// Whether `record` may take the place of what is known under its id; when that was first put.
fn may_end(known: &Response, record: &ResponseRecord) -> Result<(u64, LogIndex), Refusal> {
    // What it continued may have been forgotten meanwhile; then its end stands alone.
    let continues = known.record.previous == record.previous || record.previous.is_none();
    let ends = record.state == ResponseState::Ended && continues;
    match known.record.state {
        ResponseState::Running if ends => Ok((known.created_ms, known.created_index)),
        ResponseState::Cancelled if ends => Err(Refusal::new(
            ErrorCode::FailedPrecondition,
            format!("response {} was cancelled", record.id),
        )),
        _ => Err(Refusal::new(
            ErrorCode::AlreadyExists,
            format!("response {} exists with other contents; choose another id", record.id),
        )),
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
