//! Starts each case as a process of its own, with a deadline, and collects what they say.
//!
//! The child prints one line of JSON as its last words. One that dies without them crashed; one that is still
//! there at the deadline is killed.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Case, CaseReport, Outcome, Report, cases};

/// How the process of a case is started: it has to call [`run_case`](crate::run_case) and print the report's JSON
/// as its last line.
#[derive(Clone, Debug)]
pub struct Child {
    /// The program.
    pub program: PathBuf,
    /// Its arguments before `CASE SEED PATIENCE`, the last in milliseconds.
    pub args: Vec<String>,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The engine's name in the report.
    pub engine: String,
    /// Cases whose names contain this; all when empty.
    pub pattern: String,
    /// Where all chance comes from.
    pub seed: u64,
    /// How long a case waits for what must come.
    pub patience: Duration,
    /// A case that takes longer is killed.
    pub limit: Duration,
}

const LOOK_MS: u64 = 5;
/// Of what a child says, on each of its two streams.
const SAID_BYTES_MAX: u64 = 1 << 20;

/// Runs the cases one after the other; `said` hears of each as it ends.
pub fn run(child: &Child, options: &Options, mut said: impl FnMut(&CaseReport)) -> Report {
    let chosen = cases().iter().filter(|case| case.name.contains(&options.pattern));
    let reports = chosen
        .map(|case| {
            let report = run_one(child, options, case);
            said(&report);
            report
        })
        .collect();
    Report::new(options.engine.clone(), options.seed, reports)
}

fn run_one(child: &Child, options: &Options, case: &Case) -> CaseReport {
    let begun = Instant::now();
    let bad =
        |outcome, reason| CaseReport::of(case, outcome, Some(reason), Vec::new(), begun.elapsed());
    let started = Command::new(&child.program)
        .args(&child.args)
        .args([case.name, &options.seed.to_string(), &options.patience.as_millis().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut process = match started {
        Ok(process) => process,
        Err(error) => return bad(Outcome::Crashed, format!("it can't be started: {error}")),
    };
    // Threads read, so that a child that says much does not stand still at a full pipe.
    let out = process.stdout.take().map(|stream| thread::spawn(move || read(stream)));
    let err = process.stderr.take().map(|stream| thread::spawn(move || read(stream)));
    let status = loop {
        match process.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if begun.elapsed() < options.limit => {
                thread::sleep(Duration::from_millis(LOOK_MS));
            }
            Ok(None) | Err(_) => {
                let _ = process.kill();
                let _ = process.wait();
                break None;
            }
        }
    };
    let text = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (out, err) = (text(out), text(err));
    let Some(status) = status else {
        return bad(Outcome::TimedOut, format!("no end after {} s", options.limit.as_secs()));
    };
    let last = out.lines().rev().find(|line| line.starts_with('{'));
    match last.and_then(|line| serde_json::from_str::<CaseReport>(line).ok()) {
        // Who dies after its last words was still wrong: in `destroy`, or at its exit.
        Some(report) if status.success() => report,
        _ => bad(Outcome::Crashed, died(status, &err)),
    }
}

fn died(status: ExitStatus, err: &str) -> String {
    let last = err.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let last: String = last.chars().take(200).collect();
    let status = std::os::unix::process::ExitStatusExt::signal(&status)
        .map_or_else(|| format!("{status}"), |signal| format!("signal {signal}"));
    if last.is_empty() { status } else { format!("{status}; its last line: {last}") }
}

fn read(stream: impl Read) -> String {
    let mut bytes = Vec::new();
    let mut stream = stream.take(SAID_BYTES_MAX);
    let _ = stream.read_to_end(&mut bytes);
    // The rest is let through, or the child would stand still.
    let _ = std::io::copy(&mut stream.into_inner(), &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}
