//! An engine on strings: it does nothing by itself and writes down what it is asked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use mainstay_engine_abi::sdk::{
    Cause, Code, EngineError, Finish, Info, KvEvent, LeaseChange, Output, Pin, Request, Stats, caps,
};
use mainstay_engine_host::ExitReason;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Answer, Engine, KvBatch, KvImport, OpDone, Opener, Opening, Receivers};

pub(crate) const SPACE: u128 = 1;

/// The senders of a running engine; gone when it has ended.
struct Lanes {
    outputs: mpsc::Sender<Vec<Output>>,
    kv: mpsc::Sender<KvBatch>,
    ops: mpsc::Sender<OpDone>,
    exit: oneshot::Sender<ExitReason>,
}

#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) submitted: Vec<Request>,
    pub(crate) cancelled: Vec<u64>,
    pub(crate) pins: HashMap<u128, Pin>,
    pub(crate) snapshots: usize,
    pub(crate) refuse: Option<EngineError>,
    /// Exports never end.
    pub(crate) hangs: bool,
    held: HashSet<u128>,
    kv_seq: u64,
}

pub(crate) struct FakeEngine {
    caps: u64,
    lanes: Mutex<Option<Lanes>>,
    pub(crate) notes: Mutex<Notes>,
}

impl FakeEngine {
    pub(crate) fn open(caps: u64) -> (Arc<Self>, Receivers) {
        let (outputs, outputs_rx) = mpsc::channel(1_024);
        let (kv, kv_rx) = mpsc::channel(1_024);
        let (ops, ops_rx) = mpsc::channel(1_024);
        let (exit, exit_rx) = oneshot::channel();
        let lanes = Mutex::new(Some(Lanes { outputs, kv, ops, exit }));
        let engine = Arc::new(Self { caps, lanes, notes: Mutex::default() });
        (engine, Receivers { outputs: outputs_rx, kv: kv_rx, ops: ops_rx, exit: exit_rx })
    }

    pub(crate) fn output(&self, output: Output) {
        if let Some(lanes) = &*self.lanes.lock() {
            lanes.outputs.try_send(vec![output]).expect("room");
        }
    }

    pub(crate) fn finish(&self, id: u64, tokens: &[u32]) {
        let (tokens, finish) = (tokens.to_vec(), Some(Finish::Stop));
        self.output(Output { id, tokens, first: true, finish, ..Output::default() });
    }

    pub(crate) fn batch(&self, reset: bool, gap: bool, events: Vec<KvEvent>) {
        let mut notes = self.notes.lock();
        let first_seq = notes.kv_seq;
        notes.kv_seq += events.len() as u64 + u64::from(reset);
        if reset {
            notes.held.clear();
        }
        for event in &events {
            match event {
                KvEvent::Stored { blocks, .. } => notes.held.extend(blocks),
                KvEvent::Removed { blocks, .. } => {
                    notes.held.retain(|block| !blocks.contains(block));
                }
                KvEvent::PinExpired { .. } => {}
            }
        }
        if let Some(lanes) = &*self.lanes.lock() {
            lanes.kv.try_send(KvBatch { epoch: 1, first_seq, reset, gap, events }).expect("room");
        }
    }

    pub(crate) fn store(&self, parent: u128, blocks: &[u128]) {
        self.batch(false, false, vec![stored(parent, blocks)]);
    }

    pub(crate) fn remove(&self, blocks: &[u128]) {
        let blocks = blocks.to_vec();
        self.batch(
            false,
            false,
            vec![KvEvent::Removed { blocks, tier: 0, cause: Cause::Capacity }],
        );
    }

    /// Ends as a child process does that was killed: no last words.
    pub(crate) fn crash(&self) {
        if let Some(lanes) = self.lanes.lock().take() {
            let _ = lanes.exit.send(ExitReason::ProcessEnded("signal 9".into()));
        }
    }

    fn op(&self, op_id: u64, rc: i32, done: u32) {
        if let Some(lanes) = &*self.lanes.lock() {
            lanes.ops.try_send(OpDone { op_id, rc, done }).expect("room");
        }
    }
}

pub(crate) fn stored(parent: u128, blocks: &[u128]) -> KvEvent {
    let blocks = blocks.to_vec();
    KvEvent::Stored { namespace: SPACE, parent, blocks, tier: 0, snapshot: false }
}

