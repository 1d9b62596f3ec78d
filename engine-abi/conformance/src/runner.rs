//! Starts each case as a process of its own, with a deadline, and collects what they say.
//!
//! The child prints one line of JSON as its last words. One that dies without them crashed; one that is still
//! there at the deadline is killed.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
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
/// How long the last words of a child that has ended may take.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Of what a child says, on each of its two streams: the end of it.
const SAID_BYTES_MAX: usize = 1 << 20;

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
    let out = process.stdout.take().map(reader);
    let err = process.stderr.take().map(reader);
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
    // Not for ever: a process that the child left behind may hold the pipe.
    let text = |said: Option<mpsc::Receiver<String>>| {
        said.and_then(|said| said.recv_timeout(LAST_WORDS).ok()).unwrap_or_default()
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

/// Reads a stream to its end on a thread of its own, and keeps the end of it.
fn reader(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let (mut said, mut room) = (Vec::new(), [0; 1 << 14]);
        while let Ok(count @ 1..) = stream.read(&mut room) {
            said.extend_from_slice(&room[..count]);
            if said.len() > 2 * SAID_BYTES_MAX {
                said.drain(..said.len() - SAID_BYTES_MAX);
            }
        }
        // Whoever asked may have given up.
        let _ = tell.send(String::from_utf8_lossy(&said).into_owned());
    });
    told
}
