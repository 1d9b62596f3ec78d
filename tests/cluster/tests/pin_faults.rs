//! Pins under faults: real members behind proxied links, a nemesis from a seed, and a history that must keep every
//! promise. A minute by default; with `MAINSTAY_LONG=1` an hour with hundreds of faults. `MAINSTAY_SECONDS=N`
//! ends the hour sooner. `MAINSTAY_SEED=N` draws the same faults and requests again, though not the same
//! interleaving, and `MAINSTAY_PACE=quick` has short election timeouts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::clients::{self, Load};
use mainstay_cluster_tests::faults::Nemesis;
use mainstay_cluster_tests::fleet::{Fleet, Pace, Setup};
use mainstay_cluster_tests::history::check::show;
use mainstay_cluster_tests::history::{Bounds, Recorder, check};
use mainstay_cluster_tests::rng::Rng;
use tokio::sync::watch;

/// The member whose disk can be filled.
const SMALL_DISK: u64 = 2;

/// Cluster time never goes back, so that a leader whose clock is ahead makes it jump once: the spread that pins have
/// to live through is there from the start.
const CLOCK_OFFSETS_MS: [i64; 3] = [-230, 0, 230];
/// How long members may take to show one log index while time still moves.
const AGREEMENT: Duration = Duration::from_secs(30);
const HOUR: u64 = 60 * 60;

struct Plan {
    faults_for: Duration,
    quiet_ms: std::ops::Range<u64>,
    load: Load,
    faults_min: usize,
    acknowledged_min: usize,
}

fn plan() -> Plan {
    if std::env::var_os("MAINSTAY_LONG").is_some_and(|v| v == "1") {
        let load = Load { clients: 24, ttl_ms: 5_000..40_000, pause_ms: 300..900 };
        let asked = std::env::var("MAINSTAY_SECONDS").ok();
        let seconds = asked.map_or(HOUR, |text| text.parse().expect("a number of seconds"));
        let share =
            |of_an_hour: u64| usize::try_from(of_an_hour * seconds / HOUR).expect("a count");
        return Plan {
            faults_for: Duration::from_secs(seconds),
            quiet_ms: 3_000..9_000,
            load,
            faults_min: share(200),
            acknowledged_min: share(5_000),
        };
    }
    Plan {
        faults_for: Duration::from_secs(52),
        quiet_ms: 500..2_500,
        load: Load { clients: 24, ttl_ms: 3_000..12_000, pause_ms: 150..700 },
        faults_min: 5,
        acknowledged_min: 100,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_breaks_a_promise() -> Result<()> {
    let plan = plan();
    let seed = Rng::seed_of_run();
    println!("MAINSTAY_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut clock_offsets_ms = CLOCK_OFFSETS_MS.to_vec();
    clock_offsets_ms.rotate_left(usize::try_from(rng.pick(0..3))?);
    let setup = Setup {
        pace: Pace::of_run(),
        proxied: true,
        small_disk: Some(SMALL_DISK),
        clock_offsets_ms,
    };
    let fleet = Fleet::start(setup).await?;
    let addresses = fleet.addresses();
    let recorder = Arc::new(Recorder::default());
    let (stop, stopped) = watch::channel(false);
    let until = Instant::now() + plan.faults_for;
    let nemesis = Nemesis::new(fleet, rng.fork(), plan.quiet_ms);
    let nemesis = std::thread::spawn(move || nemesis.run(until));
    let recording = Arc::clone(&recorder);
    let mut clients_rng = rng.fork();
    let load = plan.load;
    let clients = tokio::spawn(async move {
        clients::run(&addresses, &load, &mut clients_rng, recording, stopped).await
    });
    let ended = tokio::task::spawn_blocking(move || nemesis.join()).await?;
    // Whatever came of the faults, what clients saw until then is looked at.
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.send_replace(true);
    clients.await??;
    let bounds = Bounds::default();
    let report = check(&recorder.history(), bounds);
    print!("seed {seed}: {report}");
    let broken: HashSet<_> = report.violations.iter().filter_map(|v| v.pin).collect();
    for op in
        recorder.history().iter().filter(|op| op.asked.pin().is_some_and(|p| broken.contains(&p)))
    {
        println!("  p-{:032x} {}", op.asked.pin().unwrap_or_default(), show(op));
    }
    let ended = ended.map_err(|_| anyhow::anyhow!("the nemesis panicked"))?;
    let (fleet, tally) = ended.context("the fleet did not come back")?;
    println!(
        "{} faults: {:?}; the longest wait for a leader {:?}; {} terms",
        tally.total(),
        tally.faults,
        tally.longest_recovery,
        tally.term
    );
    let (log_index, pins) = tokio::task::block_in_place(|| fleet.agree(AGREEMENT))?;
    println!("at log index {log_index} all members show the same {pins} pins");
    ensure!(tally.deaths.is_empty(), "members ended by themselves: {:#?}", tally.deaths);
    ensure!(report.is_clean(), "promises were broken; draw them again with MAINSTAY_SEED={seed}");
    ensure!(tally.total() >= plan.faults_min, "only {} faults", tally.total());
    ensure!(
        report.acknowledged >= plan.acknowledged_min,
        "only {} acknowledged pins",
        report.acknowledged
    );
    Ok(())
}
