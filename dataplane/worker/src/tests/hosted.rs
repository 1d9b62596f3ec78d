//! The worker with the real host, and an engine behind the C boundary: nothing between them is faked.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::{
    Cause, Code, Engine, EngineError, Export, Finish, HostLog, Identity, Import, Info, KvEvent,
    Lanes, LeaseChange, Output, Pin, Request, Stats, caps, entry_point,
};
use mainstay_engine_host::Source;
use mainstay_types::{BlockHasher, HashKey, NamespaceId, PinState};
use parking_lot::Mutex;

use super::fake_control::HASH_KEY;
use super::*;
use crate::config::WorkerConfig;
use crate::lifecycle::start;

pub(crate) const BLOCK_TOKENS: u32 = 4;
pub(crate) const BLOCK_BYTES: usize = 64;
const KV_LAYOUT: u64 = 11;

/// Says the prompt again, a token at a time, and keeps every block for ever, unless `"keeps"` says how many. A block's
/// bytes are its name, again and again, and nothing else is taken in.
pub(crate) struct Parrot {
    key: HashKey,
    lanes: Arc<Lanes>,
    held: Mutex<BTreeSet<u128>>,
    /// Chains in the order in which they came, where only some are kept.
    came: Mutex<VecDeque<Vec<u128>>>,
    /// Blocks beyond which the oldest chain goes.
    keeps: usize,
    /// Blocks that it takes in at most; all unless `"takes"` says otherwise.
    takes: usize,
    /// What it says that a prompt took; a millisecond unless `"prefill_us"` says otherwise.
    prefill_us: u64,
}

impl Engine for Parrot {
    const IDENTITY: Identity = Identity { vendor: "test", name: "parrot", version: "1" };
    const CAPS: u64 = caps::NAMESPACE
        | caps::KV_EVENTS
        | caps::CANONICAL_HASH
        | caps::PIN
        | caps::RETENTION
        | caps::TRANSFER
        | caps::LEASE;

    fn create(config: &str, lanes: Arc<Lanes>, _: HostLog) -> Result<Self, EngineError> {
        let config: serde_json::Value = serde_json::from_str(config)
            .map_err(|error| EngineError::invalid(error.to_string()))?;
        let key = config["hash_key"].as_str().and_then(HashKey::from_hex);
        let key = key.ok_or_else(|| EngineError::invalid("no hash key"))?;
        let takes = config["takes"].as_u64().map_or(usize::MAX, |takes| takes as usize);
        let prefill_us = config["prefill_us"].as_u64().unwrap_or(1_000);
        let keeps = config["keeps"].as_u64().map_or(usize::MAX, |keeps| keeps as usize);
        let (held, came) = (Mutex::default(), Mutex::default());
        Ok(Self { key, lanes, held, came, keeps, takes, prefill_us })
    }

    fn info(&self) -> Info {
        Info {
            block_tokens: BLOCK_TOKENS,
            vocab: 1_000,
            context_tokens_max: 4_096,
            requests_max: 64,
            blocks_total: 1_024,
            block_bytes: BLOCK_BYTES as u64,
            model: "parrot".into(),
            device: "cpu".into(),
            kv_layout: KV_LAYOUT,
            ..Info::default()
        }
    }

    fn stats(&self) -> Stats {
        let blocks_used = self.held.lock().len() as u64;
        Stats { health: mainstay_engine_abi::sdk::Health::Ok, blocks_used, ..Stats::default() }
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        let (namespace, tokens) = (NamespaceId(request.namespace), &request.tokens);
        let hashes = BlockHasher::hash_prompt(self.key, namespace, BLOCK_TOKENS, tokens);
        let blocks: Vec<u128> = hashes.iter().map(|hash| hash.0).collect();
        let mut held = self.held.lock();
        let known = blocks.iter().take_while(|block| held.contains(block)).count();
        held.extend(&blocks);
        if known < blocks.len() {
            self.lanes.kv(KvEvent::Stored {
                namespace: request.namespace,
                parent: if known == 0 { request.namespace } else { blocks[known - 1] },
                blocks: blocks[known..].to_vec(),
                tier: 0,
                snapshot: false,
            });
        }
        self.let_go(&mut held, &blocks[known..]);
        drop(held);
        let cached_tokens = known as u32 * BLOCK_TOKENS;
        for (at, token) in request.tokens.iter().enumerate() {
            let last = at + 1 == request.tokens.len();
            self.lanes.output(Output {
                id: request.id,
                tokens: vec![*token],
                first: at == 0,
                finish: last.then_some(Finish::Stop),
                cached_tokens,
                prefill_us: self.prefill_us,
                ..Output::default()
            });
        }
        Ok(())
    }

    fn cancel(&self, _: u64) {}

    fn drain(&self, _: Duration) -> Result<(), EngineError> {
        Ok(())
    }

    fn pin(&self, pin: Pin) -> Result<(), EngineError> {
        let held = self.held.lock();
        let done = pin.blocks.iter().filter(|block| held.contains(block)).count();
        self.lanes.op(pin.op_id, 0, done as u32);
        Ok(())
    }

    fn unpin(&self, op_id: u64, _: u128) -> Result<(), EngineError> {
        self.lanes.op(op_id, 0, 0);
        Ok(())
    }

    /// It keeps every block alike, leased or not.
    fn lease(&self, _: LeaseChange) -> Result<(), EngineError> {
        Ok(())
    }

