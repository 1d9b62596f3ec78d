//! What goes wrong between two machines, with doubles that do it on purpose.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::doubles::{Double, Kind, Setting};
use mainstay_conformance::reading::{PATIENCE, Told, outputs, wait};
use mainstay_engine_abi::sdk::types_of_mainstay::{BlockHasher, HashKey, NamespaceId};
use mainstay_engine_abi::sdk::{
    Code, Engine, Finish, Health, HostLog, Lanes, Output, Request, Sampling, caps,
};
use mainstay_remote::RemoteEngine;

const NAMESPACE: u128 = 77;

/// An engine over a double, and what it told.
struct Rig {
    engine: RemoteEngine,
    lanes: Arc<Lanes>,
    told: Told,
    next_id: u64,
}

fn request(id: u64, namespace: u128, tokens: Vec<u32>, tokens_max: u32) -> Request {
    let sampling = Sampling { tokens_max, ignore_eos: true, ..Sampling::default() };
    Request { id, namespace, tokens, sampling, ..Request::default() }
}

impl Rig {
    fn new(double: &Double, has_events: bool) -> Self {
        let lanes = Arc::new(Lanes::new());
        let config = double.config(has_events).to_string();
        let engine = RemoteEngine::create(&config, Arc::clone(&lanes), HostLog::silent())
            .expect("an engine");
        Self { engine, lanes, told: Told::default(), next_id: 0 }
    }

    fn submit(&mut self, namespace: u128, tokens: Vec<u32>, tokens_max: u32) -> u64 {
        self.next_id += 1;
        self.engine.submit(request(self.next_id, namespace, tokens, tokens_max)).expect("accepted");
        self.next_id
    }

    /// All outputs up to the next final one.
    fn outputs(&self) -> Vec<Output> {
        outputs(&self.lanes, 1)
    }

    /// One request; its tokens, its end, and what was cached by its first and its last output.
    fn ask(&mut self, prompt: &[u32], tokens_max: u32) -> (Vec<u32>, Finish, [u32; 2]) {
        self.submit(NAMESPACE, prompt.to_vec(), tokens_max);
        let outputs = self.outputs();
        let cached = [outputs[0].cached_tokens, outputs[outputs.len() - 1].cached_tokens];
        let tokens = outputs.iter().flat_map(|output| output.tokens.clone()).collect();
        (
            tokens,
            outputs.into_iter().next_back().and_then(|last| last.finish).expect("an end"),
            cached,
        )
    }

    /// Waits until so many blocks are told to be held.
    fn wait_held(&mut self, what: &str, due: impl Fn(&HashSet<u128>) -> bool) -> Duration {
        self.told.wait(&self.lanes, what, |held| due(&held.keys().copied().collect()))
    }
}

fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|n| (seed * 131 + n * 7 + n / 100) % 1000).collect()
}

fn names(namespace: u128, tokens: &[u32]) -> HashSet<u128> {
    let names = BlockHasher::hash_prompt(HashKey([0; 16]), NamespaceId(namespace), 16, tokens);
    names.into_iter().map(|name| name.0).collect()
}

#[test]
fn the_mirror_predicts_what_vllm_double_counts() {
    let double = Double::start(Setting::new(Kind::Vllm));
    let mut rig = Rig::new(&double, true);
    let mut told = 0;
    let mut prompt = prompt(1, 40);
    for turn in 0..20 {
        let (said, finish, cached) = rig.ask(&prompt, 20);
        assert_eq!(finish, Finish::Length);
        assert_eq!(cached[0], cached[1], "turn {turn}: predicted, and counted by the server");
        told += u64::from(cached[1]);
        let tokens = [prompt.as_slice(), &said].concat();
        let whole = names(NAMESPACE, &tokens[..tokens.len() - 1]);
        rig.wait_held("the turn's blocks", |held| *held == whole);
        prompt = [tokens.as_slice(), &[5, 6, 7]].concat();
    }
    assert_eq!(double.state.hit.load(Ordering::Relaxed), told);
    let stats = rig.engine.stats();
    assert_eq!((stats.hit_tokens, stats.decode_tokens), (told, 400));
    assert_eq!(stats.blocks_cached, rig.told.held.len() as u64);
}

#[test]
fn a_server_that_dies_ends_its_requests_and_comes_back_under_a_new_epoch() {
    let mut setting = Setting::new(Kind::Vllm);
    setting.decode = Duration::from_millis(5);
    let mut double = Double::start(setting);
    let mut rig = Rig::new(&double, true);
    rig.ask(&prompt(2, 64), 1);
    rig.wait_held("the first blocks", |held| held.len() == 4);
    rig.submit(NAMESPACE, prompt(3, 64), 1000);
    std::thread::sleep(Duration::from_millis(100));
    double.kill();
    let outputs = rig.outputs();
    let Some(Finish::Error { rc, .. }) = &outputs[outputs.len() - 1].finish else { panic!() };
    assert_eq!(*rc, Code::Unavailable.rc());
    wait("Starting", || rig.engine.stats().health == Health::Starting);
    let refused = rig.engine.submit(request(99, NAMESPACE, prompt(3, 8), 1)).unwrap_err();
    assert!(refused.rc == Code::Unavailable && refused.retry_after_ms > 0 && !refused.fatal);
    double.restart();
    wait("Ok", || rig.engine.stats().health == Health::Ok);
    rig.ask(&prompt(4, 48), 1);
    let due = names(NAMESPACE, &prompt(4, 48));
    let took = rig.wait_held("the new life's blocks, and no others", |held| *held == due);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(rig.told.resets, 1);
}

