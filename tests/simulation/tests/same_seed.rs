//! A seed is a run. What is drawn from it never depends on the build; that a run played twice gives the same
//! trace, line by line, takes a tokio whose own choices come from the seed: `.ci/simulate` builds it so.

use mainstay_simulation_tests::plan::Plan;

#[test]
fn a_seed_gives_one_plan_and_another_seed_another() {
    for seed in 0..100 {
        assert_eq!(Plan::of(seed), Plan::of(seed));
        assert_ne!(Plan::of(seed).faults, Plan::of(seed + 1).faults);
    }
}

#[cfg(tokio_unstable)]
#[test]
fn a_seed_played_twice_gives_the_same_trace() {
    use mainstay_simulation_tests::run::run;

    for seed in 0..12 {
        let plan = Plan::of(seed);
        let (first, second) = (run(&plan, None), run(&plan, None));
        assert!(first.trace.len() > 100, "seed {seed}: hardly anything happened");
        let differs = first.trace.iter().zip(&second.trace).position(|(a, b)| a != b);
        if let Some(line) = differs {
            if let Ok(dir) = std::env::var("MAINSTAY_TRACES") {
                for (name, report) in [("first", &first), ("second", &second)] {
                    let path = std::path::Path::new(&dir).join(name);
                    std::fs::write(path, report.trace.join("\n")).unwrap();
                }
            }
            panic!("seed {seed}, line {line}:\n{}\n{}", first.trace[line], second.trace[line]);
        }
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
    }
}
