//! How long each tool takes, as its tenant's own agents have seen it.
//!
//! A pause ends when its tool does, and tools differ by five powers of ten: a file is read in
//! milliseconds, a test suite runs for an hour. So each tool of each tenant has a distribution of
//! its own, in buckets of a quarter of a doubling, which halves itself now and then and thus
//! forgets. Where a tool is new, what the tenant's tools take together stands in for it. Names come
//! from strangers: they are cut, and of a tenant and of all only so many are told apart.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::TenantSlot;

/// Buckets for each doubling.
const STEPS: u32 = 4;
/// Buckets of a sketch: the last one begins at about twelve days.
const BUCKETS: usize = 30 * STEPS as usize + 1;
/// Samples at which a sketch is halved.
const SAMPLES_MAX: u32 = 256;
/// The most tools that are told apart, of a tenant.
pub const TOOLS_PER_TENANT_MAX: usize = 256;
/// The same of all tenants.
pub const TOOLS_MAX: usize = 1 << 14;
/// The longest name that is told apart, in bytes.
pub const TOOL_NAME_BYTES_MAX: usize = 128;

/// A distribution of durations that takes a quarter of a kilobyte whatever comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch {
    buckets: [u16; BUCKETS],
    samples: u32,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], samples: 0 }
    }
}

/// Where a duration belongs: its doubling, and the quarter of it.
fn bucket_of(duration_ms: u64) -> usize {
    let Some(doubling) = duration_ms.checked_ilog2() else { return 0 };
    let rest = duration_ms - (1 << doubling);
    let step = (u128::from(rest) * u128::from(STEPS)) >> doubling;
    (1 + (doubling * STEPS) as usize + step as usize).min(BUCKETS - 1)
}

/// The first duration that lies beyond a bucket.
fn bound_ms(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let (doubling, step) = (bucket / u64::from(STEPS), bucket % u64::from(STEPS));
    let base = 1u64 << doubling;
    (base + (base * step).div_ceil(u64::from(STEPS))).max(1)
}

impl Sketch {
    /// Takes a sample.
    pub fn add(&mut self, duration_ms: u64) {
        if self.samples >= SAMPLES_MAX {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.samples = self.buckets.iter().map(|count| u32::from(*count)).sum();
        }
        self.buckets[bucket_of(duration_ms)] += 1;
        self.samples += 1;
    }

    /// How many samples count.
    #[must_use]
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// A duration that at least that share of the samples stayed below; `None` without samples.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> Option<u64> {
        let wanted = (f64::from(self.samples) * share.clamp(0.0, 1.0)).ceil() as u32;
        let mut seen = 0;
        let nonempty = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        for (bucket, count) in nonempty {
            seen += u32::from(*count);
            if seen >= wanted {
                return Some(bound_ms(bucket));
            }
        }
        None
    }

    /// How long to wait for the end of something that takes so long: the time up to which waiting longer gains more
    /// than it costs. `gain` is what it is worth to be there at the end, `cost_per_ms` what waiting costs, in one unit;
    /// 0 when it is not worth waiting at all.
    #[must_use]
    pub fn wait_ms(&self, gain: f64, cost_per_ms: f64) -> u64 {
        let (mut best, mut best_ms) = (0.0, 0);
        // Samples that ended below the bound, and what was waited for those.
        let (mut ended, mut waited_ms) = (0.0, 0.0);
        for (bucket, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (count, bound) = (f64::from(*count), bound_ms(bucket) as f64);
            ended += count;
            waited_ms += count * bound;
            let open = f64::from(self.samples) - ended;
            let worth = ended * gain - cost_per_ms * (waited_ms + open * bound);
            if worth > best {
                (best, best_ms) = (worth, bound_ms(bucket));
            }
        }
        best_ms
    }
}

/// The durations of all tenants' tools.
#[derive(Debug, Default)]
pub struct Durations {
    tools: HashMap<(u32, Box<str>), Sketch, RandomState>,
    /// All tools of a tenant together, and how many are told apart.
    tenants: HashMap<u32, (Sketch, usize), RandomState>,
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(TOOL_NAME_BYTES_MAX)]
}

