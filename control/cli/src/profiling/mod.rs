//! `--profiling-listen`: where the process spends its processor time and its memory, while it runs.
//!
//! `/debug/pprof/profile` as in etcd and Go: a profile in pprof's form, or as folded stacks; `/debug/pprof/heap`, what
//! was allocated meanwhile and still lives. Nothing is sampled but while somebody asks. Time inside the C library is left out: a signal that comes there must not walk the stack.

mod form;
mod heap;
mod stacks;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use http::{Method, StatusCode, Uri};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::monitoring::door::{self, Answer, answer};
use stacks::Profile;

const PATH: &str = "/debug/pprof/profile";
const HEAP_PATH: &str = "/debug/pprof/heap";
const SECONDS: u64 = 30;
const SECONDS_MAX: u64 = 120;
/// Memory that does not come back takes its time to show.
const HEAP_SECONDS_MAX: u64 = 3_600;
/// Samples for a second of processor time; off the round number, so as not to beat with timers.
const FREQUENCY: i32 = 99;
const FREQUENCY_MAX: i32 = 999;
/// What finding the names of a profile and sending it may take.
const NAMES_PATIENCE: Duration = Duration::from_secs(60);
const BUSY: &str = "a profile is being taken; ask again later";
/// Libraries whose code holds locks that walking a stack may want.
const NOT_INSIDE: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// The flag of a role.
#[derive(clap::Args)]
pub(crate) struct ProfilingArgs {
    /// Serve /debug/pprof/profile and /debug/pprof/heap over HTTP there, such as 127.0.0.1:9409; plain text, without keys [default: off]
    #[arg(long, value_name = "ADDR")]
    profiling_listen: Option<SocketAddr>,
}

impl ProfilingArgs {
    /// Listens, if asked to.
    pub(crate) async fn listen(&self) -> anyhow::Result<()> {
        let Some(address) = self.profiling_listen else { return Ok(()) };
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address} for profiles; choose another with --profiling-listen"
            )
        })?;
        tokio::spawn(serve(listener));
        Ok(())
    }
}

async fn serve(listener: TcpListener) {
    let one = Arc::new(Semaphore::new(1));
    let patience = Duration::from_secs(HEAP_SECONDS_MAX) + NAMES_PATIENCE;
    door::accept(listener, patience, move |method, uri| respond(method, uri, Arc::clone(&one)))
        .await;
}

async fn respond(method: Method, uri: Uri, one: Arc<Semaphore>) -> Answer {
    if method != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET".to_owned());
    }
    let query = uri.query().unwrap_or_default();
    match uri.path() {
        HEAP_PATH => return heap_profile(query, &one).await,
        PATH => {}
        _ => {
            let there = format!(
                "there is {PATH}?seconds={SECONDS}&frequency={FREQUENCY}&format=pprof, and \
                 {HEAP_PATH}?seconds={SECONDS}"
            );
            return text(StatusCode::NOT_FOUND, there);
        }
    }
    let wish = match Wish::read(query) {
        Ok(wish) => wish,
        Err(what) => return text(StatusCode::BAD_REQUEST, what),
    };
    // One clock of samples for the process.
    let Ok(_place) = one.try_acquire() else {
        return text(StatusCode::CONFLICT, BUSY.to_owned());
    };
    match take(&wish).await {
        Ok(profile) => match wish.format {
            Format::Pprof => {
                answer(StatusCode::OK, "application/octet-stream", form::encode(&profile))
            }
            Format::Folded => answer(StatusCode::OK, "text/plain", profile.folded()),
        },
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")),
    }
}

fn text(status: StatusCode, text: String) -> Answer {
    answer(status, "text/plain", format!("{text}\n"))
}

async fn heap_profile(query: &str, one: &Semaphore) -> Answer {
    let seconds = match query.split_once('=') {
        None if query.is_empty() => Ok(SECONDS),
        Some(("seconds", value)) => within("seconds", value, 1, HEAP_SECONDS_MAX),
        _ => Err("there is seconds".to_owned()),
    };
    let seconds = match seconds {
        Ok(seconds) => seconds,
        Err(what) => return text(StatusCode::BAD_REQUEST, what),
    };
    let Ok(_place) = one.try_acquire() else {
        return text(StatusCode::CONFLICT, BUSY.to_owned());
    };
    match heap::take(seconds).await {
        Ok(profile) => answer(StatusCode::OK, "application/octet-stream", profile),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Pprof,
    Folded,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    seconds: u64,
    frequency: i32,
    format: Format,
}

impl Wish {
    /// From the query of an address; what it doesn't say is as usual.
    fn read(query: &str) -> Result<Self, String> {
        let mut wish = Self { seconds: SECONDS, frequency: FREQUENCY, format: Format::Pprof };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "seconds" => wish.seconds = within(name, value, 1, SECONDS_MAX)?,
                "frequency" => wish.frequency = within(name, value, 1, FREQUENCY_MAX)?,
                "format" => {
                    wish.format = match value {
                        "pprof" => Format::Pprof,
                        "folded" => Format::Folded,
                        _ => return Err("format is pprof or folded".to_owned()),
                    }
                }
                _ => return Err("there is seconds, frequency and format".to_owned()),
            }
        }
        Ok(wish)
    }
}

fn within<N>(name: &str, value: &str, least: N, most: N) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let number = value.parse().ok().filter(|n| (&least..=&most).contains(&n));
    number.ok_or_else(|| format!("{name} is a number from {least} to {most}"))
}

/// Samples for as long as is wished. Whoever goes away earlier ends it.
async fn take(wish: &Wish) -> anyhow::Result<Profile> {
    let started = SystemTime::now();
    let clock = pprof::ProfilerGuardBuilder::default()
        .frequency(wish.frequency)
        .blocklist(&NOT_INSIDE)
        .build()
        .context("sampling could not begin")?;
    let duration = Duration::from_secs(wish.seconds);
    tokio::time::sleep(duration).await;
    let frequency = wish.frequency;
    let named = tokio::task::spawn_blocking(move || {
        let report = clock.report().build().context("samples could not be named")?;
        Ok(Profile::new(&report, started, duration, frequency))
    });
    named.await.context("naming samples broke off")?
}
