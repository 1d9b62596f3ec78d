//! What metrics and traces cost: the same cluster four times side by side, bare, with metrics, with metrics and traces
//! as they are unless told otherwise, and with traces of every request; each takes the same load by turns, and the
//! others rest meanwhile.
//!
//! `observing_cost [ROUNDS] [SECONDS] [AT_ONCE]`. Bare is a gateway without a recorder, and a worker and a member without
//! a listener. With metrics all three keep them and are scraped once a second, which is 15 times as often as Prometheus
//! does unasked. With traces their spans go to a collector in this process. Engines are simulated and answer at once, so
//! that the machine's time is the only limit. Shares are medians of rounds, each held against the bare one of its round.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::collector::collect;
use mainstay_cluster_tests::{Client, Process, binary, free_port};
use serde_json::{Value, json};

/// Lines of a session's first message, some 20 tokens each.
const LINES: u64 = 100;
const TURNS: usize = 8;
const VARIANTS: usize = 4;
const SCRAPED: Duration = Duration::from_secs(1);

/// A cluster of three processes.
struct Variant {
    name: &'static str,
    url: String,
    /// Where metrics are.
    scraped: Vec<String>,
    processes: Vec<Process>,
}

impl Variant {
    fn start(name: &'static str, dir: &Path, metrics: bool, traces: &[String]) -> Result<Self> {
        let ports: Vec<String> = (0..4).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let [control, gateway, of_member, of_worker] = ports.as_slice() else { unreachable!() };
        let data = dir.join(name);
        let listen = |at: &String| metrics.then(|| format!("--metrics-listen={at}"));
        let switch = format!("MAINSTAY_METRICS={}", if metrics { "on" } else { "off" });
        let start = |role: &str, args: Vec<String>| {
            let mut all =
                vec![switch.clone(), binary().to_string_lossy().into_owned(), role.into()];
            all.extend(args);
            let mut process = Process::start_as(Path::new("env"), role, &all)?;
            // A gateway is ready once it has a worker, a worker once it has a member.
            process.wait_ready().map(|_| process)
        };
        let mut member = vec![
            "--node-id=1".to_owned(),
            format!("--listen={control}"),
            format!("--members=1={control}"),
            format!("--data-dir={}", data.display()),
        ];
        member.extend(listen(of_member));
        let mut worker =
            vec![format!("--control={control}"), "--name=w1".to_owned(), "--engine=sim".to_owned()];
        worker.extend(listen(of_worker));
        // Traces begin at gateways; how many is for them to say.
        worker.extend(traces.first().cloned());
        let mut front = vec![format!("--control={control}"), format!("--listen={gateway}")];
        front.extend_from_slice(traces);
        let processes =
            vec![start("control", member)?, start("worker", worker)?, start("gateway", front)?];
        let scraped = [gateway, of_member, of_worker];
        let scraped = scraped.map(|at| format!("http://{at}/metrics"));
        let scraped = if metrics { scraped.to_vec() } else { Vec::new() };
        Ok(Self { name, url: format!("http://{gateway}"), scraped, processes })
    }

    /// Seconds of processor time that its processes have taken.
    fn cpu(&self) -> Result<f64> {
        self.processes.iter().map(|process| cpu_of(process.pid())).sum()
    }
}

fn cpu_of(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(") ").context("stat has a name")?.1;
    let fields: Vec<&str> = after.split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

/// What one variant did in one round.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    cpu_ms: f64,
}