#[test]
fn a_restart_that_nobody_asked_during_is_seen_too() {
    let mut double = Double::start(Setting::new(Kind::Sglang));
    let mut rig = Rig::new(&double, true);
    rig.ask(&prompt(2, 64), 1);
    rig.wait_held("the first blocks", |held| held.len() == 4);
    double.restart();
    let took = rig.wait_held("nothing", HashSet::is_empty);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn lost_events_are_asked_for_again() {
    let double = Double::start(Setting::new(Kind::Vllm));
    let mut rig = Rig::new(&double, true);
    rig.ask(&prompt(1, 32), 1);
    rig.wait_held("the first", |held| held.len() == 2);
    double.state.faults.loses_events.store(true, Ordering::Relaxed);
    rig.ask(&prompt(2, 32), 1);
    double.state.faults.loses_events.store(false, Ordering::Relaxed);
    rig.ask(&prompt(3, 32), 1);
    rig.wait_held("what was lost between", |held| held.len() == 6);
    // A tail that is lost is followed by nothing.
    double.state.faults.loses_events.store(true, Ordering::Relaxed);
    rig.ask(&prompt(4, 32), 1);
    rig.wait_held("a lost tail", |held| held.len() == 8);
    assert_eq!(rig.told.resets, 0);
}

#[test]
fn a_cache_that_is_cleared_is_told_as_empty() {
    let double = Double::start(Setting::new(Kind::Vllm));
    let mut rig = Rig::new(&double, true);
    rig.ask(&prompt(1, 32), 1);
    rig.wait_held("the first", |held| held.len() == 2);
    let mut stream = std::net::TcpStream::connect(double.http).unwrap();
    std::io::Write::write_all(&mut stream, b"POST /reset_prefix_cache HTTP/1.1\r\n\r\n").unwrap();
    rig.wait_held("nothing", HashSet::is_empty);
    assert_eq!(rig.ask(&prompt(1, 32), 1).2, [0, 0]);
    rig.wait_held("it is computed again", |held| held.len() == 2);
    assert_eq!(rig.told.resets, 1);
}

#[test]
fn without_replay_a_gap_begins_a_new_epoch() {
    let mut setting = Setting::new(Kind::Vllm);
    setting.has_replay = false;
    let double = Double::start(setting);
    let mut rig = Rig::new(&double, true);
    let began = Instant::now();
    let mut seed = 1;
    while rig.told.held.is_empty() {
        // Until the subscription has arrived, batches go by unheard.
        assert!(began.elapsed() < PATIENCE);
        rig.ask(&prompt(seed, 32), 1);
        seed += 1;
        std::thread::sleep(Duration::from_millis(20));
        rig.told.read(&rig.lanes);
    }
    double.state.faults.loses_events.store(true, Ordering::Relaxed);
    rig.ask(&prompt(102, 32), 1);
    double.state.faults.loses_events.store(false, Ordering::Relaxed);
    rig.ask(&prompt(103, 32), 1);
    let due = names(NAMESPACE, &prompt(103, 32));
    rig.wait_held("the last alone", |held| *held == due);
    assert_eq!(rig.told.resets, 1);
}

#[test]
fn servers_that_do_not_tell_salts_are_believed_where_only_one_namespace_can_be_meant() {
    let double = Double::start(Setting::new(Kind::VllmOld));
    let mut rig = Rig::new(&double, true);
    rig.ask(&prompt(1, 32), 1);
    let own = names(NAMESPACE, &prompt(1, 32));
    rig.wait_held("its own", |held| *held == own);
    rig.submit(NAMESPACE + 1, prompt(1, 32), 1);
    assert_eq!(rig.outputs()[0].cached_tokens, 0, "salts keep namespaces apart all the same");
    // The first one holds it already, so the second root of the same tokens is the other's.
    let due: HashSet<u128> = own.union(&names(NAMESPACE + 1, &prompt(1, 32))).copied().collect();
    rig.wait_held("both", |held| *held == due);
}

#[test]
fn broken_answers_end_in_words() {
    for kind in [Kind::Vllm, Kind::Sglang, Kind::LlamaCpp] {
        let double = Double::start(Setting::new(kind));
        let mut rig = Rig::new(&double, false);
        assert_eq!(rig.engine.caps() & (caps::KV_EVENTS | caps::CANONICAL_HASH), 0);
        let faults = &double.state.faults;
        let end = |rig: &mut Rig| match rig.ask(&prompt(5, 20), 30) {
            (_, Finish::Error { rc, message }, _) => (rc, message),
            other => panic!("{kind:?}: {other:?}"),
        };
        faults.breaks_after.store(5, Ordering::Relaxed);
        let (rc, message) = end(&mut rig);
        assert_eq!((kind, rc), (kind, Code::Unavailable.rc()), "{message}");
        faults.breaks_after.store(0, Ordering::Relaxed);
        faults.garbage_after.store(5, Ordering::Relaxed);
        let (rc, message) = end(&mut rig);
        assert_eq!(rc, Code::Unavailable.rc(), "{message}");
        assert!(message.contains("no JSON") || message.contains("middle"), "{kind:?}: {message}");
        faults.garbage_after.store(0, Ordering::Relaxed);
        faults.is_overloaded.store(true, Ordering::Relaxed);
        let (rc, message) = end(&mut rig);
        assert!(rc == Code::Unavailable.rc() && message.contains("503"), "{kind:?}: {message}");
        faults.is_overloaded.store(false, Ordering::Relaxed);
        wait("Ok", || rig.engine.stats().health == Health::Ok);
        let began = Instant::now();
        let mut said = rig.ask(&prompt(5, 20), 30);
        // A look at its health that began while it was overloaded may end after the one that was well.
        while matches!(said.1, Finish::Error { .. }) && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
            said = rig.ask(&prompt(5, 20), 30);
        }
        let (tokens, finish, _) = said;
        assert_eq!((tokens.len(), finish), (30, Finish::Length), "{kind:?}");
        assert_eq!(rig.engine.stats().running, 0);
    }
}

