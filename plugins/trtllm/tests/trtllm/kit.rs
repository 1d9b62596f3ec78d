//! The vendor's kit over the double: our half of the bridge keeps the promises of the header.

use std::time::Duration;

use crate::rig::Folder;
use mainstay_conformance::{Context, Outcome, Subject, cases, run_case};

/// How often a case is tried: the kit waits 60 ms for events, which a busy machine may not keep. What is wrong is
/// wrong each time.
const TRIES: usize = 3;

/// What the engine does not claim.
const NOT_OFFERED: &[&str] = &[
    "output.logprobs",
    "pressure.ages",
    "pins.hold",
    "pins.expire",
    "pins.unpin",
    "pins.ops",
    "transfer.move",
    "transfer.parts",
    "transfer.full",
    "transfer.bad",
    "leases.keep",
    "leases.amend",
    "leases.bad",
    "pins.bad",
];

fn try_case(name: &str, settings: &[(&str, i64)]) -> (Outcome, String) {
    let mut settings = settings.to_vec();
    settings.push((
        "step_us",
        match name {
            // Somebody has to wait, or to be cancelled in the middle.
            "pressure.priority" | "flow.cancel" | "output.duplicate" => 1000,
            _ => 0,
        },
    ));
    let folder = Folder::new(&settings);
    let key = "000102030405060708090a0b0c0d0e0f";
    let context = Context {
        subject: Subject::Linked("trtllm".to_owned(), mainstay_trtllm::entry()),
        config_json: folder.config(serde_json::json!({"hash_key": key})),
        seed: 7,
        patience: Duration::from_secs(30),
    };
    let report = run_case(name, &context).expect("a case of that name");
    (report.outcome, format!("{report:?}"))
}

/// Runs all cases, each with a folder of its own; answers with those that were not offered.
fn run(settings: &[(&str, i64)]) -> Vec<&'static str> {
    let (mut faults, mut not_offered) = (Vec::new(), Vec::new());
    for case in cases() {
        let tries = (0..TRIES).map(|_| try_case(case.name, settings));
        let mut last = None;
        for (outcome, report) in tries {
            let is_settled = matches!(outcome, Outcome::Passed | Outcome::NotOffered);
            last = Some((outcome, report));
            if is_settled {
                break;
            }
        }
        match last {
            Some((Outcome::Passed, _)) => {}
            Some((Outcome::NotOffered, _)) => not_offered.push(case.name),
            other => faults.push(format!("{}: {other:?}", case.name)),
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    not_offered
}

#[test]
fn the_engine_over_the_double_keeps_every_promise() {
    assert_eq!(run(&[]), NOT_OFFERED);
}

#[test]
fn so_it_does_with_a_tier_below_and_several_tokens_in_a_step() {
    assert_eq!(run(&[("host_blocks", 100), ("tokens_per_step", 4)]), NOT_OFFERED);
}
