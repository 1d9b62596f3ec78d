//! Several datacenters on one machine: in each a member, a gateway and perhaps a worker, and between them links as slow
//! as the sea is wide.
//!
//! Every process is an end of the proxies' network, so that what a gateway asks of another datacenter's member or worker
//! takes its time, each way. The test itself calls gateways directly: it is a client in their own datacenter.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_proto::client::ControlPlane;
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use tempfile::TempDir;

use crate::fleet::{Pace, quiet_port};
use crate::proxy::{Net, Pass};
use crate::rng::Rng;
use crate::{Client, Process};

/// How long the cluster may take to come up.
const START: Duration = Duration::from_secs(90);

/// One datacenter.
pub struct Site {
    pub name: String,
    /// Its member's address past the proxies.
    pub member: SocketAddr,
    /// Its member has no vote.
    pub learner: bool,
    pub gateway_url: String,
    pub has_worker: bool,
}

/// What to build.
pub struct Plan<'a> {
    pub pace: Pace,
    /// Name, whether its member is a learner, whether it has a worker.
    pub sites: &'a [(&'a str, bool, bool)],
    /// The time a packet takes from one site to another.
    pub one_way: &'a dyn Fn(usize, usize) -> Duration,
}

/// A cluster over several datacenters.
pub struct Datacenters {
    pub net: Net,
    pub sites: Vec<Site>,
    /// Members' addresses past the proxies.
    direct: Vec<String>,
    _processes: Vec<Process>,
    _dir: TempDir,
}

/// The kinds of ends that a site has; an end's number is its kind's turn and its site.
const KINDS: u64 = 3;
const MEMBER: u64 = 0;
const GATEWAY: u64 = 1;
const WORKER: u64 = 2;

impl Datacenters {
    /// Starts everything and waits until all gateways can serve.
    pub async fn start(plan: &Plan<'_>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let count = plan.sites.len() as u64;
        let end = |kind: u64, site: usize| kind * count + site as u64 + 1;
        let net = Net::new(KINDS * count);
        slow_down(&net, plan, &end);
        let mut rng = Rng::new(u64::from(std::process::id()) ^ Rng::seed_of_run());
        let config = dir.path().join("mainstay.toml");
        std::fs::write(&config, "[engine]\nblocks = 512\nthreads = 1\npin_fraction = 0.8\n")?;
        let (mut listens, mut advertised) = (Vec::new(), Vec::new());
        for site in 0..plan.sites.len() {
            let listen = quiet_port(&mut rng)?;
            advertised.push(net.proxy(end(MEMBER, site), listen).await?.to_string());
            listens.push(listen);
        }
        let voters: Vec<usize> = (0..plan.sites.len()).filter(|s| !plan.sites[*s].1).collect();
        let list = |sites: &[usize], numbered: bool| {
            let one = |s: &usize| match numbered {
                true => format!("{}={}", s + 1, advertised[*s]),
                false => advertised[*s].clone(),
            };
            sites.iter().map(one).collect::<Vec<_>>().join(",")
        };
        let all: Vec<usize> = (0..plan.sites.len()).collect();
        let mut processes = Vec::new();
        let mut sites = Vec::new();
        for (site, (name, learner, has_worker)) in plan.sites.iter().enumerate() {
            let data = dir.path().join(format!("m{}", site + 1));
            let mut args = vec![
                "control".to_owned(),
                format!("--node-id={}", site + 1),
                format!("--region={name}"),
                format!("--listen={}", listens[site]),
                format!("--advertise={}", advertised[site]),
                format!("--data-dir={}", data.to_string_lossy()),
                format!("--heartbeat-ms={}", plan.pace.heartbeat_ms),
                format!("--election-ms={}..{}", plan.pace.election_ms.0, plan.pace.election_ms.1),
            ];
            match learner {
                true => {
                    args.extend([format!("--join={}", list(&voters, false)), "--learner".into()])
                }
                false => args.push(format!("--members={}", list(&voters, true))),
            }
            start(&net, end(MEMBER, site), &format!("m-{name}"), &args, &mut processes)?;
            if *has_worker {
                let listen = quiet_port(&mut rng)?;
                let advertise = net.proxy(end(WORKER, site), listen).await?;
                let args = vec![
                    "worker".to_owned(),
                    format!("--control={}", list(&all, false)),
                    format!("--name=w-{name}"),
                    format!("--region={name}"),
                    format!("--listen={listen}"),
                    format!("--advertise={advertise}"),
                    format!("--config={}", config.to_string_lossy()),
                ];
                start(&net, end(WORKER, site), &format!("w-{name}"), &args, &mut processes)?;
            }
            let listen = quiet_port(&mut rng)?;
            let args = vec![
                "gateway".to_owned(),
                // It finds its region's member by itself, whoever it is told of.
                format!("--control={}", list(&voters, false)),
                format!("--region={name}"),
                format!("--listen={listen}"),
            ];
            start(&net, end(GATEWAY, site), &format!("g-{name}"), &args, &mut processes)?;
            sites.push(Site {
                name: (*name).to_owned(),
                member: listens[site],
                learner: *learner,
                gateway_url: format!("http://{listen}"),
                has_worker: *has_worker,
            });
        }
        let direct = listens.iter().map(ToString::to_string).collect();
        let cluster = Self { net, sites, direct, _processes: processes, _dir: dir };
        cluster.wait_until_whole().await?;
        Ok(cluster)
    }

