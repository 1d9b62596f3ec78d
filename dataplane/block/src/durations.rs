//! How long each tool takes, as its tenant's own agents have seen it.
//!
//! A pause ends when its tool does, and tools differ by five powers of ten: a file is read in
//! milliseconds, a test suite runs for an hour. So each tool of each tenant has a distribution of
//! its own, in buckets of a quarter of a doubling, which halves itself now and then and thus
//! forgets; a pause that nobody came back from counts as one without an end. Where a tool is new,
//! what the tenant's tools take together stands in for it. Names come from strangers: they are cut,
//! and only so many are told apart. Past that the one not seen for longest is forgotten, of the
//! tenant that has most, so that a flood of names costs its own tenant only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

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
    /// Those that never ended.
    endless: u16,
    samples: u32,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], endless: 0, samples: 0 }
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

/// The first duration that lies in it.
fn begin_ms(bucket: usize) -> u64 {
    bucket.checked_sub(1).map_or(0, bound_ms)
}

impl Sketch {
    /// Takes a sample.
    pub fn add(&mut self, duration_ms: u64) {
        self.forget();
        self.buckets[bucket_of(duration_ms)] += 1;
        self.samples += 1;
    }

    /// Takes one that never ended.
    pub fn add_endless(&mut self) {
        self.forget();
        self.endless += 1;
        self.samples += 1;
    }

    fn forget(&mut self) {
        if self.samples >= SAMPLES_MAX {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.endless /= 2;
            let ended: u32 = self.buckets.iter().map(|count| u32::from(*count)).sum();
            self.samples = ended + u32::from(self.endless);
        }
    }

    /// How many samples count.
    #[must_use]
    pub fn samples(&self) -> u32 {
        self.samples
    }

    fn occupied(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let counts = self.buckets.iter().enumerate();
        counts.filter(|(_, count)| **count > 0).map(|(bucket, count)| (bucket, u32::from(*count)))
    }

    /// A duration that at least that share of the samples stayed below; `None` where fewer have ended.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> Option<u64> {
        let wanted = (f64::from(self.samples) * share.clamp(0.0, 1.0)).ceil() as u32;
        let mut seen = 0;
        for (bucket, count) in self.occupied() {
            seen += count;
            if seen >= wanted {
                return Some(bound_ms(bucket));
            }
        }
        None
    }

    /// The share of the samples that are known to have ended within that time.
    #[must_use]
    pub fn share_within(&self, time_ms: u64) -> f64 {
        let within = self.occupied().filter(|(bucket, _)| bound_ms(*bucket) <= time_ms);
        let within: u32 = within.map(|(_, count)| count).sum();
        f64::from(within) / f64::from(self.samples.max(1))
    }

    /// A duration that at most that share of those samples stayed below which ended after `after_ms`; `None` where none
    /// did. So what has to be done before an end is done in time for all others.
    #[must_use]
    pub fn earliest_ms(&self, after_ms: u64, share: f64) -> Option<u64> {
        let late = || self.occupied().filter(|(bucket, _)| begin_ms(*bucket) >= after_ms);
        let all: u32 = late().map(|(_, count)| count).sum();
        let missed_max = f64::from(all) * share.clamp(0.0, 1.0);
        let mut seen = 0;
        for (bucket, count) in late() {
            seen += count;
            if f64::from(seen) > missed_max || seen == all {
                return Some(begin_ms(bucket));
            }
        }
        None
    }

    /// How long to wait for the end of something that takes so long: the time up to which waiting longer gains more
    /// than it costs, from `free_ms` on; up to there nothing has to be done, and nothing is gained. `gain` is what it is
    /// worth to be there at the end, `cost_per_ms` what waiting costs, in one unit; 0 when it is not worth waiting at
    /// all.
    #[must_use]
    pub fn wait_ms(&self, gain: f64, cost_per_ms: f64, free_ms: u64) -> u64 {
        let free = free_ms as f64;
        let (mut best, mut best_ms) = (0.0, 0);
        // Samples that ended below the bound but not for nothing, what was waited for those, and all so far.
        let (mut ended, mut waited_ms, mut seen) = (0.0, 0.0, 0.0);
        for (bucket, count) in self.occupied() {
            let (count, bound) = (f64::from(count), bound_ms(bucket) as f64);
            seen += count;
            if bound <= free {
                continue;
            }
            ended += count;
            waited_ms += count * (bound - free);
            let open = f64::from(self.samples) - seen;
            let worth = ended * gain - cost_per_ms * (waited_ms + open * (bound - free));
            if worth > best {
                (best, best_ms) = (worth, bound_ms(bucket));
            }
        }
        best_ms
    }
}

