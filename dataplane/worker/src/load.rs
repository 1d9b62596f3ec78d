//! The worker's load: the engine's figures and what the worker measured itself, sampled 20 times a second.
//!
//! One sampler serves every gateway: it publishes on change, and once a second in any case, so that silence
//! means that the worker is gone. While the engine is down the load says `draining`, since nothing may be sent
//! here then.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::Stats;
use mainstay_proto::v1;
use mainstay_types::Tier;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use crate::shared::Shared;
use ages::Told;

mod ages;

/// The least time between two loads.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// How long the engine may take to answer; until then its last figures stand.
const STATS_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest silence.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Prompts with less to compute than this say more about overheads than about prefill.
const PREFILL_TOKENS_MIN: u32 = 16;
/// The weight of a new measurement.
const WEIGHT: f32 = 0.1;
/// A longer gap is a pause (preemption, a suspended machine) and no step.
const STEP_MAX: Duration = Duration::from_secs(10);

/// Moving averages of the engine's pace.
#[derive(Default)]
pub(crate) struct Meter {
    pace: Mutex<Pace>,
}

/// What was measured; 0 until then.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Pace {
    pub(crate) prefill_us_per_token: f32,
    pub(crate) decode_us_per_step: f32,
    pub(crate) host: LoadPace,
    pub(crate) disk: LoadPace,
}

/// What a token from a lower tier takes, and by how many measurements that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct LoadPace {
    pub(crate) us_per_token: f32,
    pub(crate) loads: u32,
}

fn blend(average: &mut f32, sample: f32) {
    *average = if *average == 0.0 { sample } else { *average + WEIGHT * (sample - *average) };
}

impl Meter {
    /// A prompt of which `computed` tokens were not cached took so long.
    pub(crate) fn prefilled(&self, computed: u32, prefill_us: u64) {
        if computed >= PREFILL_TOKENS_MIN && prefill_us > 0 {
            let sample = prefill_us as f32 / computed as f32;
            blend(&mut self.pace.lock().prefill_us_per_token, sample);
        }
    }

    /// One batch of outputs came, so long after those before of the same requests.
    pub(crate) fn stepped(&self, gaps: impl Iterator<Item = Duration>) {
        let (mut sum, mut count) = (Duration::ZERO, 0_u32);
        for gap in gaps.filter(|gap| *gap < STEP_MAX) {
            sum += gap;
            count += 1;
        }
        if count > 0 {
            let sample = (sum / count).as_secs_f32() * 1e6;
            blend(&mut self.pace.lock().decode_us_per_step, sample);
        }
    }

    /// So many tokens came in, the furthest of them from this tier, and took so long.
    pub(crate) fn loaded(&self, tier: Tier, tokens: u32, took: Duration) {
        let mut pace = self.pace.lock();
        let pace = match tier {
            Tier::Host => &mut pace.host,
            Tier::Disk => &mut pace.disk,
            Tier::Device | Tier::Remote => return,
        };
        if tokens > 0 && !took.is_zero() {
            blend(&mut pace.us_per_token, took.as_secs_f32() * 1e6 / tokens as f32);
            pace.loads = pace.loads.saturating_add(1);
        }
    }

    /// A new engine has a pace of its own.
    pub(crate) fn reset(&self) {
        *self.pace.lock() = Pace::default();
    }

    pub(crate) fn pace(&self) -> Pace {
        *self.pace.lock()
    }
}

/// Samples until the worker stops.
pub(crate) async fn sample(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published = Instant::now();
    let mut told = Told::default();
    loop {
        ticks.tick().await;
        ask(&shared).await;
        let load = load(&shared);
        let beat = published.elapsed() >= HEARTBEAT_INTERVAL;
        let changed = shared.load.send_if_modified(|last| {
            let differs = *last != load;
            if differs {
                *last = load;
            }
            differs || beat
        });
        if changed {
            published = Instant::now();
        }
        if beat {
            gauges(&shared);
            tell_ages(&shared, &mut told);
        }
    }
}

/// Takes the engine's figures over, if it gives any.
async fn ask(shared: &Shared) {
    let Some(life) = shared.life() else { return };
    if let Ok(Ok(answer)) = tokio::time::timeout(STATS_TIMEOUT, life.engine.stats()).await {
        let mut stats = shared.stats.lock();
        // An answer that comes after its engine has ended says nothing of the next one.
        if shared.life().is_some_and(|now| now.number == life.number) {
            *stats = answer;
        }
    }
}

/// The load of this moment, with the engine's figures of the last sample.
pub(crate) fn load(shared: &Shared) -> v1::Load {
    let pace = shared.meter.pace();
    let mut load = v1::Load {
        draining: shared.is_draining(),
        epoch: shared.epoch().0,
        prefill_us_per_token: pace.prefill_us_per_token,
        decode_us_per_step: pace.decode_us_per_step,
        has_tiers: shared.tiers().is_some_and(|tiers| tiers.local().is_some()),
        host_us_per_token: pace.host.us_per_token,
        disk_us_per_token: pace.disk.us_per_token,
        host_loads: pace.host.loads,
        disk_loads: pace.disk.loads,
        ..v1::Load::default()
    };
    let Some(life) = shared.life() else {
        load.draining = true;
        return load;
    };
    let stats = *shared.stats.lock();
    load.running = stats.running;
    load.waiting = stats.waiting;
    load.waiting_prefill_tokens = stats.waiting_prefill_tokens;
    load.blocks_total = life.info.blocks_total;
    load.blocks_used = stats.blocks_used;
    load.blocks_cached = stats.blocks_cached;
    load.blocks_pinned = stats.blocks_pinned;
    load.hit_tokens = stats.hit_tokens;
    load.query_tokens = stats.query_tokens;
    load.evictions = stats.evictions;
    load.decode_tokens = stats.decode_tokens;
    load.prefill_tokens = stats.prefill_tokens;
    load
}

