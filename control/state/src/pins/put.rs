//! Making a pin: what it may ask for, which earlier pins it takes the place of, and whether the budgets allow it.
//!
//! Budgets are counted as if the pins whose place it takes were gone already, and nothing ends before they allow
//! the new one: a refused pin leaves everything as it was. A session that has all its branches pinned is refused
//! another: ending the oldest instead would break a promise that somebody was given.

use std::collections::{HashMap, HashSet};

use mainstay_types::{ClusterTime, ErrorCode, LogIndex, PinId, PinRequest, PinState, SequenceHash};

use super::{OWNER_PINS_MAX, Pin, Pins, TenantUse, owner_key};
use crate::limits::Limits;
use crate::outcome::{Outcome, Refusal};

const PRIORITY_MAX: u8 = 100;

impl Pins {
    /// Makes a pin, or answers where the pin of an equal request stands.
    pub(crate) fn put(
        &mut self,
        index: LogIndex,
        time: ClusterTime,
        limits: &Limits,
        request: &PinRequest,
    ) -> Result<Outcome, Refusal> {
        if let Some(known) = self.all.get(&request.id) {
            if known.request == *request {
                return Ok(known.outcome());
            }
            return Err(Refusal::new(
                ErrorCode::AlreadyExists,
                format!("pin {} exists with other contents; choose another id", request.id),
            ));
        }
        check_request(request, limits)?;
        let expires_ms = time.expiry(request.ttl_ms);
        let superseded = self.superseded_by(request, expires_ms)?;
        self.check_budgets(request, &superseded, limits)?;
        for id in superseded {
            let reason = format!("superseded by {}", request.id);
            self.end(index, id, PinState::Released, reason);
        }
        let pin = Pin {
            request: request.clone(),
            state: PinState::Pending,
            created_ms: time.now_ms,
            expires_ms,
            created_index: index,
            changed_index: index,
            holders: Default::default(),
            ever_active: false,
            reason: String::new(),
        };
        let outcome = pin.outcome();
        self.insert_live(pin);
        Ok(outcome)
    }

    /// The earlier pins of the same owner that `request` covers; a refusal if too many others would be left.
    fn superseded_by(&self, request: &PinRequest, expires_ms: u64) -> Result<Vec<PinId>, Refusal> {
        let Some(key) = owner_key(request) else { return Ok(Vec::new()) };
        let Some(pins) = self.owners.get(&key) else { return Ok(Vec::new()) };
        let earlier = pins.iter().filter_map(|(_, id)| self.all.get(id));
        let (covered, branches): (Vec<&Pin>, Vec<&Pin>) =
            earlier.partition(|pin| covers(request, expires_ms, pin));
        if branches.len() >= OWNER_PINS_MAX {
            let (_, session, _) = key;
            return Err(Refusal::new(
                ErrorCode::ResourceExhausted,
                format!(
                    "session {session} has {OWNER_PINS_MAX} live pins, the most that one may have; end one with mainstay pin rm, let one expire, or pin what continues one of them for at least as long"
                ),
            ));
        }
        Ok(covered.iter().map(|pin| pin.request.id).collect())
    }

    fn check_budgets(
        &self,
        request: &PinRequest,
        superseded: &[PinId],
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let going: Vec<&Pin> = superseded.iter().filter_map(|id| self.all.get(id)).collect();
        let freed_pins = going.len() as u64;
        let freed_blocks: u64 = going.iter().map(|pin| pin.request.blocks.len() as u64).sum();
        let tenant = &request.tenant;
        let unused = TenantUse::default();
        let usage = self.tenants.get(tenant).unwrap_or(&unused);
        let (kept, new) = tenant_blocks_after(usage, &going, &request.blocks);
        let wanted = request.blocks.len() as u64;
        for (what, used, more, max) in [
            (
                "live pins of the cluster",
                self.live_count() as u64 - freed_pins,
                1,
                u64::from(limits.pins_max),
            ),
            (
                "pinned blocks of the cluster",
                self.live_blocks - freed_blocks,
                wanted,
                limits.pinned_blocks_max,
            ),
            (
                "live pins of the tenant",
                u64::from(usage.pins) - freed_pins,
                1,
                u64::from(limits.pins_per_tenant_max),
            ),
            ("pinned blocks of the tenant", kept, new, limits.pinned_blocks_per_tenant_max),
        ] {
            if used + more > max {
                let left = max.saturating_sub(used);
                return Err(Refusal::new(
                    ErrorCode::ResourceExhausted,
                    format!(
                        "budget of {what} ({tenant}): {left} of {max} left, {more} more asked for; release pins with mainstay pin rm"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// How many different blocks the tenant's pins name without those that go, and how many `blocks` add to that.
fn tenant_blocks_after(usage: &TenantUse, going: &[&Pin], blocks: &[SequenceHash]) -> (u64, u64) {
    let mut freed: HashMap<SequenceHash, u32> = HashMap::new();
    for hash in going.iter().flat_map(|pin| &pin.request.blocks) {
        *freed.entry(*hash).or_insert(0) += 1;
    }
    let left = |hash: &SequenceHash| {
        let count = usage.blocks.get(hash).copied().unwrap_or(0);
        count.saturating_sub(freed.get(hash).copied().unwrap_or(0))
    };
    let gone = freed.keys().filter(|hash| left(hash) == 0).count();
    let mut seen = HashSet::new();
    let new = blocks.iter().filter(|hash| left(hash) == 0 && seen.insert(**hash)).count();
    ((usage.blocks.len() - gone) as u64, new as u64)
}

/// Whether the new pin promises all that the earlier one does.
fn covers(request: &PinRequest, expires_ms: u64, earlier: &Pin) -> bool {
    request.blocks.starts_with(&earlier.request.blocks)
        && expires_ms >= earlier.expires_ms
        && request.priority >= earlier.request.priority
        && request.copies_min >= earlier.request.copies_min
        && request.scope == earlier.request.scope
}

pub(super) fn check_ttl(ttl_ms: u64, limits: &Limits) -> Result<(), Refusal> {
    if (1..=limits.ttl_ms_max).contains(&ttl_ms) {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::InvalidArgument,
        format!("ttl: must be 1 to {} ms, not {ttl_ms}", limits.ttl_ms_max),
    ))
}

fn check_request(request: &PinRequest, limits: &Limits) -> Result<(), Refusal> {
    check_ttl(request.ttl_ms, limits)?;
    let invalid = |message| Err(Refusal::new(ErrorCode::InvalidArgument, message));
    let blocks = request.blocks.len();
    if !(1..=limits.pin_blocks_max as usize).contains(&blocks) {
        return invalid(format!(
            "pin: must have 1 to {} blocks, not {blocks}",
            limits.pin_blocks_max
        ));
    }
    if request.priority > PRIORITY_MAX {
        return invalid(format!("priority: must be 0 to {PRIORITY_MAX}, not {}", request.priority));
    }
    if !(1..=limits.workers_max).contains(&request.copies_min) {
        let (most, asked) = (limits.workers_max, request.copies_min);
        return invalid(format!("copies: must be 1 to {most}, not {asked}"));
    }
    Ok(())
}