#[derive(Debug, Default)]
struct Tool {
    sketch: Sketch,
    seen: u64,
}

#[derive(Debug, Default)]
struct Tools {
    /// All of the tenant's together.
    all: Sketch,
    tools: HashMap<Arc<str>, Tool, RandomState>,
    /// By when they were seen last.
    order: BTreeMap<u64, Arc<str>>,
}

impl Tools {
    /// Forgets the one not seen for longest.
    fn forget_one(&mut self) {
        if let Some((_, name)) = self.order.pop_first() {
            self.tools.remove(&name);
        }
    }
}

/// The durations of all tenants' tools.
#[derive(Debug, Default)]
pub struct Durations {
    tenants: HashMap<u32, Tools, RandomState>,
    /// Tenants by the number of their tools.
    sizes: BTreeSet<(usize, u32)>,
    tools: usize,
    clock: u64,
}

/// What of a name is told apart.
pub(crate) fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(TOOL_NAME_BYTES_MAX)]
}

impl Durations {
    /// A tool of that tenant took so long.
    pub fn add(&mut self, tenant: TenantSlot, tool: &str, duration_ms: u64) {
        self.learn(tenant, tool, |sketch| sketch.add(duration_ms));
    }

    /// Nobody came back from a tool of that tenant.
    pub fn add_endless(&mut self, tenant: TenantSlot, tool: &str) {
        self.learn(tenant, tool, Sketch::add_endless);
    }

    fn learn(&mut self, tenant: TenantSlot, tool: &str, sample: impl Fn(&mut Sketch)) {
        if tenant.0 >= super::TENANTS_MAX {
            return;
        }
        let (name, is_new) = {
            let own = self.tenants.entry(tenant.0).or_default();
            sample(&mut own.all);
            let known = own.tools.get_key_value(cut(tool)).map(|(name, _)| Arc::clone(name));
            let is_new = known.is_none();
            (known.unwrap_or_else(|| Arc::from(cut(tool))), is_new)
        };
        if is_new {
            self.make_room(tenant.0);
            self.resize(tenant.0, 1);
        }
        self.clock += 1;
        let Some(own) = self.tenants.get_mut(&tenant.0) else { return };
        let tool = own.tools.entry(Arc::clone(&name)).or_default();
        own.order.remove(&tool.seen);
        tool.seen = self.clock;
        own.order.insert(self.clock, name);
        sample(&mut tool.sketch);
    }

    /// Room for one more tool of that tenant.
    fn make_room(&mut self, tenant: u32) {
        let own = self.tenants.get(&tenant).map_or(0, |own| own.tools.len());
        let from = if own >= TOOLS_PER_TENANT_MAX {
            tenant
        } else if self.tools < TOOLS_MAX {
            return;
        } else {
            let most = self.sizes.last().copied().unwrap_or((own, tenant));
            if most.0 == own { tenant } else { most.1 }
        };
        if let Some(tools) = self.tenants.get_mut(&from) {
            tools.forget_one();
        }
        self.resize(from, -1);
    }

    /// Notes that a tenant is about to have, or has had, a tool more.
    fn resize(&mut self, tenant: u32, by: isize) {
        let now = self.tenants.get(&tenant).map_or(0, |own| own.tools.len());
        // A new tool is counted before it is there, one that was forgotten after it has gone.
        let (was, is) = if by > 0 { (now, now + 1) } else { (now + 1, now) };
        self.sizes.remove(&(was, tenant));
        if is > 0 {
            self.sizes.insert((is, tenant));
        }
        self.tools = self.tools.saturating_add_signed(by);
    }

    /// What is known of a tool: its own durations once there are a few, else those of all of the tenant's.
    #[must_use]
    pub fn of(&self, tenant: TenantSlot, tool: &str, samples_min: u32) -> Option<&Sketch> {
        let tenant = self.tenants.get(&tenant.0)?;
        let own = tenant.tools.get(cut(tool)).map(|tool| &tool.sketch);
        own.into_iter().chain([&tenant.all]).find(|sketch| sketch.samples() >= samples_min)
    }

    /// How many tools are told apart.
    #[must_use]
    pub fn tools(&self) -> usize {
        self.tools
    }
}

#[cfg(test)]
mod tests;
