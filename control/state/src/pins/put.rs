//! Making a pin: what it may ask for, which earlier pins it takes the place of, and whether the budgets allow it.
//!
//! Budgets are counted as if the pins whose place it takes were gone already, and nothing ends before they allow
//! the new one: a refused pin leaves everything as it was. A session that has all its branches pinned is refused
//! another: ending the oldest instead would break a promise that somebody was given.

use mainstay_types::{ClusterTime, ErrorCode, LogIndex, PinId, PinRequest, PinState, SequenceHash};

use super::{BlockSet, OWNER_PINS_MAX, Pin, Pins, TenantUse, owner_key};
use crate::limits::Limits;
use crate::outcome::{Outcome, Refusal};
use crate::version::plain;
use crate::workers::{MODEL_BYTES_MAX, text_is_fine};

const PRIORITY_MAX: u8 = 100;

impl Pins {
    /// Makes a pin, or answers where the pin of an equal request stands.
    pub(crate) fn put(
        &mut self,
        index: LogIndex,
        time: ClusterTime,
        limits: &Limits,
        raised: LogIndex,
        request: &PinRequest,
    ) -> Result<Outcome, Refusal> {
        if let Some(known) = self.all.get(&request.id) {
            // One that was made in an older version was made without what that had no words for.
            let older = known.created_index < raised;
            if known.request == *request || older && known.request == plain(request) {
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
        let pin = Pin {
            request: request.clone(),
            state: PinState::Pending,
            created_ms: time.now_ms,
            expires_ms,
            created_index: index,
            changed_index: index,
            holders: Default::default(),
            ever_active: false,
            keeping: super::Keeping::begin(time.now_ms),
            reason: String::new(),
        };
        let outcome = pin.outcome();
        // A turn's prefix is its predecessor's and some more: the predecessor's blocks change hands, uncounted.
        let heir = longest(&superseded);
        self.insert_live(pin, heir.map_or(0, |(_, blocks)| blocks));
        for (id, blocks) in superseded {
            let reason = format!("superseded by {}", request.id);
            let passed_on = if heir == Some((id, blocks)) { blocks } else { 0 };
            self.end(index, id, PinState::Released, reason, passed_on);
        }
        Ok(outcome)
    }

    /// The earlier pins of the same owner that `request` covers, oldest first, and how many blocks each has; a refusal
    /// if too many others would be left.
    fn superseded_by(
        &self,
        request: &PinRequest,
        expires_ms: u64,
    ) -> Result<Vec<(PinId, usize)>, Refusal> {
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
        Ok(covered.iter().map(|pin| (pin.request.id, pin.request.blocks.len())).collect())
    }

    fn check_budgets(
        &self,
        request: &PinRequest,
        superseded: &[(PinId, usize)],
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let freed_pins = superseded.len() as u64;
        let freed_blocks: u64 = superseded.iter().map(|(_, blocks)| *blocks as u64).sum();
        let inherited = longest(superseded).map_or(0, |(_, blocks)| blocks);
        let tenant = &request.tenant;
        let unused = TenantUse::default();
        let usage = self.tenants.get(tenant).unwrap_or(&unused);
        let held = usage.blocks.len() as u64;
        let new = new_blocks(usage, &request.blocks[inherited..]);
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
            ("pinned blocks of the tenant", held, new, limits.pinned_blocks_per_tenant_max),
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
        self.check_token_budgets(request, superseded, limits)
    }

    fn check_token_budgets(
        &self,
        request: &PinRequest,
        superseded: &[(PinId, usize)],
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let more = token_bytes(request);
        let going = superseded.iter().filter_map(|(id, _)| self.all.get(id));
        let freed: u64 = going.map(|pin| token_bytes(&pin.request)).sum();
        let tenant = &request.tenant;
        let of_tenant = self.tenants.get(tenant).map_or(0, |usage| usage.token_bytes);
        for (whose, used, max) in [
            ("cluster", self.token_bytes, limits.kept_token_bytes_max),
            ("tenant", of_tenant, limits.kept_token_bytes_per_tenant_max),
        ] {
            let used = used - freed;
            if more > 0 && used + more > max {
                let left = max.saturating_sub(used);
                return Err(Refusal::new(
                    ErrorCode::ResourceExhausted,
                    format!(
                        "budget of kept token bytes of the {whose} ({tenant}): {left} of {max} left, {more} more asked for; pin without recompute, or release pins with mainstay pin rm"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The longest of the pins that end, which passes its blocks on.
fn longest(superseded: &[(PinId, usize)]) -> Option<(PinId, usize)> {
    superseded.iter().copied().max_by_key(|(_, blocks)| *blocks)
}

/// What a pin's tokens are charged with.
pub(crate) fn token_bytes(request: &PinRequest) -> u64 {
    request.tokens.as_ref().map_or(0, |tokens| u64::from(tokens.packed_bytes()))
}

/// How many different blocks these add to what the tenant's pins name. Pins whose place is taken free none: the new
/// pin names all that they did.
fn new_blocks(usage: &TenantUse, blocks: &[SequenceHash]) -> u64 {
    let mut seen = BlockSet::default();
    let is_new = |hash: &&SequenceHash| !usage.blocks.contains_key(*hash) && seen.insert(**hash);
    blocks.iter().filter(is_new).count() as u64
}

/// Whether the new pin promises all that the earlier one does.
fn covers(request: &PinRequest, expires_ms: u64, earlier: &Pin) -> bool {
    request.blocks.starts_with(&earlier.request.blocks)
        && expires_ms >= earlier.expires_ms
        && request.priority >= earlier.request.priority
        && request.copies_min >= earlier.request.copies_min
        && (request.tokens.is_some() || earlier.request.tokens.is_none())
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
    check_tokens(request, limits)
}

/// Kept tokens are those of all blocks and no others, each block with as many as any other.
fn check_tokens(request: &PinRequest, limits: &Limits) -> Result<(), Refusal> {
    let Some(tokens) = &request.tokens else { return Ok(()) };
    let invalid = |message| Err(Refusal::new(ErrorCode::InvalidArgument, message));
    let (count, blocks) = (tokens.count(), request.blocks.len());
    if count == 0 || !(count as usize).is_multiple_of(blocks) || count != request.prefix_tokens {
        let named = request.prefix_tokens;
        return invalid(format!(
            "recompute: {count} tokens are not {blocks} whole blocks of {named} tokens"
        ));
    }
    let (bytes, most) = (tokens.packed_bytes(), limits.pin_token_bytes_max);
    if !(1..=most).contains(&bytes) {
        return invalid(format!(
            "recompute: the tokens take {bytes} bytes, at most {most} are kept of one pin; pin it without recompute"
        ));
    }
    let model = text_is_fine(tokens.model(), 1, MODEL_BYTES_MAX)
        && text_is_fine(tokens.revision(), 0, MODEL_BYTES_MAX);
    if !model {
        return invalid(format!("recompute: the model must be named in {MODEL_BYTES_MAX} bytes"));
    }
    Ok(())
}
