//! A worker of a world: the real one, with the real engine behind the C boundary, that can be ended, begun anew, asked
//! for answers and held to what it claims.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mainstay_engine_abi::sdk::entry_point;
use mainstay_engine_host::Source;
use mainstay_native::NativeEngine;
use mainstay_proto::tokens::pack;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_types::{NamespaceId, SequenceHash, Tier};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::bent::Bent;
use super::truth::{Answer, Draw, digest};
use crate::engine::{Engine, HostOpener, Opener, Opening, Receivers};
use crate::events::frames::FrameLimits;
use crate::lifecycle::{WorkerHandle, start_with};
use crate::shared::{Life, Shared};
use crate::tests::fake_control::FakeControl;
use crate::tiers::{DiskConfig, RemoteConfig, TierConfig};

/// How long claims may differ from what is held: until the last events have come through.
const SETTLED: Duration = Duration::from_secs(20);
/// What the engine is said to take for a prompt: a model so small is computed before a neighbour could be asked, and
/// nothing would ever be loaded.
const PREFILL_US: u64 = 2_000_000;

/// What all seats know of blocks: whose they are, and the digest of what they hold.
pub(super) type Blocks = HashMap<SequenceHash, (NamespaceId, u64)>;

/// Opens the native engine, and has it be slow by its own word.
struct Slow {
    inner: HostOpener,
    /// Takes one bit of each import in wrongly.
    bent: bool,
}

impl Opener for Slow {
    fn open(&self, config_json: String) -> BoxFuture<'_, Opening> {
        async move {
            let (engine, receivers) = self.inner.open(config_json).await?;
            let engine = if self.bent { Arc::new(Bent(engine)) as Arc<dyn Engine> } else { engine };
            let Receivers { mut outputs, kv, ops, exit } = receivers;
            let (slowed, from) = mpsc::channel(1_024);
            tokio::spawn(async move {
                while let Some(mut batch) = outputs.recv().await {
                    for output in batch.iter_mut().filter(|output| output.prefill_us > 0) {
                        output.prefill_us = PREFILL_US;
                    }
                    if slowed.send(batch).await.is_err() {
                        return;
                    }
                }
            });
            Ok((engine, Receivers { outputs: from, kv, ops, exit }))
        }
        .boxed()
    }
}

/// What a seat is made of each time that it is taken.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) engine: Map<String, Value>,
    pub(super) tiers: TierConfig,
    pub(super) bent: bool,
}

impl Plan {
    /// The `at`-th worker of a world: host memory, disk and store, host memory alone, or nothing at all.
    pub(super) fn of(at: usize, engine: Map<String, Value>, folder: &Path) -> Self {
        let address = format!("file://{}", folder.join("store").display());
        let remote = Some(RemoteConfig { address, endpoint: None, region: None });
        let disk = DiskConfig { folder: folder.join(format!("disk-{at}")), bytes: 2 << 20 };
        let tiers = match at {
            0 => TierConfig { host_bytes: 1 << 20, disk: Some(disk), remote },
            1 => TierConfig { host_bytes: 1 << 20, disk: None, remote: None },
            2 => TierConfig { remote, ..TierConfig::default() },
            _ => TierConfig::default(),
        };
        Self { name: format!("w{at}"), engine, tiers, bent: false }
    }
}

/// A worker that runs.
pub(in crate::tests) struct Seat {
    pub(super) plan: Plan,
    pub(super) worker: WorkerHandle,
    pub(super) address: String,
    client: WorkerClient<Channel>,
}

/// One question.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) namespace: NamespaceId,
    pub(super) prompt: Vec<u32>,
    pub(super) draw: Draw,
    pub(super) sources: Vec<v1::BlockSource>,
    pub(super) ranges: Vec<v1::RetentionRange>,
    pub(super) leases: Vec<bytes::Bytes>,
}

