//! Do the invariants bite? Each safeguard is taken away, and the invariant that it serves must turn red, in one of
//! the first schedules. A safeguard that nothing misses would be a test that can't fail.

use mainstay_simulation_tests::Safeguard;
use mainstay_simulation_tests::plan::Plan;
use mainstay_simulation_tests::run::run;

/// Plays schedules without the safeguard until one of the invariants turns red.
fn turns_red(lacking: Safeguard, seeds: impl Iterator<Item = u64>, invariants: &[&str]) {
    let mut others = Vec::new();
    for seed in seeds {
        let report = run(&Plan::of(seed), Some(lacking));
        let named = |text: &&String| invariants.iter().any(|name| text.starts_with(name));
        if let Some(violation) = report.violations.iter().find(named) {
            println!("without {lacking:?}, seed {seed}: {violation}");
            return;
        }
        others.extend(report.violations);
    }
    panic!("nobody misses {lacking:?}: {invariants:?} stayed green; others: {others:?}");
}

#[test]
fn an_unsynced_vote_is_missed() {
    turns_red(
        Safeguard::VoteSync,
        0..200,
        &["agreement", "leaders", "never early", "monotonic reads", "released"],
    );
}

#[test]
fn unsynced_entries_are_missed() {
    turns_red(
        Safeguard::AppendSync,
        0..60,
        &["agreement", "never early", "monotonic reads", "released"],
    );
}

#[test]
fn the_barrier_before_reads_is_missed() {
    turns_red(Safeguard::Barrier, 0..20, &["served by its leader"]);
}

#[test]
fn a_fresh_term_after_a_restart_is_missed() {
    turns_red(Safeguard::FreshTerm, 0..60, &["leaders"]);
}

#[test]
fn the_pad_of_a_pin_is_missed() {
    turns_red(Safeguard::ClockPad, 0..60, &["never early"]);
}

#[test]
fn the_allowances_for_clocks_are_missed() {
    turns_red(Safeguard::ClockAllowances, 0..60, &["never early"]);
}

#[test]
fn the_wall_clock_is_missed() {
    turns_red(Safeguard::WallClock, 0..60, &["not late"]);
}
