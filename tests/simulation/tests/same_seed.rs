//! A seed is a run: played twice it gives the same trace, line by line.

use mainstay_simulation_tests::plan::Plan;
use mainstay_simulation_tests::run::run;

#[test]
fn a_seed_played_twice_gives_the_same_trace() {
    for seed in 0..6 {
        let plan = Plan::of(seed);
        let (first, second) = (run(&plan, None), run(&plan, None));
        assert!(first.trace.len() > 100, "seed {seed}: hardly anything happened");
        let differs = first.trace.iter().zip(&second.trace).position(|(a, b)| a != b);
        if let Some(line) = differs {
            panic!("seed {seed}, line {line}:\n{}\n{}", first.trace[line], second.trace[line]);
        }
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
    }
}