impl Durations {
    /// A tool of that tenant took so long.
    pub fn add(&mut self, tenant: TenantSlot, tool: &str, duration_ms: u64) {
        if tenant.0 >= super::TENANTS_MAX {
            return;
        }
        let (all, known) = self.tenants.entry(tenant.0).or_default();
        all.add(duration_ms);
        let key = (tenant.0, Box::from(cut(tool)));
        if let Some(sketch) = self.tools.get_mut(&key) {
            sketch.add(duration_ms);
        } else if *known < TOOLS_PER_TENANT_MAX && self.tools.len() < TOOLS_MAX {
            *known += 1;
            self.tools.entry(key).or_default().add(duration_ms);
        }
    }

    /// What is known of a tool: its own durations once there are a few, else those of all of the tenant's.
    #[must_use]
    pub fn of(&self, tenant: TenantSlot, tool: &str, samples_min: u32) -> Option<&Sketch> {
        let own = self.tools.get(&(tenant.0, Box::from(cut(tool))));
        let all = self.tenants.get(&tenant.0).map(|tenant| &tenant.0);
        own.into_iter().chain(all).find(|sketch| sketch.samples() >= samples_min)
    }

    /// How many tools are told apart.
    #[must_use]
    pub fn tools(&self) -> usize {
        self.tools.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A quantile is above its sample, and by no more than a quarter (and a millisecond).
        #[test]
        fn quantiles_are_near(mut samples in prop::collection::vec(0..1u64 << 29, 1..200)) {
            let mut sketch = Sketch::default();
            samples.iter().for_each(|ms| sketch.add(*ms));
            samples.sort_unstable();
            for share in [0.01, 0.5, 0.9, 1.0] {
                let exact = samples[(samples.len() as f64 * share).ceil() as usize - 1];
                let told = sketch.quantile_ms(share).unwrap();
                prop_assert!(told > exact && told <= exact + exact / 4 + 1, "{told} {exact}");
            }
        }

        /// No duration is lost or makes a panic.
        #[test]
        fn any_duration_counts(samples in prop::collection::vec(any::<u64>(), 1..600)) {
            let mut sketch = Sketch::default();
            samples.iter().for_each(|ms| sketch.add(*ms));
            prop_assert!((1..=SAMPLES_MAX).contains(&sketch.samples()));
            prop_assert!(sketch.quantile_ms(0.5).is_some());
        }
    }

    #[test]
    fn waiting_stops_where_it_costs_more_than_it_gains() {
        let mut sketch = Sketch::default();
        // Nine in ten are back within a second, one takes an hour.
        (0..90).for_each(|_| sketch.add(900));
        (0..10).for_each(|_| sketch.add(3_600_000));
        let short = sketch.wait_ms(10_000.0, 1.0);
        assert!((900..=1_200).contains(&short), "{short}");
        // Free memory waits for all of them; dear memory for none.
        assert!(sketch.wait_ms(10_000.0, 1e-6) > 3_600_000);
        assert_eq!(sketch.wait_ms(10.0, 1.0), 0);
        assert_eq!(Sketch::default().wait_ms(1e9, 0.0), 0);
    }

    #[test]
    fn a_sketch_forgets() {
        let mut sketch = Sketch::default();
        (0..1_000).for_each(|_| sketch.add(10));
        (0..1_000).for_each(|_| sketch.add(100_000));
        assert!(sketch.quantile_ms(0.1).unwrap() > 90_000);
    }

    #[test]
    fn names_of_strangers_are_bounded() {
        let mut durations = Durations::default();
        for at in 0..TOOLS_PER_TENANT_MAX as u64 * 2 {
            durations.add(TenantSlot(1), &format!("tool{at}"), at);
        }
        durations.add(TenantSlot(2), &"ü".repeat(1_000), 5);
        durations.add(TenantSlot(u32::MAX), "any", 5);
        assert_eq!(durations.tools(), TOOLS_PER_TENANT_MAX + 1);
        assert_eq!(durations.of(TenantSlot(2), &"ü".repeat(999), 1).unwrap().samples(), 1);
        assert!(durations.of(TenantSlot(2), "new", 1).is_some(), "the tenant's tools stand in");
        assert!(durations.of(TenantSlot(2), "new", 2).is_none());
        assert!(durations.of(TenantSlot(3), "new", 1).is_none(), "no other tenant's do");
    }
}
