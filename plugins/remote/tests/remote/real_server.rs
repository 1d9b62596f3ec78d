//! The vendor's kit over a server that runs elsewhere, if `MAINSTAY_REMOTE_CONFIG` names one (the engine's JSON).
//!
//! Without it there is nothing to ask, and the test is ignored; `mainstay engine check remote --config` does the
//! same, with a process for each case.

use std::time::Duration;

use mainstay_conformance::{Context, Outcome, Subject, cases, run_case};

#[test]
#[ignore = "needs a server: MAINSTAY_REMOTE_CONFIG='{\"upstream\": …}'"]
fn a_real_server_keeps_the_promises() {
    let config_json = std::env::var("MAINSTAY_REMOTE_CONFIG").unwrap();
    let pattern = std::env::var("MAINSTAY_REMOTE_CASE").unwrap_or_default();
    let mut bad = Vec::new();
    for case in cases().iter().filter(|case| case.name.contains(&pattern)) {
        let context = Context {
            subject: Subject::Linked("remote".to_owned(), mainstay_remote::entry()),
            config_json: config_json.clone(),
            seed: 7,
            patience: Duration::from_secs(120),
        };
        let report = run_case(case.name, &context).unwrap();
        eprintln!("{report:?}");
        if !matches!(report.outcome, Outcome::Passed | Outcome::NotOffered) {
            bad.push(case.name);
        }
    }
    assert_eq!(bad, Vec::<&str>::new());
}
