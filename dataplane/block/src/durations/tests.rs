//! Sketches beside the samples that they stand for, and the limits of what is remembered.

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

    /// What is done at the earliest end comes too late for no more than that share, and not much too early.
    #[test]
    fn the_earliest_end_is_no_later_than_it_may_be(
        mut samples in prop::collection::vec(0..1u64 << 29, 1..200),
        after_ms in prop_oneof![Just(0u64), 0..1u64 << 29],
        share in 0.0..1.0f64,
    ) {
        let mut sketch = Sketch::default();
        samples.iter().for_each(|ms| sketch.add(*ms));
        samples.sort_unstable();
        // Those in the bucket of `after_ms` may be on either side of it.
        samples.retain(|ms| begin_ms(bucket_of(*ms)) >= after_ms);
        let told = sketch.earliest_ms(after_ms, share);
        prop_assert_eq!(told.is_none(), samples.is_empty());
        if let Some(told) = told {
            let missed = samples.iter().filter(|ms| **ms < told).count();
            prop_assert!(missed as f64 <= samples.len() as f64 * share);
            let next = samples[((samples.len() as f64 * share) as usize).min(samples.len() - 1)];
            prop_assert!(told <= next && next <= told + told / 3 + 1, "{told} {next}");
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

    /// Beside every wait that could have been chosen, over the samples themselves: none would have been better by more
    /// than what a bucket rounds.
    #[test]
    fn no_other_wait_would_have_gained_more(
        samples in prop::collection::vec((0..24u32).prop_flat_map(|power| 0..1u64 << power), 1..60),
        gain in 0.0..100_000.0f64,
        cost_per_ms in prop_oneof![Just(0.0), 0.001..10.0f64],
        free_ms in prop_oneof![Just(0u64), 0..100_000u64],
    ) {
        let mut sketch = Sketch::default();
        samples.iter().for_each(|ms| sketch.add(*ms));
        let worth = |wait_ms: u64, slack: f64| -> f64 {
            samples.iter().map(|ms| {
                let waited = (*ms).min(wait_ms).saturating_sub(free_ms) as f64 * slack;
                let is_there = *ms > free_ms && *ms < wait_ms;
                let gained = if is_there { gain } else { 0.0 };
                gained - cost_per_ms * waited
            }).sum()
        };
        let chosen = sketch.wait_ms(gain, cost_per_ms, free_ms);
        let near_free = samples.iter().filter(|ms| bucket_of(**ms) == bucket_of(free_ms)).count();
        let rounding = gain * near_free as f64
            + cost_per_ms * samples.iter().map(|ms| (*ms / 4 + 2) as f64).sum::<f64>();
        for other in samples.iter().map(|ms| ms + 1).chain([0]) {
            let (got, other) = (worth(chosen, 1.0), worth(other, 1.0));
            prop_assert!(got + rounding + 1e-6 >= other, "{got} {other} {rounding}");
        }
    }
}

#[test]
fn waiting_stops_where_it_costs_more_than_it_gains() {
    let mut sketch = Sketch::default();
    // Nine in ten are back within a second, one takes an hour.
    (0..90).for_each(|_| sketch.add(900));
    (0..10).for_each(|_| sketch.add(3_600_000));
    let short = sketch.wait_ms(10_000.0, 1.0, 0);
    assert!((900..=1_200).contains(&short), "{short}");
    // Free memory waits for all of them; dear memory for none.
    assert!(sketch.wait_ms(10_000.0, 1e-6, 0) > 3_600_000);
    assert_eq!(sketch.wait_ms(10.0, 1.0, 0), 0);
    assert_eq!(Sketch::default().wait_ms(1e9, 0.0, 0), 0);
    // What stays for two seconds anyway need not be held for those that are back within one.
    assert_eq!(sketch.wait_ms(10_000.0, 1.0, 2_000), 0);
    assert!(sketch.wait_ms(10_000.0, 1e-6, 2_000) > 3_600_000);
}

/// The shape of what coding agents' tools have taken in recorded sessions: half within 9 s, nine in ten within 71 s,
/// one in a hundred beyond ten minutes.
#[test]
fn a_long_tail_is_waited_for_as_far_as_it_pays() {
    let parts = [(2_000, 5), (4_000, 20), (7_000, 25), (13_000, 25), (40_000, 15), (100_000, 6)];
    let mut sketch = Sketch::default();
    for (ms, count) in parts {
        (0..count).for_each(|_| sketch.add(ms));
    }
    (0..3).for_each(|_| sketch.add(300_000));
    sketch.add(1_200_000);
    let hold = |price| sketch.wait_ms(20_000.0, price, 0);
    let holds = [0.0, 0.01, 0.1, 0.3, 1.0, 100.0].map(hold);
    assert!(holds.is_sorted_by(|a, b| a >= b), "{holds:?}");
    assert!(holds[0] > 1_200_000 && holds[5] == 0, "{holds:?}");
    assert!((100_000..400_000).contains(&holds[2]), "{holds:?}");
    assert!((13_000..50_000).contains(&holds[4]), "{holds:?}");
}

#[test]
fn those_that_never_come_back_make_waiting_dearer() {
    let mut sketch = Sketch::default();
    (0..50).for_each(|_| sketch.add(10_000));
    let all = sketch.wait_ms(2_500.0, 0.2, 0);
    assert!(all >= 10_000, "{all}");
    (0..50).for_each(|_| sketch.add_endless());
    assert_eq!(sketch.wait_ms(2_500.0, 0.2, 0), 0);
    assert_eq!((sketch.samples(), sketch.quantile_ms(0.9)), (100, None));
    (0..400).for_each(|_| sketch.add_endless());
    assert!(sketch.samples() <= SAMPLES_MAX);
}

#[test]
fn a_sketch_forgets() {
    let mut sketch = Sketch::default();
    (0..1_000).for_each(|_| sketch.add(10));
    (0..1_000).for_each(|_| sketch.add(100_000));
    assert!(sketch.quantile_ms(0.1).unwrap() > 90_000);
}

#[test]
fn a_flood_of_names_costs_its_own_tenant_only() {
    let mut durations = Durations::default();
    durations.add(TenantSlot(9), "read", 5);
    for tenant in 0..9 {
        for at in 0..TOOLS_PER_TENANT_MAX as u64 * 2 {
            durations.add(TenantSlot(tenant), &format!("tool{at}"), at);
        }
    }
    assert_eq!(durations.tools(), TOOLS_PER_TENANT_MAX * 9 + 1);
    let last = format!("tool{}", TOOLS_PER_TENANT_MAX * 2 - 1);
    let of = |tool: &str| durations.of(TenantSlot(1), tool, 1).unwrap().samples();
    assert_eq!((of(&last), of("tool0") > 1), (1, true), "the first ones were forgotten");
    assert_eq!(durations.of(TenantSlot(9), "read", 1).unwrap().quantile_ms(1.0), Some(6));
}

#[test]
fn no_number_of_tenants_leaves_a_new_one_without_tools() {
    let mut durations = Durations::default();
    let tenants = (TOOLS_MAX / TOOLS_PER_TENANT_MAX) as u32 + 9;
    for tenant in 0..tenants {
        for at in 0..TOOLS_PER_TENANT_MAX as u64 {
            durations.add(TenantSlot(tenant), &format!("tool{at}"), at);
        }
    }
    assert_eq!(durations.tools(), TOOLS_MAX);
    durations.add(TenantSlot(tenants), "mine", 7);
    assert_eq!(durations.tools(), TOOLS_MAX);
    assert_eq!(durations.of(TenantSlot(tenants), "mine", 1).unwrap().quantile_ms(1.0), Some(8));
    let counted: usize = durations.tenants.values().map(|own| own.tools.len()).sum();
    let listed: usize = durations.sizes.iter().map(|size| size.0).sum();
    let ordered: usize = durations.tenants.values().map(|own| own.order.len()).sum();
    assert_eq!([counted, listed, ordered], [TOOLS_MAX; 3]);
    // None has been left with much less than the others.
    let least = durations.sizes.first().unwrap();
    assert_eq!(least.0, 1, "only the newest has few: {least:?}");
    assert!(durations.sizes.iter().nth(1).unwrap().0 >= TOOLS_PER_TENANT_MAX / 2);
}

#[test]
fn long_and_foreign_names_are_bounded() {
    let mut durations = Durations::default();
    durations.add(TenantSlot(2), &"ü".repeat(1_000), 5);
    durations.add(TenantSlot(u32::MAX), "any", 5);
    assert_eq!(durations.tools(), 1);
    assert_eq!(durations.of(TenantSlot(2), &"ü".repeat(999), 1).unwrap().samples(), 1);
    assert!(durations.of(TenantSlot(2), "new", 1).is_some(), "the tenant's tools stand in");
    assert!(durations.of(TenantSlot(2), "new", 2).is_none());
    assert!(durations.of(TenantSlot(3), "new", 1).is_none(), "no other tenant's do");
}