#[test]
fn a_cancelled_request_leaves_the_server() {
    for kind in [Kind::Vllm, Kind::Sglang, Kind::LlamaCpp] {
        let mut setting = Setting::new(kind);
        setting.decode = Duration::from_millis(20);
        let double = Double::start(setting);
        let mut rig = Rig::new(&double, false);
        let id = rig.submit(NAMESPACE, prompt(6, 20), 1000);
        while rig.lanes.take_outputs(10).1.is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        rig.engine.cancel(id);
        rig.engine.cancel(id);
        let outputs = rig.outputs();
        assert_eq!(outputs[outputs.len() - 1].finish, Some(Finish::Cancelled), "{kind:?}");
        wait("it is left", || double.state.left.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn llama_cpp_holes_are_filled_and_slots_are_not_shared() {
    let mut setting = Setting::new(Kind::LlamaCpp);
    setting.requests = 1;
    let double = Double::start(setting);
    let mut rig = Rig::new(&double, false);
    let first = prompt(7, 60);
    let (said, finish, _) = rig.ask(&first, 60);
    assert_eq!((said.len(), finish), (60, Finish::Length));
    let wanted =
        crate::doubles::Wanted { prompt: first.clone(), ..crate::doubles::Wanted::default() };
    let mut due = Vec::new();
    for _ in 0..60 {
        due.push(crate::doubles::next_token(&wanted, &due, setting.vocab));
    }
    assert!(due.iter().any(|token| token % 7 == 0), "there is a hole to be filled");
    assert_eq!(said, due);
    let next = [first.as_slice(), &said, &[1, 2, 3]].concat();
    let (_, _, cached) = rig.ask(&next, 1);
    assert!(cached[1] >= 119, "{cached:?}");
    rig.submit(NAMESPACE + 1, next.clone(), 1);
    assert_eq!(rig.outputs()[0].cached_tokens, 0, "another namespace finds nothing in the slot");
    let (_, _, cached) = rig.ask(&next, 1);
    assert_eq!(cached, [0, 0], "and leaves nothing for the first");
    let least = Sampling { tokens_min: 3, ..Sampling::default() };
    let refused = Request { sampling: least, ..request(500, NAMESPACE, vec![1], 1) };
    assert_eq!(rig.engine.submit(refused).unwrap_err().rc, Code::Unimplemented);
}

#[test]
fn what_cannot_be_served_by_is_said_at_the_start() {
    let create = |config: serde_json::Value| {
        let config = config.to_string();
        RemoteEngine::create(&config, Arc::new(Lanes::new()), HostLog::silent()).err().unwrap()
    };
    let double = Double::start(Setting::new(Kind::LlamaCpp));
    let error = create(double.config(true));
    assert!(error.message.contains("no events"), "{error}");
    let rig = Rig::new(&double, false);
    let error = create(double.config(false));
    assert_eq!(error.rc, Code::Exhausted, "{error}");
    drop(rig);
    let mut config = double.config(false);
    config["model"] = "another".into();
    let error = create(config);
    assert!(error.message.contains("double.gguf"), "{error}");
    double.state.faults.is_overloaded.store(true, Ordering::Relaxed);
    let error = create(double.config(false));
    assert_eq!(error.rc, Code::Unavailable, "{error}");
    let error = create(serde_json::json!({"upstream": "http://127.0.0.1:1"}));
    assert!(error.rc == Code::Unavailable && error.message.contains("--upstream"), "{error}");
    let vllm = Double::start(Setting::new(Kind::Vllm));
    let mut config = vllm.config(true);
    config.as_object_mut().unwrap().remove("vocab");
    let error = create(config);
    assert!(error.message.contains("vocab"), "{error}");
}