fn answer<'a, T: Send + 'a>(value: Result<T, EngineError>) -> Answer<'a, T> {
    futures::future::ready(value).boxed()
}

impl Engine for FakeEngine {
    fn kv_export(&self, _: Vec<u128>) -> Answer<'_, Vec<u8>> {
        if self.notes.lock().hangs {
            return futures::future::pending().boxed();
        }
        answer(Err(EngineError::unimplemented("no blocks to give")))
    }

    fn kv_import(&self, _: KvImport) -> Answer<'_, u32> {
        answer(Err(EngineError::unimplemented("takes no blocks")))
    }

    fn info(&self) -> Info {
        Info {
            block_tokens: 4,
            vocab: 100,
            context_tokens_max: 1_000,
            blocks_total: 64,
            model: "fake".into(),
            device: "cpu".into(),
            kv_layout: 0,
            ..Info::default()
        }
    }

    fn caps(&self) -> u64 {
        self.caps
    }

    fn name(&self) -> String {
        "test fake 1".into()
    }

    fn stats(&self) -> Answer<'_, Stats> {
        let running = self.notes.lock().submitted.len() as u32;
        answer(Ok(Stats { running, blocks_used: 7, ..Stats::default() }))
    }

    fn submit(&self, request: Request) -> Answer<'_, ()> {
        let mut notes = self.notes.lock();
        if let Some(error) = notes.refuse.clone() {
            return answer(Err(error));
        }
        notes.submitted.push(request);
        answer(Ok(()))
    }

    fn cancel(&self, id: u64) {
        self.notes.lock().cancelled.push(id);
        let finish = Some(Finish::Cancelled);
        self.output(Output { id, finish, ..Output::default() });
    }

    fn pin(&self, pin: Pin) -> Answer<'_, ()> {
        let op_id = pin.op_id;
        let mut notes = self.notes.lock();
        let held = pin.blocks.iter().filter(|block| notes.held.contains(block)).count();
        notes.pins.insert(pin.pin_id, pin);
        drop(notes);
        self.op(op_id, 0, held as u32);
        answer(Ok(()))
    }

    fn unpin(&self, op_id: u64, pin_id: u128) -> Answer<'_, ()> {
        let known = self.notes.lock().pins.remove(&pin_id).is_some();
        self.op(op_id, if known { 0 } else { Code::NotFound.rc() }, 0);
        answer(Ok(()))
    }

    fn lease(&self, _: LeaseChange) -> Answer<'_, ()> {
        answer(Err(EngineError::unimplemented("no leases")))
    }

    fn kv_snapshot(&self, op_id: u64) -> Answer<'_, ()> {
        self.notes.lock().snapshots += 1;
        self.op(op_id, 0, 0);
        answer(Ok(()))
    }

    fn stop(&self) {
        self.lanes.lock().take();
    }
}

/// Hands out one engine after the other.
pub(crate) struct FakeOpener {
    engines: Mutex<Vec<Arc<FakeEngine>>>,
    pub(crate) configs: Mutex<Vec<String>>,
    pub(crate) failure: Mutex<Option<String>>,
    pub(crate) caps: Mutex<u64>,
}

impl Default for FakeOpener {
    fn default() -> Self {
        Self {
            engines: Mutex::default(),
            configs: Mutex::default(),
            failure: Mutex::default(),
            caps: Mutex::new(caps::KNOWN),
        }
    }
}

impl FakeOpener {
    pub(crate) fn current(&self) -> Arc<FakeEngine> {
        Arc::clone(self.engines.lock().last().expect("one was opened"))
    }

    pub(crate) fn opened(&self) -> usize {
        self.engines.lock().len()
    }
}

impl Opener for FakeOpener {
    fn open(&self, config_json: String) -> BoxFuture<'_, Opening> {
        self.configs.lock().push(config_json);
        if let Some(failure) = self.failure.lock().clone() {
            return futures::future::ready(Err(failure)).boxed();
        }
        let (engine, receivers) = FakeEngine::open(*self.caps.lock());
        self.engines.lock().push(Arc::clone(&engine));
        futures::future::ready(Ok((engine as Arc<dyn Engine>, receivers))).boxed()
    }
}
