//! The lanes of an engine in Rust as its own tests read them, without the C boundary. What is wrong panics.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{Code, Engine, KvEvent, Lanes, Output, Pin, Waited};

/// How long it waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Outputs until so many requests have ended, and no more.
#[must_use]
pub fn outputs(lanes: &Lanes, finals: usize) -> Vec<Output> {
    let (mut all, mut ended, began) = (Vec::new(), 0, Instant::now());
    while ended < finals {
        assert!(began.elapsed() < PATIENCE, "no end came: {all:?}");
        lanes.wait_outputs(Duration::from_millis(100));
        let taken = lanes.take_outputs(1).1;
        ended += taken.iter().filter(|output| output.finish.is_some()).count();
        all.extend(taken);
    }
    all
}

/// The next operation that has ended: its id, code and count.
#[must_use]
pub fn op(lanes: &Lanes) -> (u64, i32, u32) {
    assert_eq!(lanes.wait_ops(PATIENCE), Waited::Ready);
    let (_, ops) = lanes.take_ops(1);
    (ops[0].op_id, ops[0].rc, ops[0].done)
}

/// Waits until it is so.
pub fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What an engine has told of its cache.
#[derive(Debug, Default)]
pub struct Told {
    /// What is held: each block's tiers, a bit each.
    pub held: HashMap<u128, u32>,
    /// How often all was void.
    pub resets: usize,
}

impl Told {
    /// Reads all that there is.
    pub fn read(&mut self, lanes: &Lanes) {
        loop {
            let taken = lanes.take_kv(1000);
            if !taken.reset && taken.events.is_empty() {
                return;
            }
            if taken.reset {
                self.held.clear();
                self.resets += 1;
            }
            taken.events.into_iter().for_each(|event| self.apply(event));
        }
    }

    fn apply(&mut self, event: KvEvent) {
        match event {
            KvEvent::Stored { namespace, parent, blocks, tier, .. } => {
                assert!(parent == namespace || self.held.contains_key(&parent), "an orphan");
                for block in blocks {
                    *self.held.entry(block).or_default() |= 1 << tier;
                }
            }
            KvEvent::Removed { blocks, tier, .. } => {
                for block in blocks {
                    let tiers = self.held.get_mut(&block).expect("it was held");
                    assert!(*tiers & (1 << tier) != 0, "not in tier {tier}");
                    *tiers &= !(1 << tier);
                    if *tiers == 0 {
                        self.held.remove(&block);
                    }
                }
            }
            KvEvent::PinExpired { .. } => panic!("there are no pins"),
        }
    }

    /// Waits until what is told to be held is as it is due; answers with how long it took.
    pub fn wait(
        &mut self,
        lanes: &Lanes,
        what: &str,
        due: impl Fn(&HashMap<u128, u32>) -> bool,
    ) -> Duration {
        let began = Instant::now();
        loop {
            self.read(lanes);
            if due(&self.held) {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "{what}: {} blocks are told", self.held.len());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Pins and snapshots as an engine with 64 blocks answers them that has computed `count` blocks of one prompt, and
/// nothing else.
pub fn pins_and_snapshots(engine: &impl Engine, lanes: &Lanes, count: u32) {
    let taken = lanes.take_kv(100);
    let KvEvent::Stored { blocks, .. } = &taken.events[0] else { panic!("{taken:?}") };
    assert_eq!(blocks.len(), count as usize);
    let pin = |op_id, blocks: &[u128], ttl_ms| {
        let pin = Pin { op_id, pin_id: 9, blocks: blocks.to_vec(), ttl_ms, priority: 50 };
        engine.pin(pin).expect("a pin is queued");
        op(lanes)
    };
    assert_eq!(pin(1, blocks, 60_000), (1, 0, count));
    // Figures are published at the end of the engine's turn, a moment after the answer.
    wait("the figures", || engine.stats().blocks_pinned == u64::from(count));
    let many: Vec<u128> = (0..33).collect();
    assert_eq!(pin(2, &many, 60_000), (2, Code::Exhausted.rc(), 0));
    engine.kv_snapshot(3).expect("a snapshot is queued");
    assert_eq!(op(lanes), (3, 0, count));
    let snapshot = lanes.take_kv(100);
    assert!(snapshot.reset && snapshot.epoch == taken.epoch + 1);
    let [KvEvent::Stored { blocks: told, snapshot: true, .. }] = &snapshot.events[..] else {
        panic!("{snapshot:?}")
    };
    assert_eq!(told, blocks);
    engine.unpin(4, 9).expect("an end is queued");
    assert_eq!(op(lanes), (4, 0, count));
    engine.unpin(5, 9).expect("an end is queued");
    assert_eq!(op(lanes), (5, Code::NotFound.rc(), 0));
    // An idle engine notices the end of a pin by itself.
    assert_eq!(pin(6, blocks, 30), (6, 0, count));
    assert_eq!(lanes.wait_kv(PATIENCE), Waited::Ready);
    assert_eq!(lanes.take_kv(10).events, [KvEvent::PinExpired { pin_id: 9 }]);
}
