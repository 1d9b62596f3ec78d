//! How long nobody can pin after the leader was killed, as a client of all members sees it. Three rounds for each
//! pace by default, twenty with `MAINSTAY_LONG=1`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mainstay_cluster_tests::clients::on_wire;
use mainstay_cluster_tests::fleet::{Fleet, Pace, Setup};
use mainstay_cluster_tests::history::Spec;
use mainstay_cluster_tests::rng::Rng;
use mainstay_proto::client::ControlPlane;

/// How long the cluster rests between two rounds, so that the killed member has caught up.
const REST: Duration = Duration::from_millis(1_500);
const PATIENCE: Duration = Duration::from_secs(20);

fn rounds() -> usize {
    if std::env::var_os("MAINSTAY_LONG").is_some_and(|v| v == "1") { 20 } else { 3 }
}

async fn pin(plane: &ControlPlane, rng: &mut Rng) -> Result<()> {
    let spec = Spec {
        id: rng.next_u128(),
        tenant: "acme".into(),
        namespace: 1,
        owner: String::new(),
        blocks: vec![rng.next_u128()],
        priority: 5,
        copies_min: 1,
        ttl_ms: 60_000,
    };
    let request = on_wire(&spec);
    plane
        .call(PATIENCE, |mut client| {
            let request = request.clone();
            async move { client.create_pin(request).await }
        })
        .await?;
    Ok(())
}

/// The time of each round, sorted.
async fn measure(pace: Pace) -> Result<Vec<Duration>> {
    let mut rng = Rng::new(Rng::seed_of_run());
    let setup = Setup { pace, proxied: false, small_disk: None, clock_offsets_ms: vec![0; 3] };
    let mut fleet = Fleet::start(setup).await?;
    let mut times = Vec::new();
    for _ in 0..rounds() {
        let plane = ControlPlane::new(&fleet.addresses())?;
        pin(&plane, &mut rng).await?;
        tokio::time::sleep(REST).await;
        let leader = tokio::task::block_in_place(|| {
            let leader = fleet.wait_leader(PATIENCE)?.member;
            fleet.kill(leader)?;
            anyhow::Ok(leader)
        })?;
        let killed = Instant::now();
        pin(&plane, &mut rng).await?;
        times.push(killed.elapsed());
        tokio::task::block_in_place(|| fleet.restart(leader))?;
    }
    times.sort();
    Ok(times)
}

fn print(name: &str, pace: Pace, times: &[Duration]) {
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_millis();
    let (min, max) = pace.election_ms;
    println!(
        "failover, {name} pace (heartbeat {} ms, election {min}..{max} ms), {} rounds: p50 {} ms, p99 {} ms, \
         least {} ms",
        pace.heartbeat_ms,
        times.len(),
        at(50),
        at(99),
        at(0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_takes_pins_soon_after_the_old_one_was_killed() -> Result<()> {
    for (name, pace) in [("usual", Pace::USUAL), ("quick", Pace::QUICK)] {
        let times = measure(pace).await?;
        print(name, pace, &times);
        // A lost round of votes costs one more election timeout; a loaded machine gets several.
        let limit = Duration::from_millis(pace.election_ms.1 * 5 + 1_000);
        let worst = times[times.len() - 1];
        ensure!(worst < limit, "{name}: {worst:?} is more than {limit:?}");
    }
    Ok(())
}
