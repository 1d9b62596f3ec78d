//! Three datacenters with votes, 40 and 100 ms apart, and a fourth with a learner: what writes, reads, staleness and the
//! loss of a datacenter cost, and that no answer claims to be younger than it is. A few rounds by default, a
//! hundred and six failovers with `MAINSTAY_LONG=1`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::Client;
use mainstay_cluster_tests::datacenters::{Datacenters, Plan, Site};
use mainstay_cluster_tests::fleet::Pace;
use mainstay_cluster_tests::proxy::Pass;
use serde_json::{Value, json};

/// The pace that the operators' page names for links of 100 ms.
const WIDE: Pace = Pace { heartbeat_ms: 250, election_ms: (1_000, 2_000) };
/// `a` and `b` are 40 ms apart, there and back; all others 100.
const SITES: [(&str, bool, bool); 4] =
    [("a", false, true), ("b", false, true), ("c", false, true), ("d", true, false)];

fn one_way(from: usize, to: usize) -> Duration {
    Duration::from_millis(if from.max(to) == 1 { 20 } else { 50 })
}

fn is_long() -> bool {
    std::env::var_os("MAINSTAY_LONG").is_some_and(|v| v == "1")
}

fn rounds() -> usize {
    if is_long() { 100 } else { 12 }
}

/// A sorted sample.
struct Sample(Vec<f64>);

