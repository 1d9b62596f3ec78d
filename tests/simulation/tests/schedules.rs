//! Schedules from seeds, judged by all invariants. `MAINSTAY_SEEDS=1000` plays so many, `MAINSTAY_SEED=17` plays
//! one and prints what happened.

use std::time::Instant;

use mainstay_simulation_tests::plan::Plan;
use mainstay_simulation_tests::run::{Counts, run};

/// About a minute of CPU.
const SEEDS: u64 = 60;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

#[test]
fn promises_hold_under_every_schedule() {
    if let Some(seed) = number("MAINSTAY_SEED") {
        let plan = Plan::of(seed);
        println!("{plan:#?}");
        let report = run(&plan, None);
        for line in &report.trace {
            println!("{line}");
        }
        println!("{}", report.counts);
        assert!(report.violations.is_empty(), "seed {seed}:\n{}", report.violations.join("\n"));
        return;
    }
    let seeds = number("MAINSTAY_SEEDS").unwrap_or(SEEDS);
    let from = number("MAINSTAY_SEEDS_FROM").unwrap_or(0);
    let start = Instant::now();
    let mut counts = Counts::default();
    let mut red = Vec::new();
    for seed in from..from + seeds {
        let report = run(&Plan::of(seed), None);
        counts += report.counts;
        if !report.violations.is_empty() {
            println!("seed {seed} (MAINSTAY_SEED={seed} shows it):");
            for violation in &report.violations {
                println!("  {violation}");
            }
            red.push(seed);
        }
    }
    println!("{seeds} schedules in {:.1} s: {counts}", start.elapsed().as_secs_f64());
    assert!(red.is_empty(), "promises were broken in seeds {red:?}");
    assert!(counts.writes > 0 && counts.reads > 0, "nothing happened: {counts}");
}
