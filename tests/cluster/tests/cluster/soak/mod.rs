//! A cluster under load and random faults for as long as is asked: no client sees an error, and no process grows.
//!
//! `MAINSTAY_SOAK=2h` (also `90m`, `300s`) says how long; without it a run is as long as CI allows, and memory is shown
//! and not judged, since every cache is still filling. The load is 70 % of what the same clients got out of the same
//! cluster without pauses at the start. Engines are simulated, so that load is their time and not the machine's, and
//! the output says so; `MAINSTAY_SOAK_ENGINE=native` takes the real one, with host memory below it.
//!
//! Processes that are killed begin anew and show no leak. So one of each role, the first, is never ended.

mod agents;
mod nemesis;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::memory::{Curve, resident};
use mainstay_cluster_tests::rng::Rng;
use mainstay_cluster_tests::{Client, Cluster, Process, Shape};

use agents::{Pace, Tally};
use nemesis::{Fault, Nemesis};

const SHAPE: Shape = Shape { members: 3, gateways: 2, workers: 3, blocks: 4_000 };
const AGENTS: u64 = 16;
/// Of what the cluster can do.
const LOAD: f64 = 0.7;
/// How long what it can do is measured: a part of the run, a minute at the most.
const CALIBRATION_PART: u32 = 20;
const SHORT: Duration = Duration::from_secs(40);
/// From here on growth is judged: what is shorter shows how caches fill.
const LONG: Duration = Duration::from_secs(3_600);
/// Growth in an hour, as a part of what a process holds, over the second half of a long run.
const GROWTH_MAX: f64 = 0.02;
/// What the least process may grow by in an hour: allocators' own noise.
const GROWTH_BYTES_MIN: f64 = (2 << 20) as f64;

/// How long, by `MAINSTAY_SOAK`.
fn asked() -> Result<Duration> {
    let Ok(text) = std::env::var("MAINSTAY_SOAK") else { return Ok(SHORT) };
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let scale = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => anyhow::bail!("MAINSTAY_SOAK is a time such as 300s, 90m or 2h, and not {text}"),
    };
    let number: u64 = number.parse().with_context(|| format!("MAINSTAY_SOAK={text}"))?;
    Ok(Duration::from_secs(number * scale).max(SHORT))
}

/// The cluster, with the engine that `MAINSTAY_SOAK_ENGINE` names.
fn start() -> Result<Cluster> {
    if is_native() {
        let shape = Shape { blocks: 2_000, ..SHAPE };
        return Cluster::start_with(&shape, &["--host-memory=64M"]);
    }
    // So quick that what is bounded by number is full in the first half of a long run.
    let pace = "prefill_us_per_token = 125\ndecode_us_per_token = 2000\n";
    Cluster::start_engine(&SHAPE, &["--engine=sim"], pace)
}

fn is_native() -> bool {
    std::env::var("MAINSTAY_SOAK_ENGINE").is_ok_and(|engine| engine == "native")
}

/// The processes that are never ended, with their curves.
struct Watched {
    curves: Vec<(&'static str, u32, Curve)>,
    begun: Instant,
}

impl Watched {
    fn of(cluster: &Cluster) -> Self {
        let first = |processes: &[Process]| processes[0].pid();
        let curves = vec![
            ("member 1", first(&cluster.members), Curve::default()),
            ("gateway 1", first(&cluster.gateways), Curve::default()),
            ("worker 1", first(&cluster.workers), Curve::default()),
        ];
        Self { curves, begun: Instant::now() }
    }

    fn look(&mut self) -> Result<()> {
        for (name, pid, curve) in &mut self.curves {
            curve.push(self.begun.elapsed(), resident(*pid).context(*name)?);
        }
        Ok(())
    }

    fn row(&self) -> String {
        let held = |(name, _, curve): &(&str, u32, Curve)| {
            format!("{name} {:.1} MiB", curve.last() as f64 / f64::from(1 << 20))
        };
        self.curves.iter().map(held).collect::<Vec<_>>().join(", ")
    }

