//! The vendor's kit over the doubles: our half of each wire keeps the promises of the header.

use std::time::Duration;

use crate::doubles::{Double, Kind, Setting};
use mainstay_conformance::{Context, Outcome, Subject, cases, run_case};

/// How often a case is tried: the kit waits 60 ms for events, which two sockets of a busy machine may not keep. What
/// is wrong is wrong each time.
const TRIES: usize = 3;

/// Runs all cases, each with a double of its own; answers with those that were not passed.
fn run(kind: Kind, has_events: bool) -> Vec<(String, Outcome, String)> {
    let mut rest = Vec::new();
    for case in cases() {
        let mut last = None;
        for _ in 0..TRIES {
            let (outcome, report) = try_case(case.name, kind, has_events);
            let is_settled = matches!(outcome, Outcome::Passed | Outcome::NotOffered);
            last = (outcome != Outcome::Passed).then_some((case.name.to_owned(), outcome, report));
            if is_settled {
                break;
            }
        }
        rest.extend(last);
    }
    rest
}

fn try_case(name: &str, kind: Kind, has_events: bool) -> (Outcome, String) {
    let mut setting = Setting::new(kind);
    setting.decode = match name {
        // Somebody has to wait, or to be cancelled in the middle.
        "pressure.priority" | "flow.cancel" | "output.duplicate" => Duration::from_millis(1),
        _ => Duration::ZERO,
    };
    let double = Double::start(setting);
    let context = Context {
        subject: Subject::Linked("remote".to_owned(), mainstay_remote::entry()),
        config_json: double.config(has_events).to_string(),
        seed: 7,
        patience: Duration::from_secs(30),
    };
    let report = run_case(name, &context).expect("a case of that name");
    (report.outcome, format!("{report:?}"))
}

fn faults(rest: &[(String, Outcome, String)]) -> Vec<&str> {
    let faults: Vec<_> =
        rest.iter().filter(|(_, outcome, _)| *outcome != Outcome::NotOffered).collect();
    faults.iter().for_each(|(_, _, report)| eprintln!("{report}"));
    faults.iter().map(|(name, _, _)| name.as_str()).collect()
}

#[test]
fn vllm_double_passes() {
    let rest = run(Kind::Vllm, true);
    assert_eq!(faults(&rest), Vec::<&str>::new());
}

#[test]
fn sglang_double_passes() {
    let rest = run(Kind::Sglang, true);
    assert_eq!(faults(&rest), Vec::<&str>::new());
}

#[test]
fn llamacpp_double_passes_and_offers_no_events() {
    let rest = run(Kind::LlamaCpp, false);
    assert_eq!(faults(&rest), Vec::<&str>::new());
    let offered = |name: &str| !rest.iter().any(|(case, _, _)| case == name);
    assert!(!offered("cache.events") && !offered("output.logprobs") && offered("output.greedy"));
}
