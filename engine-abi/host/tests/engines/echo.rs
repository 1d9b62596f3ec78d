//! The echo engine in Rust: what `fixtures/echo.c` is, and floods for the tests of back-pressure.
//!
//! First token 777: held until cancelled. 888: a thread sends [`FLOOD`] outputs as room allows. 555: a
//! thread sends [`FLOOD`] cache events whether or not anyone reads. 666: panics. Blocks that come in are kept as they
//! are, to go out again; those of namespace [`HELD`] are held, and their import never ends.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mainstay_engine_host::sdk::{
    BlockAges, Cause, Engine, EngineError, Export, Finish, Health, HostLog, Identity, Import, Info,
    KvEvent, Lanes, Output, Request, Stats, caps,
};

pub(crate) const FLOOD: u32 = 300_000;
pub(crate) const HELD: u128 = 777;
pub(crate) const LAYOUT: u64 = 7;
pub(crate) const BLOCK_BYTES: usize = 64;

#[derive(Default)]
struct State {
    stopping: AtomicBool,
    draining: AtomicBool,
    decoded: AtomicU64,
    held: Mutex<HashSet<u64>>,
    blocks: Mutex<HashMap<u128, Vec<u8>>>,
    held_imports: Mutex<Vec<Import>>,
}

pub(crate) struct Echo {
    lanes: Arc<Lanes>,
    state: Arc<State>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Echo {
    fn end_held(&self, pick: impl Fn(u64) -> bool) {
        self.state.held.lock().expect("no thread panics").retain(|id| {
            if pick(*id) {
                let finish = Some(Finish::Cancelled);
                self.lanes.output(Output { id: *id, finish, ..Output::default() });
            }
            !pick(*id)
        });
    }

    fn echo(&self, request: &Request) {
        let Request { id, tokens, namespace, .. } = request;
        let starts = tokens.chunks_exact(4).enumerate();
        let blocks: Vec<u128> =
            starts.map(|(n, block)| (n as u128 + 1) << 64 | u128::from(block[0])).collect();
        if !blocks.is_empty() {
            let (namespace, parent) = (*namespace, *namespace);
            self.lanes.kv(KvEvent::Stored { namespace, parent, blocks, tier: 0, snapshot: false });
        }
        for (n, token) in tokens.iter().enumerate() {
            let is_last = n + 1 == tokens.len();
            self.state.decoded.fetch_add(1, Ordering::Relaxed);
            self.lanes.output(Output {
                id: *id,
                tokens: vec![*token],
                first: n == 0,
                finish: is_last.then_some(Finish::Length),
                ..Output::default()
            });
        }
    }

    fn spawn(&self, body: impl FnOnce(&Lanes, &State) + Send + 'static) {
        let (lanes, state) = (Arc::clone(&self.lanes), Arc::clone(&self.state));
        self.threads
            .lock()
            .expect("no thread panics")
            .push(thread::spawn(move || body(&lanes, &state)));
    }
}

fn flood_outputs(id: u64, lanes: &Lanes, state: &State) {
    for n in 0..FLOOD {
        while !lanes.output_has_room() {
            if state.stopping.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        state.decoded.fetch_add(1, Ordering::Relaxed);
        let finish = (n + 1 == FLOOD).then_some(Finish::Length);
        lanes.output(Output { id, tokens: vec![n], finish, ..Output::default() });
    }
}

/// Removes blocks that never were, then ends the request; after a loss it begins again, as the SDK
/// demands, with the one block that it does hold.
fn flood_events(id: u64, lanes: &Lanes) {
    for n in 0..FLOOD {
        let (blocks, cause) = (vec![u128::from(n)], Cause::Capacity);
        lanes.kv(KvEvent::Removed { blocks, tier: 0, cause });
    }
    lanes.output(Output { id, finish: Some(Finish::Stop), ..Output::default() });
    if lanes.kv_overflowed() {
        lanes.begin_snapshot();
        let blocks = vec![42];
        lanes.kv(KvEvent::Stored { namespace: 1, parent: 1, blocks, tier: 0, snapshot: true });
    }
}

/// The ages that an echo engine tells: any will do that are not all alike.
pub(crate) fn ages(decoded: u64) -> BlockAges {
    let mut ages = BlockAges::default();
    ages.at_hit.by_power[2] = decoded;
    ages.at_hit.sum_ms = 3 * decoded;
    ages.at_eviction[Cause::Expiry as usize].by_power[39] = 1;
    ages
}

impl Engine for Echo {
    const IDENTITY: Identity = Identity { vendor: "mainstay", name: "echo-rust", version: "1.0" };
    const CAPS: u64 = caps::NAMESPACE | caps::KV_EVENTS | caps::KV_SNAPSHOT | caps::TRANSFER;

    fn create(config: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        log.info("echo-rust", "created");
        if config.starts_with("fail") {
            return Err(EngineError::exhausted("no memory for the weights", 0));
        }
        Ok(Self { lanes, state: Arc::default(), threads: Mutex::default() })
    }

    fn info(&self) -> Info {
        Info {
            block_tokens: 4,
            vocab: 1000,
            context_tokens_max: 4096,
            requests_max: 64,
            blocks_total: 1024,
            block_bytes: BLOCK_BYTES as u64,
            model: "echo".into(),
            model_dir: String::new(),
            device: "cpu".into(),
            kv_layout: LAYOUT,
        }
    }

    fn stats(&self) -> Stats {
        let draining = self.state.draining.load(Ordering::Relaxed);
        let decode_tokens = self.state.decoded.load(Ordering::Relaxed);
        Stats {
            health: if draining { Health::Draining } else { Health::Ok },
            decode_tokens,
            ages: Some(ages(decode_tokens)),
            ..Stats::default()
        }
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        if self.state.draining.load(Ordering::Relaxed) {
            return Err(EngineError::unavailable("draining"));
        }
        let id = request.id;
        match request.tokens[0] {
            555 => self.spawn(move |lanes, _| flood_events(id, lanes)),
            666 => panic!("told to panic"),
            777 => {
                self.state.held.lock().expect("no thread panics").insert(id);
                self.lanes.output(Output {
                    id,
                    tokens: vec![777],
                    first: true,
                    ..Output::default()
                });
            }
            888 => self.spawn(move |lanes, state| flood_outputs(id, lanes, state)),
            _ => self.echo(&request),
        }
        Ok(())
    }

    fn cancel(&self, id: u64) {
        self.end_held(|held| held == id);
    }

    fn drain(&self, _timeout: Duration) -> Result<(), EngineError> {
        self.state.draining.store(true, Ordering::Relaxed);
        self.end_held(|_| true);
        Ok(())
    }

    fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.lanes.op(op_id, 0, 0);
        Ok(())
    }

    fn kv_export(&self, mut export: Export) -> Result<(), EngineError> {
        let wanted = export.blocks().to_vec();
        let blocks = self.state.blocks.lock().expect("no thread panics");
        let known = wanted.iter().map_while(|block| blocks.get(block));
        let copied = export
            .bytes_mut()
            .chunks_mut(BLOCK_BYTES)
            .zip(known)
            .map(|(to, from)| to.copy_from_slice(from))
            .count();
        export.end(&self.lanes, 0, copied as u32);
        Ok(())
    }

    fn kv_import(&self, import: Import) -> Result<(), EngineError> {
        if import.namespace == HELD {
            self.state.held_imports.lock().expect("no thread panics").push(import);
            return Ok(());
        }
        let pairs = import.blocks.iter().zip(import.bytes().chunks(BLOCK_BYTES));
        let pairs = pairs.map(|(block, bytes)| (*block, bytes.to_vec()));
        self.state.blocks.lock().expect("no thread panics").extend(pairs);
        let held = import.blocks.len() as u32;
        import.end(&self.lanes, 0, held);
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().expect("no thread panics").drain(..) {
            thread.join().expect("no thread panics");
        }
    }
}
