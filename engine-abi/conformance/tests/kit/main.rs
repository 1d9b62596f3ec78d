//! The kit against engines that are right, and against ones that are wrong on purpose.
//!
//! The process of a case is this very program: started with the word `kit-child`, [`child_program`] runs the case
//! instead of testing. The outsider's engine is compiled with gcc when the tests run.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod faults;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use mainstay_conformance::{Child, Context, Options, Outcome, Report, Subject, run, run_case};

const CHILD_WORD: &str = "kit-child";
const SIM: &str = "sim";
const SIM_CONFIG: &str =
    r#"{"blocks":192,"context_tokens_max":4096,"requests_max":32,"decode_us_per_token":20}"#;
const NATIVE: &str = "native";
const NATIVE_CONFIG: &str =
    r#"{"blocks":192,"context_tokens_max":2048,"requests_max":16,"threads":1}"#;

/// On an emulated GPU, which is slow: a model of two layers.
const EMULATED_CONFIG: &str = r#"{"device":"cuda","blocks":192,"context_tokens_max":512,"requests_max":16,"threads":1,
    "step_tokens_max":128,"model_dir":"FIXTURE"}"#;

/// The program of every case in these tests; does nothing when it is run as a test.
#[test]
fn child_program() {
    let args: Vec<String> = std::env::args().collect();
    let Some(at) = args.iter().position(|arg| arg == CHILD_WORD) else { return };
    let [engine, config, case, seed, patience_ms] = &args[at + 1..] else { panic!("{args:?}") };
    if config.contains("\"cuda\"") {
        mainstay_cuda_double::load();
    }
    let subject = match engine.as_str() {
        SIM => Subject::Linked(SIM.into(), mainstay_sim::entry()),
        NATIVE => Subject::Linked(
            NATIVE.into(),
            mainstay_engine_abi::sdk::entry_point::<mainstay_native::NativeEngine>(),
        ),
        file => Subject::Library(PathBuf::from(file)),
    };
    let context = Context {
        subject,
        config_json: config.clone(),
        seed: seed.parse().unwrap(),
        patience: Duration::from_millis(patience_ms.parse().unwrap()),
    };
    let report = run_case(case, &context).unwrap();
    println!("\n{}", serde_json::to_string(&report).unwrap());
}

/// The outsider's engine, compiled once for all tests.
fn outsider() -> &'static Path {
    static COMPILED: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
        let root = Path::new(&here);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tally.so");
        let built = Command::new("gcc")
            .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
            // A table that ends before the header's does is what growth looks like (R2).
            .args(["-Wno-missing-field-initializers", "-fvisibility=hidden", "-pthread", "-I"])
            .arg(root.join("../include"))
            .arg(root.join("tests/outsider/tally.c"))
            .arg("-o")
            .arg(&path)
            .output()
            .expect("gcc runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        (folder, path)
    });
    &compiled.1
}

fn check(engine: &str, config: &str, pattern: &str, patience: Duration) -> Report {
    let mut args: Vec<String> =
        ["child_program", "--exact", "--nocapture", CHILD_WORD].map(str::to_owned).to_vec();
    args.extend([engine.to_owned(), config.to_owned()]);
    let child = Child { program: std::env::current_exe().unwrap(), args };
    let pattern = pattern.to_owned();
    let limit = patience * 4;
    let options = Options { engine: engine.to_owned(), pattern, seed: 7, patience, limit };
    run(&child, &options, |_| {})
}

/// What an engine without blocks of its own to give is not asked.
const NO_TRANSFER: &[&str] = &["transfer.move", "transfer.parts", "transfer.full", "transfer.bad"];

const PATIENCE: Duration = Duration::from_secs(30);

fn keeps_every_promise(engine: &str, config: &str, not_offered: &[&str]) {
    let report = check(engine, config, "", PATIENCE);
    println!("{}", report.table());
    assert_eq!(report.totals.bad, 0, "{}", report.table());
    let missing: Vec<&str> = report
        .cases
        .iter()
        .filter(|case| case.outcome == Outcome::NotOffered)
        .map(|case| case.case.as_str())
        .collect();
    assert_eq!(missing, not_offered, "{}", report.table());
}

#[test]
fn the_simulated_engine_keeps_every_promise() {
    keeps_every_promise(SIM, SIM_CONFIG, NO_TRANSFER);
}

#[test]
fn the_native_engine_keeps_every_promise() {
    keeps_every_promise(NATIVE, NATIVE_CONFIG, &[]);
}

#[test]
fn the_native_engine_on_an_emulated_gpu_keeps_every_promise() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    let fixture = Path::new(&here).join("../../plugins/native/fixtures/llama-f32");
    let config = EMULATED_CONFIG.replace("FIXTURE", &fixture.to_string_lossy());
    if std::env::var_os("MAINSTAY_WHOLE_KIT").is_some() {
        return keeps_every_promise(NATIVE, &config, &[]);
    }
    // All of it takes four minutes there.
    for pattern in ["output.", "transfer.", "leases."] {
        let report = check(NATIVE, &config, pattern, PATIENCE);
        assert!(report.totals.bad == 0 && report.totals.passed > 0, "{}", report.table());
    }
}
