//! The members of a control plane as processes behind proxied links: started, killed, stopped, started again.
//!
//! A member keeps its ports, its data directory and its proxy over restarts. Ports lie below the system's
//! ephemeral range, so that nobody takes one while its member is down.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mainstay_proto::client::MESSAGE_BYTES_MAX;
use mainstay_proto::v1::{ListPinsRequest, StatusRequest, control_client::ControlClient};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::Process;
use crate::proxy::Net;
use crate::rng::Rng;

const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Attempts to start a member whose files are in order.
const STARTS_MAX: u32 = 5;
const START_PAUSE: Duration = Duration::from_millis(300);
/// The largest partial record that is left at the end of a log.
const TORN_BYTES_MAX: u64 = 400;
/// RocksDB's log is cut into pieces of this size, and a record's header is never split by one.
const LOG_PIECE_BYTES: u64 = 32 << 10;
const LOG_HEADER_BYTES: u64 = 7;

/// How quickly members notice the loss of their leader.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub heartbeat_ms: u64,
    pub election_ms: (u64, u64),
}

impl Pace {
    /// What `mainstay control` does unasked.
    pub const USUAL: Self = Self { heartbeat_ms: 100, election_ms: (500, 1_000) };
    /// What a quiet network in one room allows.
    pub const QUICK: Self = Self { heartbeat_ms: 50, election_ms: (150, 300) };

    /// The quick one with `MAINSTAY_PACE=quick`, else the usual one.
    pub fn of_run() -> Self {
        let quick = std::env::var_os("MAINSTAY_PACE").is_some_and(|pace| pace == "quick");
        if quick { Self::QUICK } else { Self::USUAL }
    }
}

/// How a fleet begins.
pub struct Setup {
    pub pace: Pace,
    /// Whether everybody reaches members through proxies.
    pub proxied: bool,
    /// The member that gets a small filesystem of its own where that is allowed.
    pub small_disk: Option<u64>,
    /// How far each member's wall clock is off; as many members as numbers.
    pub clock_offsets_ms: Vec<i64>,
}

/// One member.
pub struct Member {
    pub id: u64,
    listen: SocketAddr,
    /// Where others reach it: its proxy, if there is one.
    pub advertised: String,
    data: PathBuf,
    process: Option<Process>,
    /// How far its wall clock is off.
    pub clock_offset_ms: i64,
}

/// Who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    pub member: u64,
    pub term: u64,
}

/// Three or more members.
pub struct Fleet {
    pub net: Net,
    pub members: Vec<Member>,
    pace: Pace,
    runtime: Handle,
    disk: Option<SmallDisk>,
    // After the processes and the disk.
    _dir: TempDir,
}