async fn session(client: &Client, number: u64, until: Instant, done: &AtomicU64) -> Result<()> {
    let line = |n: u64| format!("file {} of {number} says {}", n * 31, number.wrapping_mul(n + 7));
    let first = (0..LINES).map(line).collect::<Vec<_>>().join("\n");
    let mut messages = vec![json!({"role": "user", "content": first})];
    for turn in 0..TURNS {
        if Instant::now() >= until {
            return Ok(());
        }
        let said = client.chat(&json!(messages), 8).await?;
        let said = said.pointer("/choices/0/message").context("an answer")?;
        messages.push(said.clone());
        messages.push(json!({"role": "user", "content": format!("And {turn}?")}));
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn load(variant: &Variant, seconds: u64, at_once: u64, fresh: &AtomicU64) -> Result<Round> {
    let client = Client::new(&variant.url);
    let (begun, cpu, done) = (Instant::now(), variant.cpu()?, AtomicU64::new(0));
    let until = begun + Duration::from_secs(seconds);
    let ended = AtomicBool::new(false);
    let scrape = async {
        while !variant.scraped.is_empty() && !ended.load(Ordering::Relaxed) {
            for url in &variant.scraped {
                let text = reqwest::get(url).await?.text().await?;
                ensure!(text.contains("mainstay_build_info"), "{url}: no metrics");
            }
            tokio::time::sleep(SCRAPED).await;
        }
        Ok::<(), anyhow::Error>(())
    };
    let agents = (0..at_once).map(|_| async {
        while Instant::now() < until {
            session(&client, fresh.fetch_add(1, Ordering::Relaxed), until, &done).await?;
        }
        Ok::<(), anyhow::Error>(())
    });
    let agents = async {
        let all = futures::future::try_join_all(agents).await.map(drop);
        ended.store(true, Ordering::Relaxed);
        all
    };
    tokio::try_join!(agents, scrape)?;
    let done = done.load(Ordering::Relaxed).max(1) as f64;
    let (took, cpu) = (begun.elapsed().as_secs_f64(), variant.cpu()? - cpu);
    Ok(Round { per_second: done / took, cpu_ms: cpu * 1e3 / done })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() -> Result<()> {
    let asked: Vec<u64> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let of = |at: usize, unasked: u64| asked.get(at).copied().unwrap_or(unasked).max(1);
    let (rounds, seconds, at_once) = (of(0, 15), of(1, 4), of(2, 8));
    let dir = tempfile::tempdir()?;
    let spans = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&spans);
    let traces = collect(move |request| {
        let scopes = request.resource_spans.into_iter().flat_map(|r| r.scope_spans);
        counted.fetch_add(scopes.map(|scope| scope.spans.len() as u64).sum(), Ordering::Relaxed);
    });
    let traces = [format!("--traces={}", traces.await?)];
    let every = [format!("--traces-per-second={}", u32::MAX)];
    let variants = tokio::task::block_in_place(|| {
        Ok::<_, anyhow::Error>([
            Variant::start("bare", dir.path(), false, &[])?,
            Variant::start("metrics", dir.path(), true, &[])?,
            Variant::start("metrics and traces", dir.path(), true, &traces)?,
            Variant::start(
                "and of every request",
                dir.path(),
                true,
                &[traces.clone(), every].concat(),
            )?,
        ])
    })?;
    let fresh = AtomicU64::new(1);
    for variant in &variants {
        load(variant, seconds, at_once, &fresh).await?;
    }
    let mut all: Vec<[Round; VARIANTS]> = Vec::new();
    for round in 0..rounds as usize {
        let mut of_round = [Round { per_second: 0.0, cpu_ms: 0.0 }; VARIANTS];
        // Each begins in turn.
        for at in (0..VARIANTS).map(|at| (at + round) % VARIANTS) {
            of_round[at] = load(&variants[at], seconds, at_once, &fresh).await?;
        }
        all.push(of_round);
    }
    let mut report = Vec::new();
    for (at, variant) in variants.iter().enumerate() {
        let mid = |of: &dyn Fn(&[Round; VARIANTS]) -> f64| median(all.iter().map(of).collect());
        report.push(json!({
            "variant": variant.name,
            "requests_per_second": mid(&|round| round[at].per_second),
            "cpu_ms_per_request": mid(&|round| round[at].cpu_ms),
            "throughput_of_bare": mid(&|round| round[at].per_second / round[0].per_second),
            "cpu_of_bare": mid(&|round| round[at].cpu_ms / round[0].cpu_ms),
        }));
    }
    let spans = spans.load(Ordering::Relaxed);
    ensure!(spans > 0, "no spans came");
    let report: Value = json!({"rounds": rounds, "seconds": seconds, "at_once": at_once, "spans": spans, "variants": report});
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
