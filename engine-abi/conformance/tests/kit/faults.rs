//! Engines that are wrong on purpose: the kit has to catch each by the case that is made for it.
//!
//! They are one engine, the outsider's, told by its configuration which promise to break.

use std::time::Duration;

use mainstay_conformance::{Outcome, cases};

use crate::{NO_TRANSFER, check, keeps_every_promise, outsider};

/// The outsider's configuration, with a fault.
fn config(fault: &str) -> String {
    format!(r#"{{"blocks":192,"context":4096,"requests":16,"step_us":20,"fault":"{fault}"}}"#)
}

/// An engine that hangs costs this, or four times this; a right one answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// Each fault and the case that catches it.
const FAULTS: &[(&str, &str)] = &[
    ("drop_final", "output.one-final"),
    ("double_final", "output.one-final"),
    ("no_first", "output.one-final"),
    ("late_tokens", "output.one-final"),
    ("bad_token", "output.one-final"),
    ("too_many", "output.one-final"),
    ("out_seq", "output.one-final"),
    ("skip_seq", "cache.events"),
    ("silent_evict", "pressure.evict"),
    ("phantom_store", "cache.truth"),
    ("orphan_parent", "cache.events"),
    ("shared_namespace", "cache.namespaces"),
    ("lying_hit", "cache.hit"),
    ("no_reset", "flow.slow-events"),
    ("leak_thread", "lifecycle.again"),
    ("leak_fd", "lifecycle.again"),
    ("ignore_cancel", "flow.cancel"),
    ("cancel_twice", "flow.cancel"),
    ("forget_pin", "pins.hold"),
    ("pin_forever", "pins.expire"),
    ("no_pin_event", "pins.expire"),
    ("lost_op", "pins.ops"),
    ("caps_lie", "boundary.slots"),
    ("tail_blind", "boundary.long-request"),
    ("ext_blind", "boundary.extensions"),
    ("out_on_error", "boundary.bad-config"),
    ("size_blind", "boundary.short-info"),
    ("over_budget", "cache.events"),
    ("unstable", "output.greedy"),
    ("unseeded", "output.seeded"),
    ("drain_admits", "lifecycle.drain"),
    ("exit_dirty", "lifecycle.again"),
    ("hang_destroy", "lifecycle.again"),
    ("slow_any", "flow.short-calls"),
    ("snapshot_partial", "cache.snapshot"),
    ("priority_blind", "pressure.priority"),
    ("retention_blind", "pressure.retention"),
    ("lease_blind", "leases.keep"),
    ("lease_end_blind", "leases.keep"),
    ("amend_blind", "leases.amend"),
    ("amend_wide", "leases.amend"),
    ("lease_unchecked", "leases.bad"),
    ("lease_range_unchecked", "leases.bad"),
    ("ages_us", "pressure.ages"),
    ("ages_lost", "pressure.ages"),
    ("miscounts", "flow.stats"),
];

#[test]
fn the_outsiders_engine_keeps_every_promise() {
    let path = outsider().display().to_string();
    let not_offered = [&["cache.names"], NO_TRANSFER].concat();
    keeps_every_promise(&path, &config("none"), &not_offered);
}

#[test]
fn each_fault_is_caught_by_its_case() {
    let path = outsider().display().to_string();
    let mut missed = Vec::new();
    for (fault, case) in FAULTS {
        assert!(cases().iter().any(|known| known.name == *case), "{case}");
        let report = check(&path, &config(fault), case, PATIENCE);
        let caught = &report.cases[0];
        println!(
            "{fault:<18}{case:<24}{:?}: {}",
            caught.outcome,
            caught.reason.as_deref().unwrap_or("")
        );
        // An engine that can't be created was not caught by anything.
        assert!(!caught.reason.as_deref().unwrap_or_default().contains("create failed"), "{fault}");
        if !caught.outcome.is_bad() {
            missed.push(*fault);
        }
        assert_ne!(caught.outcome, Outcome::NotOffered, "{fault}: {:?}", caught.reason);
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