    /// Every gateway routes to every worker and follows its own region's member.
    async fn wait_until_whole(&self) -> Result<()> {
        let workers = self.sites.iter().filter(|s| s.has_worker).count();
        for site in &self.sites {
            let live = |status: &serde_json::Value| {
                let live = status["workers"].as_array()?.iter().filter(|w| w["state"] == "live");
                let near = status["region"] == site.name.as_str();
                (live.count() == workers && near).then_some(())
            };
            let client = self.client(site);
            client.wait_for("/api/v1/status", START, live).await?;
            let ready = |body: &serde_json::Value| (body["ready"] == true).then_some(());
            client.wait_for("/readyz", START, ready).await?;
        }
        Ok(())
    }

    /// The site of that name.
    pub fn site(&self, name: &str) -> &Site {
        self.sites.iter().find(|s| s.name == name).expect("sites are named by the test")
    }

    /// A client in that datacenter.
    pub fn client(&self, site: &Site) -> Client {
        Client::new(&site.gateway_url)
    }

    /// Cuts a datacenter off, or puts it back.
    pub fn cut(&self, name: &str, pass: Pass) {
        let count = self.sites.len() as u64;
        let Some(at) = self.sites.iter().position(|s| s.name == name) else { return };
        let of_site = |end: u64| (end - 1) % count == at as u64;
        for from in 1..=KINDS * count {
            for to in 1..=KINDS * count {
                if of_site(from) != of_site(to) {
                    self.net.change(from, to, |link| link.pass = pass);
                }
            }
        }
    }

    /// Who leads, as a site; asked past the proxies.
    pub async fn leader(&self) -> Option<&Site> {
        let mut best: Option<(u64, usize)> = None;
        for (at, address) in self.direct.iter().enumerate() {
            let Ok(channel) = mainstay_proto::client::channel(address) else { continue };
            let mut client = ControlClient::new(channel);
            let asked = client
                .status(v1::StatusRequest { local_only: true, ..v1::StatusRequest::default() });
            let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), asked).await else {
                continue;
            };
            let status = status.into_inner();
            if status.leader == at as u64 + 1 && best.is_none_or(|(term, _)| status.term > term) {
                best = Some((status.term, at));
            }
        }
        best.map(|(_, at)| &self.sites[at])
    }

    /// Hands the lead to a site's member.
    pub async fn lead_from(&self, name: &str) -> Result<()> {
        let at = self.sites.iter().position(|s| s.name == name).context("a site")?;
        let plane = ControlPlane::new(&self.direct)?;
        let begun = Instant::now();
        while self.leader().await.is_none_or(|site| site.name != name) {
            ensure!(begun.elapsed() < START, "{name} does not take the lead");
            let id = at as u64 + 1;
            for _ in 0..self.direct.len() {
                // Whoever does not lead says so; the next one is asked.
                let mut client = plane.current();
                let asked = client.transfer_leader(v1::TransferLeaderRequest { id });
                let _ = tokio::time::timeout(Duration::from_secs(4), asked).await;
                plane.rotate();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }
}

fn slow_down(net: &Net, plan: &Plan<'_>, end: &dyn Fn(u64, usize) -> u64) {
    let count = plan.sites.len();
    for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
        if from == to {
            continue;
        }
        let delay = (plan.one_way)(from, to);
        for (kind, other) in (0..KINDS).flat_map(|kind| (0..KINDS).map(move |o| (kind, o))) {
            net.change(end(kind, from), end(other, to), |link| link.delay = delay);
        }
    }
}

fn start(
    net: &Net,
    end: u64,
    name: &str,
    args: &[String],
    processes: &mut Vec<Process>,
) -> Result<()> {
    let process = Process::start(name, args)?;
    net.set_pid(end, process.pid());
    processes.push(process);
    Ok(())
}