impl Sample {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    fn at(&self, percent: usize) -> f64 {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.1}, p99 {:.1} ms ({} times)", self.at(50), self.at(99), self.0.len())
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// A prefix of its own, of some blocks.
fn pin_body(words: &str, scope: &str) -> Value {
    let text = format!("{words} is the number of this prompt; it is long enough for some blocks. ");
    let content = text.repeat(4);
    json!({
        "model": "demo", "ttl": "30m", "scope": scope,
        "messages": [{"role": "system", "content": content}],
    })
}

async fn pin(client: &Client, words: &str, scope: &str) -> Result<String> {
    let reply = client.post("/v1/pins", &pin_body(words, scope)).await?;
    ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
    Ok(reply.body["id"].as_str().context("a pin has an id")?.to_owned())
}

/// Pins are seen everywhere, and no answer without one that was acknowledged claims to be younger than that.
async fn answers_are_as_old_as_they_say(cluster: &Datacenters) -> Result<()> {
    let (writer, mut seen_late) = (cluster.client(cluster.site("a")), 0);
    for round in 0..rounds().min(40) {
        let id = pin(&writer, &format!("true {round}"), "region").await?;
        let acknowledged = Instant::now();
        let looking = cluster.sites.iter().map(async |site| {
            let client = cluster.client(site);
            let mut late = 0;
            loop {
                let asked_ms = ms(acknowledged);
                let list = client.get("/v1/pins?consistency=local").await?;
                ensure!(list.status == 200, "{}", list.body);
                let pins = list.body["data"].as_array().context("a list")?;
                if pins.iter().any(|p| p["id"] == id.as_str()) {
                    return Ok(late);
                }
                let age_ms = list.body["index_age_ms"].as_f64().context("an age")?;
                ensure!(
                    age_ms >= asked_ms - 1.0,
                    "{}: says {age_ms} ms, lacks what was acknowledged {asked_ms} ms before",
                    site.name
                );
                ensure!(list.age_ms == Some(age_ms as u64), "{:?} in the header", list.age_ms);
                ensure!(asked_ms < 10_000.0, "{} never shows the pin", site.name);
                late += 1;
            }
        });
        let late: Vec<u32> = futures::future::try_join_all(looking).await?;
        seen_late += late.iter().sum::<u32>();
    }
    println!("{seen_late} answers lacked a pin that was acknowledged before, and all said so");
    ensure!(seen_late > 0, "no read was ever behind: the delays are not there");
    Ok(())
}

async fn measure_site(cluster: &Datacenters, site: &Site, role: &str) -> Result<(Sample, Sample)> {
    let client = cluster.client(site);
    let (mut writes, mut local, mut strict, mut ages) = (vec![], vec![], vec![], vec![]);
    let id = pin(&client, &format!("read {}", site.name), "region").await?;
    for round in 0..rounds() {
        let begun = Instant::now();
        pin(&client, &format!("write {} {round}", site.name), "region").await?;
        writes.push(ms(begun));
        for (times, consistency) in [(&mut local, "local"), (&mut strict, "linearizable")] {
            let begun = Instant::now();
            let reply = client.get(&format!("/v1/pins/{id}?consistency={consistency}")).await?;
            times.push(ms(begun));
            if reply.status == 200 && consistency == "linearizable" {
                ensure!(reply.age_ms == Some(0), "a linearizable read is {:?} old", reply.age_ms);
            }
        }
    }
    for _ in 0..rounds() * 8 {
        let reply = client.get("/v1/models").await?;
        ages.push(reply.age_ms.context("an answer's age")? as f64);
        tokio::time::sleep(Duration::from_millis(13)).await;
    }
    let (writes, local, strict, ages) =
        (Sample::new(writes), Sample::new(local), Sample::new(strict), Sample::new(ages));
    let name = &site.name;
    println!("{name} ({role}): pin writes         {writes}");
    println!("{name} ({role}): linearizable reads {strict}");
    println!("{name} ({role}): local reads        {local}");
    println!("{name} ({role}): index staleness    {ages}");
    Ok((local, ages))
}

/// Requests stay in their region; where there is no worker, the answer says why one of another was taken.
async fn requests_stay_near(cluster: &Datacenters) -> Result<()> {
    for site in &cluster.sites {
        let client = cluster.client(site);
        let mut times = Vec::new();
        for turn in 0..3 {
            let begun = Instant::now();
            client.chat(&json!([{"role": "user", "content": format!("hello {turn}")}]), 2).await?;
            times.push(ms(begun));
            let explained = client.get("/api/v1/requests/last/explain").await?.body;
            let near = explained["region"] == site.name.as_str();
            ensure!(near == site.has_worker, "{}: {explained}", site.name);
            let reason = explained["reason"].as_str().unwrap_or_default();
            ensure!(reason.contains("another region") != site.has_worker, "{explained}");
        }
        println!("{}: completions of 2 tokens {}", site.name, Sample::new(times));
    }
    Ok(())
}

/// A datacenter without the majority: reads go on and say how old they are, pins can't be made and that is told.
async fn reads_go_on_when_cut_off(cluster: &Datacenters, name: &str, id: &str) -> Result<()> {
    let client = cluster.client(cluster.site(name));
    let begun = Instant::now();
    let mut ages = Vec::new();
    while begun.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        let reply = client.get(&format!("/v1/pins/{id}?consistency=local")).await?;
        ensure!(
            reply.status == 200,
            "{name} is cut off and answers {}: {}",
            reply.status,
            reply.body
        );
        ages.push((ms(begun), reply.age_ms.context("an age")?, ms(asked)));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (first, last) = (ages[0], ages[ages.len() - 1]);
    let grown = last.1 as f64 - first.1 as f64;
    let passed = last.0 - first.0;
    println!(
        "{name}, cut off: {} local reads, the slowest {:.1} ms; age from {} to {} ms in {passed:.0} ms",
        ages.len(),
        ages.iter().map(|a| a.2).fold(0.0, f64::max),
        first.1,
        last.1
    );
    ensure!(
        grown > passed - 700.0,
        "the age of a region that is cut off grows with time: {ages:?}"
    );
    let refused = client.post("/v1/pins", &pin_body("cut off", "region")).await?;
    ensure!(refused.status == 503, "{}: {}", refused.status, refused.body);
    ensure!(refused.retry_after.is_some(), "503 says when to try again");
    let status = client.get("/api/v1/status").await?;
    ensure!(status.status == 200, "{}", status.body);
    ensure!(status.body["index_age_ms"].as_u64().is_some_and(|age| age > 3_000), "{}", status.body);
    Ok(())
}

async fn fresh_again(cluster: &Datacenters, name: &str) -> Result<()> {
    let begun = Instant::now();
    let client = cluster.client(cluster.site(name));
    let fresh = |body: &Value| body["index_age_ms"].as_u64().filter(|age| *age < 1_500);
    client.wait_for("/readyz", Duration::from_secs(30), fresh).await?;
    println!("{name}, whole again: fresh after {:.0} ms", ms(begun));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datacenters_read_locally_and_say_how_old_answers_are() -> Result<()> {
    let plan = Plan { pace: WIDE, sites: &SITES, one_way: &one_way };
    let cluster = Datacenters::start(&plan).await?;
    cluster.lead_from("a").await?;
    answers_are_as_old_as_they_say(&cluster).await?;
    for site in &cluster.sites {
        let role = match (site.name.as_str(), site.learner) {
            ("a", _) => "leader",
            (_, true) => "learner",
            (_, false) => "follower",
        };
        let (local, ages) = measure_site(&cluster, site, role).await?;
        ensure!(local.at(50) < 40.0, "{}: local reads take {local}", site.name);
        ensure!(ages.at(50) < 1_500.0, "{}: staleness {ages}", site.name);
    }
    requests_stay_near(&cluster).await?;
    let id = pin(&cluster.client(cluster.site("a")), "global", "global").await?;
    let shown = cluster.client(cluster.site("b")).get(&format!("/v1/pins/{id}")).await?.body;
    ensure!(shown["scope"] == "global", "{shown}");
    // The learner's datacenter is cut off.
    let d = cluster.client(cluster.site("d"));
    let found = |list: &Value| {
        list["data"].as_array()?.iter().any(|p| p["id"] == id.as_str()).then_some(())
    };
    d.wait_for("/v1/pins?consistency=local", Duration::from_secs(10), found).await?;
    cluster.cut("d", Pass::Swallow);
    reads_go_on_when_cut_off(&cluster, "d", &id).await?;
    cluster.cut("d", Pass::Through);
    fresh_again(&cluster, "d").await?;
    // The leader's datacenter is lost.
    let (mut times, mut elections) = (Vec::new(), Vec::new());
    for round in 0..if is_long() { 6 } else { 1 } {
        cluster.lead_from("a").await?;
        pin(&cluster.client(cluster.site("b")), &format!("before {round}"), "region").await?;
        cluster.cut("a", Pass::Swallow);
        let begun = Instant::now();
        let b = cluster.client(cluster.site("b"));
        let writing = async {
            loop {
                let body = pin_body(&format!("after {round}"), "region");
                let asked = b.post("/v1/pins", &body).await?;
                if asked.status == 200 {
                    return anyhow::Ok(ms(begun));
                }
                ensure!(asked.status == 503, "{}: {}", asked.status, asked.body);
                ensure!(begun.elapsed() < Duration::from_secs(60), "nobody leads");
            }
        };
        let electing = async {
            while cluster.leader().await.is_none_or(|site| site.name == "a") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ms(begun)
        };
        let (written, elected) = tokio::join!(writing, electing);
        times.push(written?);
        elections.push(elected);
        if round == 0 {
            reads_go_on_when_cut_off(&cluster, "a", &id).await?;
        }
        cluster.cut("a", Pass::Through);
        fresh_again(&cluster, "a").await?;
    }
    println!("another leader after the leader's datacenter was lost: {}", Sample::new(elections));
    println!("pin writes from b after the leader's datacenter was lost: {}", Sample::new(times));
    Ok(())
}
