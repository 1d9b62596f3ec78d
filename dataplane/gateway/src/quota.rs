//! Quotas of tenants, as this gateway keeps them: requests in flight, requests and tokens a minute.
//!
//! Each gateway counts for itself, so a tenant that goes through N of them may have N times its rates; asking others
//! at each request would cost more than it is worth. Rates are [`TokenBucket`]s: a minute's worth may come at once.
//! The tokens of an answer are known only afterwards; they make a debt that later requests wait for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use mainstay_chat::{ApiError, ErrorKind};
use mainstay_types::{Quota, TenantId};
use parking_lot::Mutex;

/// One unit of a bucket in the parts that a rate of one a minute adds in a millisecond.
const PARTS: i128 = 60_000;
/// The longest that anybody is told to wait before asking again.
const WAIT_MS_MAX: u64 = 60_000;

/// A rate a minute with a burst of one minute: a pure function of the times it is asked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    per_minute: u64,
    /// What may be taken, in [`PARTS`]; below zero it is a debt.
    level: i128,
    at_ms: u64,
}

impl TokenBucket {
    /// A full one.
    pub(crate) fn new(per_minute: u64, now_ms: u64) -> Self {
        Self { per_minute, level: i128::from(per_minute) * PARTS, at_ms: now_ms }
    }

    /// Goes on with another rate; what was taken stays taken.
    pub(crate) fn set_rate(&mut self, now_ms: u64, per_minute: u64) {
        if per_minute != self.per_minute {
            self.refill(now_ms);
            let taken = i128::from(self.per_minute) * PARTS - self.level;
            self.per_minute = per_minute;
            self.level = i128::from(per_minute) * PARTS - taken;
        }
    }

    fn refill(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        let full = i128::from(self.per_minute) * PARTS;
        let gained = i128::from(passed_ms).saturating_mul(i128::from(self.per_minute));
        self.level = self.level.saturating_add(gained).min(full);
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// Takes `amount`, or says after how many milliseconds it may be asked for again. More than a minute's worth is
    /// let through when the bucket is full, and leaves a debt: it could never pass otherwise.
    pub(crate) fn take(&mut self, now_ms: u64, amount: u64) -> Result<(), u64> {
        self.refill(now_ms);
        if self.per_minute == 0 {
            return Err(WAIT_MS_MAX);
        }
        let needed = i128::from(amount.min(self.per_minute)) * PARTS;
        if self.level < needed {
            let wait_ms =
                (needed - self.level).unsigned_abs().div_ceil(u128::from(self.per_minute));
            return Err(u64::try_from(wait_ms).unwrap_or(WAIT_MS_MAX).min(WAIT_MS_MAX));
        }
        self.level -= i128::from(amount) * PARTS;
        Ok(())
    }

    /// Takes `amount` whether it is there or not.
    pub(crate) fn charge(&mut self, now_ms: u64, amount: u64) {
        self.refill(now_ms);
        self.level = self.level.saturating_sub(i128::from(amount) * PARTS);
    }
}

/// What all tenants with quotas use now.
#[derive(Clone)]
pub(crate) struct Quotas {
    started: Instant,
    meters: Arc<Mutex<HashMap<TenantId, Arc<Meter>>>>,
}

#[derive(Default)]
struct Meter {
    in_flight: AtomicU32,
    rates: Mutex<Rates>,
}

#[derive(Default)]
struct Rates {
    requests: Option<TokenBucket>,
    tokens: Option<TokenBucket>,
}

fn set(bucket: &mut Option<TokenBucket>, now_ms: u64, per_minute: Option<u64>) {
    match (bucket.as_mut(), per_minute) {
        (_, None) => *bucket = None,
        (None, Some(rate)) => *bucket = Some(TokenBucket::new(rate, now_ms)),
        (Some(bucket), Some(rate)) => bucket.set_rate(now_ms, rate),
    }
}

impl Quotas {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), meters: Arc::default() }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Counts a request of a tenant in, if its quota allows one more. `known` tells tenants that still exist: there
    /// are never more meters than those.
    pub(crate) fn admit(
        &self,
        tenant: &TenantId,
        quota: Quota,
        known: impl Fn(&TenantId) -> bool,
    ) -> Result<Spending, ApiError> {
        let meter = {
            let mut meters = self.meters.lock();
            if !meters.contains_key(tenant) {
                meters.retain(|tenant, _| known(tenant));
            }
            Arc::clone(meters.entry(tenant.clone()).or_default())
        };
        let now_ms = self.now_ms();
        let slot = Slot::take(&meter, quota.in_flight_max).map_err(|most| {
            let text =
                format!("tenant {tenant} has {most} requests in flight, the most it may have");
            refused(&text, 1_000)
        })?;
        let mut rates = meter.rates.lock();
        set(&mut rates.requests, now_ms, quota.requests_per_minute.map(u64::from));
        set(&mut rates.tokens, now_ms, quota.tokens_per_minute);
        if let Some(Err(wait_ms)) = rates.requests.as_mut().map(|rate| rate.take(now_ms, 1)) {
            let most = quota.requests_per_minute.unwrap_or_default();
            let text = format!("tenant {tenant} may send {most} requests a minute");
            return Err(refused(&text, wait_ms));
        }
        drop(rates);
        Ok(Spending { quotas: self.clone(), tenant: tenant.clone(), slot: Some(slot) })
    }
}

fn refused(text: &str, wait_ms: u64) -> ApiError {
    let seconds = u32::try_from(wait_ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
    let text = format!("{text}; try again in {seconds} s");
    metrics::counter!("mainstay_gateway_quota_refusals_total").increment(1);
    ApiError::new(ErrorKind::RateLimited, text).with_retry_after_s(seconds)
}

/// A place among a tenant's requests in flight, until it is dropped.
struct Slot(Arc<Meter>);

impl Slot {
    fn take(meter: &Arc<Meter>, most: Option<u32>) -> Result<Self, u32> {
        let most = most.unwrap_or(u32::MAX);
        let more = |count: u32| (count < most).then(|| count.saturating_add(1));
        let taken = meter.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.map(|_| Self(Arc::clone(meter))).map_err(|_| most)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What one request uses of its tenant's quota; a place in flight until it is dropped.
pub(crate) struct Spending {
    quotas: Quotas,
    tenant: TenantId,
    /// `None` where the tenant has no quota.
    slot: Option<Slot>,
}

impl Spending {
    /// Of a tenant without a quota.
    pub(crate) fn free(quotas: &Quotas, tenant: &TenantId) -> Self {
        Self { quotas: quotas.clone(), tenant: tenant.clone(), slot: None }
    }

    /// Takes the tokens of a prompt, if there are as many left.
    pub(crate) fn prompt(&self, tokens: u64) -> Result<(), ApiError> {
        let Some(Slot(meter)) = &self.slot else { return Ok(()) };
        let now_ms = self.quotas.now_ms();
        let mut rates = meter.rates.lock();
        let Some(bucket) = &mut rates.tokens else { return Ok(()) };
        let most = bucket.per_minute;
        bucket.take(now_ms, tokens).map_err(|wait_ms| {
            let tenant = &self.tenant;
            refused(&format!("tenant {tenant} may use {most} tokens a minute"), wait_ms)
        })
    }

    /// Takes tokens of an answer.
    pub(crate) fn answer(&self, tokens: u64) {
        let Some(Slot(meter)) = &self.slot else { return };
        if let Some(bucket) = &mut meter.rates.lock().tokens {
            bucket.charge(self.quotas.now_ms(), tokens);
        }
    }
}

#[cfg(test)]
mod tests;