fn gauges(shared: &Shared) {
    let state = shared.events.lock();
    for tier in Tier::ALL {
        let held = state.map.held(tier) as f64;
        metrics::gauge!("mainstay_worker_blocks", "tier" => tier.name()).set(held);
    }
    metrics::gauge!("mainstay_worker_pins_live").set(state.pins.len() as f64);
    metrics::gauge!("mainstay_worker_pins_in_force").set(state.pins.in_force() as f64);
    metrics::gauge!("mainstay_worker_pins_left_out").set(state.pins.left_out as f64);
    metrics::counter!("mainstay_worker_resyncs_total").absolute(state.log.resyncs);
    metrics::gauge!("mainstay_worker_ring_frames").set(state.log.ring_frames() as f64);
    drop(state);
    metrics::gauge!("mainstay_worker_requests_in_flight")
        .set(*shared.flights.count().borrow() as f64);
    engine_gauges(&shared.stats.lock(), shared.life().map_or(0, |life| life.info.blocks_total));
}

/// The engine's own figures, as it gave them last.
fn engine_gauges(stats: &Stats, blocks_total: u64) {
    metrics::gauge!("mainstay_worker_engine_running").set(f64::from(stats.running));
    metrics::gauge!("mainstay_worker_engine_waiting").set(f64::from(stats.waiting));
    metrics::gauge!("mainstay_worker_engine_blocks_capacity").set(blocks_total as f64);
    metrics::gauge!("mainstay_worker_engine_blocks_used").set(stats.blocks_used as f64);
    metrics::gauge!("mainstay_worker_engine_blocks_cached").set(stats.blocks_cached as f64);
    metrics::gauge!("mainstay_worker_engine_blocks_pinned").set(stats.blocks_pinned as f64);
    // A counter of the engine's life: one that is opened anew counts from nothing, as a restarted process does.
    metrics::counter!("mainstay_worker_engine_evictions_total").absolute(stats.evictions);
    metrics::counter!("mainstay_worker_engine_preemptions_total").absolute(stats.preemptions);
    metrics::counter!("mainstay_worker_engine_decode_tokens_total").absolute(stats.decode_tokens);
    metrics::counter!("mainstay_worker_engine_prefill_tokens_total").absolute(stats.prefill_tokens);
    metrics::counter!("mainstay_worker_engine_draft_tokens_total").absolute(stats.draft_tokens);
    metrics::counter!("mainstay_worker_engine_accepted_tokens_total")
        .absolute(stats.accepted_tokens);
}

/// The ages of the engine's blocks since they were told last.
fn tell_ages(shared: &Shared, told: &mut Told) {
    let Some(life) = shared.life() else { return };
    let ages = shared.stats.lock().ages;
    if let Some(ages) = ages {
        told.tell(life.number, &ages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_what_is_measured_and_leave_out_what_says_nothing() {
        let meter = Meter::default();
        meter.prefilled(15, 1_000_000);
        assert_eq!(meter.pace(), Pace::default(), "a short prompt says nothing");
        meter.prefilled(100, 1_000);
        assert_eq!(meter.pace().prefill_us_per_token, 10.0);
        meter.prefilled(100, 2_000);
        assert!((meter.pace().prefill_us_per_token - 11.0).abs() < 0.001);
        meter.stepped(std::iter::empty());
        meter.stepped([Duration::from_secs(60)].into_iter());
        assert_eq!(meter.pace().decode_us_per_step, 0.0, "a pause is no step");
        meter.stepped([Duration::from_millis(10), Duration::from_millis(30)].into_iter());
        assert!((meter.pace().decode_us_per_step - 20_000.0).abs() < 1.0);
    }

    #[test]
    fn each_lower_tier_has_its_own_pace() {
        let meter = Meter::default();
        meter.loaded(Tier::Disk, 0, Duration::from_secs(1));
        meter.loaded(Tier::Remote, 10, Duration::from_secs(1));
        assert_eq!(meter.pace(), Pace::default(), "nothing came, or from what is told nobody");
        meter.loaded(Tier::Disk, 100, Duration::from_millis(2));
        meter.loaded(Tier::Host, 100, Duration::from_millis(1));
        meter.loaded(Tier::Host, 100, Duration::from_millis(2));
        let pace = meter.pace();
        assert_eq!((pace.disk.loads, pace.host.loads), (1, 2));
        assert!((pace.disk.us_per_token - 20.0).abs() < 0.001);
        assert!((pace.host.us_per_token - 11.0).abs() < 0.001);
    }
}