/// A port that nobody listens on and that the system gives to nobody by itself.
pub(crate) fn quiet_port(rng: &mut Rng) -> Result<SocketAddr> {
    for _ in 0..200 {
        let port = u16::try_from(rng.pick(12_000..30_000))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between 12000 and 30000")
}

impl Fleet {
    /// Starts all members and waits until one of them leads. Runs on a runtime of several threads.
    pub async fn start(setup: Setup) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let net = Net::new(setup.clock_offsets_ms.len() as u64);
        let mut rng = Rng::new(u64::from(std::process::id()) ^ Rng::seed_of_run());
        let mut members = Vec::new();
        for (id, clock_offset_ms) in (1..).zip(setup.clock_offsets_ms) {
            let listen = quiet_port(&mut rng)?;
            let address = if setup.proxied { net.proxy(id, listen).await? } else { listen };
            let data = dir.path().join(format!("m{id}"));
            let (advertised, process) = (address.to_string(), None);
            members.push(Member { id, listen, advertised, data, process, clock_offset_ms });
        }
        let disk = match setup.small_disk {
            Some(id) => SmallDisk::mount(id, &dir.path().join(format!("m{id}")))?,
            None => None,
        };
        let (pace, runtime) = (setup.pace, Handle::current());
        let mut fleet = Self { net, members, pace, runtime, disk, _dir: dir };
        tokio::task::block_in_place(|| {
            fleet.start_all()?;
            fleet.wait_leader(Duration::from_secs(30)).map(|_| fleet)
        })
    }

    /// What clients call.
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| member.advertised.clone()).collect()
    }

    /// The member of that number.
    pub fn member(&mut self, id: u64) -> &mut Member {
        self.members.iter_mut().find(|member| member.id == id).expect("members are 1 to n")
    }

    fn spawn(&mut self, id: u64) -> Result<()> {
        let list: Vec<String> =
            self.members.iter().map(|m| format!("{}={}", m.id, m.advertised)).collect();
        let (list, pace, net) = (list.join(","), self.pace, self.net.clone());
        let member = self.member(id);
        let data = member.data.to_string_lossy().into_owned();
        let args = [
            "control".to_owned(),
            format!("--node-id={id}"),
            format!("--listen={}", member.listen),
            format!("--advertise={}", member.advertised),
            format!("--members={list}"),
            format!("--data-dir={data}"),
            format!("--heartbeat-ms={}", pace.heartbeat_ms),
            format!("--election-ms={}..{}", pace.election_ms.0, pace.election_ms.1),
            format!("--clock-offset-ms={}", member.clock_offset_ms),
        ];
        let process = Process::start(&format!("m{id}"), &args)?;
        net.set_pid(id, process.pid());
        member.process = Some(process);
        Ok(())
    }

    /// Starts a member and waits until it answers.
    pub fn restart(&mut self, id: u64) -> Result<()> {
        let mut last = None;
        for _ in 0..STARTS_MAX {
            self.spawn(id)?;
            let process = self.member(id).process.as_mut().context("it was just started")?;
            match process.wait_ready() {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
            std::thread::sleep(START_PAUSE);
        }
        Err(last.context("at least one start")?.context(format!("member {id} does not start")))
    }

    /// Starts a member that may not be able to; whether it answers within `limit`.
    pub fn try_start(&mut self, id: u64, limit: Duration) -> Result<bool> {
        self.spawn(id)?;
        let process = self.member(id).process.as_mut().context("it was just started")?;
        let started = Instant::now();
        while started.elapsed() < limit && process.ended()?.is_none() {
            std::thread::sleep(Duration::from_millis(20));
            if process.output().lines().any(|line| line.starts_with("ready ")) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Starts all members that are down.
    pub fn start_all(&mut self) -> Result<()> {
        let down: Vec<u64> =
            self.members.iter().filter(|m| m.process.is_none()).map(|m| m.id).collect();
        for id in &down {
            self.spawn(*id)?;
        }
        for id in down {
            let process = self.member(id).process.as_mut().context("it was just started")?;
            process.wait_ready()?;
        }
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        match self.member(id).process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Stops a member's clock and all else of it, until [`Fleet::go_on`].
    pub fn stop(&mut self, id: u64) -> Result<()> {
        self.signal(id, "STOP")
    }

    /// Lets a stopped member go on.
    pub fn go_on(&mut self, id: u64) -> Result<()> {
        self.signal(id, "CONT")
    }

    fn signal(&mut self, id: u64, name: &str) -> Result<()> {
        self.member(id).process.as_ref().context("a member that runs")?.signal(name)
    }

    /// What a member has said since its last start.
    pub fn output(&mut self, id: u64) -> String {
        self.member(id).process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// Members that have ended though nobody ended them, with their last words; they count as down afterwards.
    pub fn deaths(&mut self) -> Result<Vec<String>> {
        let mut deaths = Vec::new();
        for member in &mut self.members {
            let Some(process) = member.process.as_mut() else { continue };
            if let Some(code) = process.ended()? {
                let output = process.output();
                let lines: Vec<&str> = output.lines().collect();
                let last = lines[lines.len().saturating_sub(12)..].join("\n");
                deaths.push(format!("member {} ended by itself with {code}:\n{last}", member.id));
                member.process = None;
            }
        }
        Ok(deaths)
    }

    /// Who leads, by the highest term of which a member says that it leads; asked past the proxies.
    pub fn leader(&self) -> Option<Lead> {
        let running = self.members.iter().filter(|member| member.process.is_some());
        let asked = running.map(async |member| {
            let channel = mainstay_proto::client::channel(&member.listen.to_string()).ok()?;
            let mut client = ControlClient::new(channel);
            let status = client.status(StatusRequest { local_only: true, with_digest: false });
            let status = tokio::time::timeout(ASK_TIMEOUT, status).await.ok()?.ok()?.into_inner();
            let lead = Lead { member: member.id, term: status.term };
            (status.leader == member.id).then_some(lead)
        });
        let leads = self.runtime.block_on(futures::future::join_all(asked));
        leads.into_iter().flatten().max_by_key(|lead| lead.term)
    }

    /// Waits until all members show their pins at one log index, and answers with it and how many there are. What
    /// they show there must be equal to the last field, and at some index so must be the digests of their states.
    pub fn agree(&self, limit: Duration) -> Result<(u64, usize)> {
        self.agree_on_digests(limit)?;
        let started = Instant::now();
        loop {
            let shown = self.members.iter().map(async |member| {
                let channel = mainstay_proto::client::channel(&member.listen.to_string())?;
                let mut client =
                    ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                let all = ListPinsRequest { all_states: true, local: true, ..Default::default() };
                Ok::<_, tonic::Status>(client.list_pins(all).await?.into_inner())
            });
            let shown = futures::future::try_join_all(shown);
            let shown =
                self.runtime.block_on(async { tokio::time::timeout(ASK_TIMEOUT, shown).await });
            if let Ok(Ok(shown)) = shown
                && shown.iter().all(|list| list.log_index == shown[0].log_index)
            {
                let same = shown.iter().all(|list| list.pins == shown[0].pins);
                ensure!(same, "members differ at one log index: {shown:#?}");
                return Ok((shown[0].log_index, shown[0].pins.len()));
            }
            ensure!(started.elapsed() < limit, "members are at no common index after {limit:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn agree_on_digests(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let told = self.members.iter().map(async |member| {
                let channel = mainstay_proto::client::channel(&member.listen.to_string())?;
                let asked = StatusRequest { local_only: true, with_digest: true };
                let reply = ControlClient::new(channel).status(asked).await?.into_inner();
                Ok::<_, tonic::Status>((reply.digest_index, reply.digest))
            });
            let told = futures::future::try_join_all(told);
            let told =
                self.runtime.block_on(async { tokio::time::timeout(ASK_TIMEOUT, told).await });
            if let Ok(Ok(told)) = told
                && told.iter().all(|(index, _)| *index == told[0].0)
            {
                let (index, digest) = &told[0];
                let same = digest.len() == 16 && told.iter().all(|(_, other)| other == digest);
                ensure!(same, "states differ at entry {index}: {told:?}");
                println!("states are equal at entry {index}");
                return Ok(());
            }
            ensure!(started.elapsed() < limit, "members are at no common index after {limit:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until somebody leads.
    pub fn wait_leader(&self, limit: Duration) -> Result<Lead> {
        let started = Instant::now();
        loop {
            if let Some(lead) = self.leader() {
                return Ok(lead);
            }
            ensure!(started.elapsed() < limit, "nobody leads after {limit:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Leaves the beginning of a record at the end of a dead member's log, as a machine that dies while it writes
    /// does: bytes that were never acknowledged. False if the log ends where a record can't begin like that.
    pub fn tear_log(&mut self, id: u64, rng: &mut Rng) -> Result<bool> {
        let folder = self.member(id).data.join("log");
        let mut logs: Vec<PathBuf> = fs::read_dir(&folder)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect();
        logs.sort();
        let newest = logs.last().context("a member has a log")?;
        let bytes = fs::metadata(newest)?.len();
        let left = LOG_PIECE_BYTES - bytes % LOG_PIECE_BYTES;
        if left < LOG_HEADER_BYTES + TORN_BYTES_MAX {
            return Ok(false);
        }
        // A header of a whole record (checksum, length, kind), and less than it says.
        let length = rng.pick(2..TORN_BYTES_MAX);
        let mut record = rng.draw().to_le_bytes()[..4].to_vec();
        record.extend(u16::try_from(length)?.to_le_bytes());
        record.push(1);
        record.extend((0..rng.pick(0..length)).map(|n| n.to_le_bytes()[0]));
        let mut file = fs::OpenOptions::new().append(true).open(newest)?;
        std::io::Write::write_all(&mut file, &record)?;
        Ok(true)
    }

    /// The member whose disk can be filled.
    pub fn small_disk(&self) -> Option<u64> {
        self.disk.as_ref().map(|disk| disk.member)
    }

    /// Fills the small disk to the last byte.
    pub fn fill_disk(&self) -> Result<()> {
        self.disk.as_ref().context("a small disk")?.fill()
    }

    /// Frees what [`Fleet::fill_disk`] took.
    pub fn free_disk(&self) -> Result<()> {
        self.disk.as_ref().context("a small disk")?.free()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A disk in use can't be unmounted.
        for member in &mut self.members {
            member.process = None;
        }
    }
}

/// A filesystem of a few megabytes in memory, mounted over a member's data directory.
struct SmallDisk {
    member: u64,
    path: PathBuf,
}

const DISK_BYTES: u64 = 256 << 20;
const FILLER: &str = "filler";

impl SmallDisk {
    /// Mounts it; nothing, with a printed reason, where that is not allowed.
    fn mount(member: u64, path: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(path)?;
        let size = format!("size={DISK_BYTES}");
        let args = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let mounted = Command::new("mount").args(args).arg(path).output();
        match mounted {
            Ok(output) if output.status.success() => {
                // The data directory proper must be empty at first: the filler lies beside it.
                Ok(Some(Self { member, path: path.to_owned() }))
            }
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                println!("no full disk: mounting a small filesystem was refused: {why}");
                Ok(None)
            }
            Err(error) => {
                println!("no full disk: {error}");
                Ok(None)
            }
        }
    }

    fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.path.join(FILLER))?;
        for size in [1 << 20, 4 << 10, 1] {
            let chunk = vec![7_u8; size];
            while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.path.join(FILLER))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a member's last files may still be closing. What stays mounted is memory of this machine only.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
