//! What the tiers count, for `/metrics`.

use mainstay_tier::{FiguresView, Health};
use mainstay_types::Tier;

use super::Tiers;

/// Publishes the figures of all tiers.
pub(super) fn publish(tiers: &Tiers) {
    let block_bytes = f64::from(tiers.layout.block_bytes);
    let room = |tier: Tier, blocks: usize, capacity: u32| {
        let name = tier.name();
        metrics::gauge!("mainstay_tier_blocks", "tier" => name).set(blocks as f64);
        metrics::gauge!("mainstay_tier_bytes", "tier" => name).set(blocks as f64 * block_bytes);
        metrics::gauge!("mainstay_tier_capacity_bytes", "tier" => name)
            .set(f64::from(capacity) * block_bytes);
    };
    metrics::gauge!("mainstay_tier_pinned_blocks").set(tiers.pinned.lock().len() as f64);
    if let Some(local) = tiers.local() {
        let host = local.host();
        room(Tier::Host, host.len(), host.capacity());
        count(Tier::Host, &host.figures().view());
        if let Some(disk) = local.disk() {
            room(Tier::Disk, disk.len(), disk.capacity());
            count(Tier::Disk, &disk.figures().view());
            let health = match disk.health() {
                Health::Good => 0.0,
                Health::Small => 1.0,
                Health::ReadOnly => 2.0,
                Health::Failing => 3.0,
            };
            metrics::gauge!("mainstay_tier_health", "tier" => "disk").set(health);
        }
        if let Some(stack) = local.stack() {
            metrics::counter!("mainstay_tier_writes_dropped_total", "tier" => "disk")
                .absolute(stack.figures().view().refused);
        }
    }
    if let Some(remote) = tiers.remote() {
        count(Tier::Remote, &remote.figures().view());
    }
}

fn count(tier: Tier, view: &FiguresView) {
    let name = tier.name();
    metrics::counter!("mainstay_tier_hits_total", "tier" => name).absolute(view.hits);
    metrics::counter!("mainstay_tier_misses_total", "tier" => name).absolute(view.misses);
    metrics::counter!("mainstay_tier_stored_total", "tier" => name).absolute(view.stored);
    metrics::counter!("mainstay_tier_present_total", "tier" => name).absolute(view.present);
    metrics::counter!("mainstay_tier_refused_total", "tier" => name).absolute(view.refused);
    metrics::counter!("mainstay_tier_evicted_total", "tier" => name).absolute(view.evicted);
    metrics::counter!("mainstay_tier_corrupt_total", "tier" => name).absolute(view.bad_sums);
    metrics::counter!("mainstay_tier_quarantined_total", "tier" => name).absolute(view.quarantined);
    metrics::counter!("mainstay_tier_faults_total", "tier" => name).absolute(view.faults);
    metrics::counter!("mainstay_tier_timeouts_total", "tier" => name).absolute(view.timeouts);
    metrics::counter!("mainstay_tier_read_bytes_total", "tier" => name).absolute(view.read_bytes);
    metrics::counter!("mainstay_tier_written_bytes_total", "tier" => name)
        .absolute(view.written_bytes);
    metrics::counter!("mainstay_tier_recovered_total", "tier" => name).absolute(view.recovered);
    metrics::counter!("mainstay_tier_forgotten_total", "tier" => name).absolute(view.forgotten);
}