    /// Lines over the second half; a long run fails where one rises.
    fn judge(&self, judged: bool) -> Result<()> {
        let half = self.begun.elapsed() / 2;
        let mut rising = Vec::new();
        for (name, _, curve) in &self.curves {
            let line = curve.line_from(half).context("a run has looks")?;
            println!(
                "{name}: {:.1} MiB, {:+.2} MiB an hour ({:+.2} %) over the second half",
                line.mean / f64::from(1 << 20),
                line.bytes_per_hour / f64::from(1 << 20),
                line.part_per_hour() * 100.0
            );
            if line.bytes_per_hour > (line.mean * GROWTH_MAX).max(GROWTH_BYTES_MIN) {
                rising.push(*name);
            }
        }
        ensure!(!judged || rising.is_empty(), "memory of {rising:?} grows");
        Ok(())
    }
}

/// Looks at memory, and says each minute how it goes, until `until`.
async fn watch(watched: &mut Watched, tally: &Tally, until: Instant) -> Result<()> {
    let every = Duration::from_secs(2);
    let mut said = Instant::now();
    while Instant::now() < until {
        tokio::time::sleep(every).await;
        watched.look()?;
        if said.elapsed() >= Duration::from_secs(60) {
            said = Instant::now();
            println!(
                "[{:6.0} s] {}; {}",
                watched.begun.elapsed().as_secs_f64(),
                tally.row(),
                watched.row()
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_sees_an_error_and_no_process_grows() -> Result<()> {
    let (length, seed) = (asked()?, Rng::seed_of_run());
    println!("MAINSTAY_SEED={seed}, {length:?}, native engine: {}", is_native());
    let mut rng = Rng::new(seed);
    let cluster = start()?;
    let clients: Vec<Client> = cluster.gateway_urls.iter().map(|url| Client::new(url)).collect();
    let (tally, pace) = (Tally::default(), Pace::unlimited());
    let mut agents = rng.fork();
    let soaked = async {
        let soaked = soak(cluster, length, &pace, &tally, rng).await;
        pace.end();
        soaked
    };
    let (soaked, ()) =
        tokio::join!(soaked, agents::run(AGENTS, &clients, &pace, &tally, &mut agents));
    let Soaked { watched, faults, .. } = soaked?;
    println!("{}; faults: {faults:?}", tally.row());
    let errors = tally.errors();
    ensure!(errors.is_empty(), "clients saw errors:\n{}", errors.join("\n"));
    ensure!(tally.turns() > 100 && faults.values().sum::<usize>() >= 3, "too little happened");
    watched.judge(length >= LONG)
}

/// What a run leaves. The cluster lives until the agents' last turns have ended.
struct Soaked {
    watched: Watched,
    faults: BTreeMap<Fault, usize>,
    _cluster: Cluster,
}

/// Finds out what the cluster can do, then lets it live through faults at a part of that, while agents run.
async fn soak(
    cluster: Cluster,
    length: Duration,
    pace: &Pace,
    tally: &Tally,
    mut rng: Rng,
) -> Result<Soaked> {
    let calibration = (length / CALIBRATION_PART).min(Duration::from_secs(60));
    tokio::time::sleep(calibration).await;
    let most = tally.turns() as f64 / calibration.as_secs_f64();
    pace.set(most * LOAD);
    println!("{most:.1} turns a second at the most, {:.1} from here on", most * LOAD);
    let mut watched = Watched::of(&cluster);
    let (until, ends) = (Instant::now() + length, Arc::new(AtomicBool::new(false)));
    let nemesis = Nemesis::new(cluster, rng.fork(), length < LONG, Arc::clone(&ends));
    let harm = tokio::task::spawn_blocking(move || nemesis.run());
    let seen = watch(&mut watched, tally, until).await;
    ends.store(true, Ordering::Relaxed);
    let (cluster, faults) = harm.await??;
    seen?;
    Ok(Soaked { watched, faults, _cluster: cluster })
}