    fn kv_export(&self, mut export: Export) -> Result<(), EngineError> {
        let wanted = export.blocks().to_vec();
        let held = self.held.lock();
        let known = wanted.iter().take_while(|block| held.contains(block));
        let mut done = 0;
        for (block, room) in known.zip(export.bytes_mut().chunks_mut(BLOCK_BYTES)) {
            room.copy_from_slice(&content(*block));
            done += 1;
        }
        export.end(&self.lanes, 0, done);
        Ok(())
    }

    fn kv_import(&self, import: Import) -> Result<(), EngineError> {
        let bytes = import.bytes().chunks(BLOCK_BYTES);
        if import.blocks.iter().zip(bytes).any(|(block, bytes)| bytes != content(*block)) {
            import.end(&self.lanes, Code::Internal.rc(), 0);
            return Ok(());
        }
        let done = import.blocks.len().min(self.takes);
        let blocks = import.blocks[..done].to_vec();
        self.held.lock().extend(&blocks);
        if done > 0 {
            self.lanes.kv(KvEvent::Stored {
                namespace: import.namespace,
                parent: import.parent,
                blocks,
                tier: 0,
                snapshot: false,
            });
        }
        import.end(&self.lanes, 0, done as u32);
        Ok(())
    }
}

impl Parrot {
    /// Forgets the oldest chains that nothing goes on from, once there are too many blocks.
    fn let_go(&self, held: &mut BTreeSet<u128>, fresh: &[u128]) {
        if self.keeps == usize::MAX || fresh.is_empty() {
            return;
        }
        let mut came = self.came.lock();
        came.push_back(fresh.to_vec());
        while held.len() > self.keeps
            && let Some(blocks) = came.pop_front()
        {
            blocks.iter().for_each(|block| {
                held.remove(block);
            });
            self.lanes.kv(KvEvent::Removed { blocks, tier: 0, cause: Cause::Capacity });
        }
    }
}

/// The bytes of a block.
pub(crate) fn content(block: u128) -> [u8; BLOCK_BYTES] {
    std::array::from_fn(|at| block.to_le_bytes()[at % 16])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosted_engine_serves_is_indexed_and_keeps_pins() {
    let control = FakeControl::start().await;
    let source = Source::Linked(entry_point::<Parrot>());
    let config = WorkerConfig::new("hosted", vec![control.address.clone()], source);
    let worker = start(config).await.expect("starts");
    let model = control.look(|m| m.worker_named("hosted").map(|w| w.model.name.clone()));
    assert_eq!(model.as_deref(), Some("parrot"), "the engine's own name stands in");

    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let mut client = WorkerClient::new(channel.expect("an address"));
    let prompt: Vec<u32> = (0..40).collect();
    for (round, cached) in [(1, 0), (2, 40)] {
        let request = v1::GenerateRequest { tokens: pack(&prompt), ..Stage::request() };
        let mut events = client.generate(request).await.expect("taken").into_inner();
        let (mut tokens, mut last) = (Vec::new(), v1::GenerateEvent::default());
        while let Some(event) = events.message().await.expect("an event") {
            tokens.extend_from_slice(&event.tokens);
            last = event;
        }
        assert_eq!(tokens, prompt, "round {round}");
        assert_eq!((last.finish(), last.cached_tokens), (v1::Finish::Stop, cached));
    }

    let namespace = NamespaceId(u128::from_le_bytes([1; 16]));
    let hashes = BlockHasher::hash_prompt(HashKey(HASH_KEY), namespace, BLOCK_TOKENS, &prompt);
    let id = worker.worker_id();
    eventually("indexed", || control.held_of(id, &hashes) == hashes.len() as u64).await;
    let blocks: Vec<u128> = hashes.iter().map(|hash| hash.0).collect();
    control.put_pin(3, &blocks, 60_000);
    eventually("active", || control.pin_state(3) == Some(PinState::Active)).await;
    assert_eq!(worker.drain().await, Ok(()));
    assert_eq!(control.leaves(), [1]);
    assert_eq!(control.held_of(id, &hashes), 0);
    assert!(control.faults().is_empty(), "{:?}", control.faults());
}

#[tokio::test]
async fn an_engine_that_refuses_its_configuration_fails_the_start_with_its_own_words() {
    let control = FakeControl::start().await;
    let source = Source::Library("no-such-engine.so".into());
    let config = WorkerConfig::new("hosted", vec![control.address.clone()], source);
    let error = start(config).await.err().expect("no engine").to_string();
    assert!(error.contains("no-such-engine.so"), "{error}");
}

#[tokio::test]
async fn a_configuration_that_can_never_work_is_refused_before_anything_is_opened() {
    let source = || Source::Library("unused.so".into());
    let config = |name: &str| WorkerConfig::new(name, vec!["127.0.0.1:1".into()], source());
    let mut configs = vec![("a name", config(""))];
    configs.push(("an address", WorkerConfig { listen: ([0, 0, 0, 0], 0).into(), ..config("w") }));
    configs.push(("requests", WorkerConfig { requests_max: 0, ..config("w") }));
    configs.push(("control", WorkerConfig { control: Vec::new(), ..config("w") }));
    configs.push(("an object", WorkerConfig { engine_config: 1.into(), ..config("w") }));
    for (what, config) in configs {
        let refused = start(config).await.err();
        assert!(matches!(refused, Some(crate::WorkerError::Config(_))), "{what}: {refused:?}");
    }
}