impl Question {
    fn wire(&self) -> v1::GenerateRequest {
        let (temperature, top_p) = self.draw.heat();
        v1::GenerateRequest {
            namespace: self.namespace.0.to_le_bytes().to_vec().into(),
            tokens: pack(&self.prompt),
            sampling: Some(v1::Sampling {
                temperature,
                top_p,
                repetition_penalty: 1.0,
                tokens_max: self.draw.tokens,
                seed: self.draw.seed,
                ignore_eos: true,
                logprobs: 3,
                ..v1::Sampling::default()
            }),
            ranges: self.ranges.clone(),
            leases: self.leases.clone(),
            sources: self.sources.clone(),
            ..v1::GenerateRequest::default()
        }
    }
}

/// What came of a question.
#[derive(Debug)]
pub(super) enum Came {
    /// The answer, and how many tokens of the prompt were cached.
    Answer(Answer, u32),
    /// Pins hold the blocks that it needs.
    NoRoom,
}

impl Seat {
    pub(super) async fn take(plan: Plan, control: &FakeControl) -> Self {
        let mut settings = crate::tests::settings(control);
        settings.name.clone_from(&plan.name);
        settings.engine_config.clone_from(&plan.engine);
        settings.tiers = plan.tiers.clone();
        settings.requests_max = 16;
        settings.engine_restarts_max = 1_000;
        let source = Source::Linked(entry_point::<NativeEngine>());
        let opener = Arc::new(Slow { inner: HostOpener(source), bent: plan.bent });
        let worker = start_with(settings, opener, FrameLimits::standard()).await.expect("starts");
        let address = worker.address().to_string();
        let channel = mainstay_proto::client::channel(&address).expect("an address");
        Self { plan, worker, address, client: WorkerClient::new(channel) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        self.worker.shared()
    }

    fn life(&self) -> Result<Arc<Life>, String> {
        self.shared().life().ok_or_else(|| "the engine is gone".to_owned())
    }

    /// How many leading blocks the worker claims that its engine has.
    pub(super) fn claimed(&self, names: &[u128]) -> usize {
        let state = self.shared().events.lock();
        let holds = |name: &&u128| state.map.holds(SequenceHash(**name), Tier::Device);
        names.iter().take_while(holds).count()
    }

    /// Asks, and reads the answer to its end.
    pub(super) async fn ask(&self, question: &Question) -> Result<Came, String> {
        let mut client = self.client.clone();
        let mut events = match client.generate(question.wire()).await {
            Ok(events) => events.into_inner(),
            Err(status) => return refused(&status),
        };
        let (mut answer, mut cached) = (Answer::default(), 0);
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err("an answer without an end".to_owned()),
                Err(status) => return refused(&status),
            };
            let before = answer.tokens.len() as u32;
            let probable = event
                .logprobs
                .iter()
                .map(|p| (p.token, before + p.position, p.rank, p.logprob.to_bits()));
            answer.logprobs.extend(probable);
            answer.tokens.extend(&event.tokens);
            cached = cached.max(event.cached_tokens);
            match event.finish() {
                v1::Finish::Unspecified => {}
                v1::Finish::Length => return Ok(Came::Answer(answer, cached)),
                v1::Finish::Error if event.error.contains("pins") => return Ok(Came::NoRoom),
                other => return Err(format!("ended with {other:?}: {}", event.error)),
            }
        }
    }

    /// How many tokens of a prompt are cached, by one more token of it.
    pub(in crate::tests) async fn cached(
        &self,
        namespace: NamespaceId,
        prompt: &[u32],
    ) -> Result<u32, String> {
        let question = Question {
            namespace,
            prompt: prompt.to_vec(),
            draw: Draw { seed: None, tokens: 1 },
            sources: Vec::new(),
            ranges: Vec::new(),
            leases: Vec::new(),
        };
        match self.ask(&question).await? {
            Came::Answer(_, cached) => Ok(cached),
            Came::NoRoom => Err("no room".to_owned()),
        }
    }

    /// Asks, and leaves before the answer has ended.
    pub(super) async fn ask_and_leave(&self, question: &Question, after: Duration) {
        let mut client = self.client.clone();
        let asking = async {
            if let Ok(events) = client.generate(question.wire()).await {
                let mut events = events.into_inner();
                let _ = events.message().await;
            }
        };
        let _ = tokio::time::timeout(after, asking).await;
    }

    /// Changes a lease, as a gateway's order does.
    pub(super) async fn change_lease(&self, change: v1::LeaseChange) -> Result<(), String> {
        let request = v1::ChangeLeasesRequest { changes: vec![change] };
        let changed = self.client.clone().change_leases(request).await;
        changed.map(|_| ()).map_err(|status| format!("a lease is not changed: {status}"))
    }

    /// Waits until the engine is up and nothing of a client is left in it.
    pub(super) async fn calm(&self) -> Result<(), String> {
        self.within("calm", async || {
            let life = self.life()?;
            let stats = life.engine.stats().await.map_err(|error| error.to_string())?;
            let open = *self.shared().flights.count().borrow();
            if !self.worker.is_ready() || open > 0 || stats.running + stats.waiting > 0 {
                return Err(format!("{open} requests, {stats:?}"));
            }
            let claimed = self.shared().events.lock().map.held(Tier::Device) as u64;
            if claimed != stats.blocks_cached {
                return Err(format!("{claimed} blocks are claimed, {} held", stats.blocks_cached));
            }
            Ok(())
        })
        .await
    }

    /// Holds the worker to what it claims of its engine: each block is there, with the bytes that it has to have.
    pub(super) async fn check_engine(&self, blocks: &Blocks) -> Result<usize, String> {
        let mut wrong = None;
        let mut checked = 0;
        self.within("claims are true", async || {
            self.calm().await?;
            let life = self.life()?;
            let claims: Vec<u128> =
                self.shared().events.lock().map.of_tier(Tier::Device).map(|name| name.0).collect();
            if claims.is_empty() {
                return Ok(());
            }
            let bytes = life.engine.kv_export(claims.clone()).await;
            let bytes = bytes.map_err(|error| error.to_string())?;
            let of = life.info.block_bytes as usize;
            for (name, bytes) in claims.iter().zip(bytes.chunks_exact(of)) {
                let known = blocks.get(&SequenceHash(*name)).map(|(_, digest)| *digest);
                if known != Some(digest(bytes)) {
                    wrong = Some(format!(
                        "block {name:032x} of {} is not what it is: {known:?}",
                        self.plan.name
                    ));
                }
            }
            checked = bytes.len() / of;
            if checked < claims.len() {
                return Err(format!("{checked} of {} claimed blocks are there", claims.len()));
            }
            Ok(())
        })
        .await?;
        wrong.map_or(Ok(checked), Err)
    }

    /// Reads all that the local tiers are said to have.
    pub(super) async fn check_tiers(&self, blocks: &Blocks) -> Result<usize, String> {
        let Some(tiers) = self.shared().tiers().filter(|tiers| tiers.local().is_some()) else {
            return Ok(0);
        };
        let names: HashSet<SequenceHash> = {
            let state = self.shared().events.lock();
            [Tier::Host, Tier::Disk].iter().flat_map(|tier| state.map.of_tier(*tier)).collect()
        };
        let mut keys = Vec::with_capacity(names.len());
        for name in names {
            let (namespace, digest) = blocks.get(&name).ok_or_else(|| {
                format!("a tier of {} has {name}, which nobody computed", self.plan.name)
            })?;
            keys.extend(tiers.keys(*namespace, &[name]).into_iter().map(|key| (key, *digest)));
        }
        let read = tokio::task::spawn_blocking(move || {
            let local = tiers.local().expect("looked at above");
            let mut whole = 0;
            for (key, known) in keys {
                // What has gone since is gone, and nobody was told otherwise.
                let read = local.read(&[key]);
                if read.found.is_empty() {
                    continue;
                }
                if digest(&read.bytes) != known {
                    return Err(format!("a tier gives other bytes for {}", key.hash));
                }
                whole += 1;
            }
            Ok(whole)
        });
        read.await.map_err(|error| error.to_string())?
    }

    /// Tries until it holds; what it said last if it never does.
    async fn within(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        let end = tokio::time::Instant::now() + SETTLED;
        loop {
            let Err(reason) = holds().await else { return Ok(()) };
            if tokio::time::Instant::now() > end {
                return Err(format!("{}: not {what}: {reason}", self.plan.name));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn refused(status: &tonic::Status) -> Result<Came, String> {
    if status.message().contains("pins") {
        return Ok(Came::NoRoom);
    }
    Err(format!("refused: {status}"))
}
