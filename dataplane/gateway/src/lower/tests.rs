//! Prompts in an index of real tiers, and who gets them by the router's cost.

use mainstay_index::BlockIndex;
use mainstay_route::{Inputs, Policy, Router, WorkerLoad};
use mainstay_types::{Epoch, NamespaceId};

use super::*;

const BLOCK_TOKENS: u32 = 16;
const BLOCKS: u32 = 250;
const COMPUTED_US: f32 = 100.0;

fn prompt() -> Vec<SequenceHash> {
    (1..=u128::from(BLOCKS)).map(|n| SequenceHash(n << 64 | n)).collect()
}

fn view(id: u32, prefill_us_per_token: f32) -> WorkerView {
    WorkerView {
        id: WorkerId(id),
        epoch: Epoch(1),
        draining: false,
        abroad: false,
        load: WorkerLoad { prefill_us_per_token, heard_ms: 1, ..WorkerLoad::default() },
    }
}

fn tiers(load: v1::Load) -> Lower {
    Lower::from(&v1::Load { has_tiers: true, ..load })
}

fn none() -> Lower {
    Lower::from(&v1::Load::default())
}

/// Worker 1 has the first blocks in its engine and all on its disk.
fn index(in_engine: usize) -> BlockIndex {
    let mut index = BlockIndex::new(4_096);
    let blocks = prompt();
    let namespace = NamespaceId(7 << 64 | 99_999);
    let root = namespace.0 as u64;
    index.store(WorkerId(1), namespace, root, &blocks, Tier::Disk);
    index.store(WorkerId(1), namespace, root, &blocks[..in_engine], Tier::Device);
    index
}

fn choose(held: &Held, workers: &[WorkerView], fetch: Option<Fetch>) -> mainstay_route::Decision {
    let blocks = prompt();
    let inputs = Inputs {
        now_ms: 10,
        prompt_blocks: &blocks,
        prompt_tokens: BLOCKS * BLOCK_TOKENS + 1,
        block_tokens: BLOCK_TOKENS,
        overlaps: held.near(),
        stored: held.stored(),
        fetch,
        workers,
        excluded: &[],
        priority: 0,
        random: 1,
        policy: Policy::Kv,
        region_penalty_ms: None,
    };
    Router::default().choose(&inputs).expect("somebody")
}

#[test]
fn a_prompt_goes_to_the_disk_that_holds_it() {
    let index = index(0);
    for fetched in [false, true] {
        let mut workers = [view(1, 0.0), view(2, COMPUTED_US), view(3, COMPUTED_US)];
        let lower = [tiers(v1::Load::default()), none(), none()];
        let held = Held::find(&index.reader(), &prompt(), &mut workers, &lower);
        assert_eq!(held.near(), [Overlap { worker: WorkerId(1), blocks: 0 }]);
        assert_eq!(held.stored(), [Overlap { worker: WorkerId(1), blocks: BLOCKS }]);
        assert_eq!(held.all, held.stored());
        // Another one could be given it, which costs more than to read it there.
        let usual = Fetch { blocks: BLOCKS, us_per_token: COMPUTED_US * 0.25 };
        let fetch = held.fetch(usual, WorkerId(1), &workers);
        assert!((fetch.us_per_token - COMPUTED_US * 0.45).abs() < 1e-3, "{fetch:?}");
        let decision = choose(&held, &workers, fetched.then_some(fetch));
        assert_eq!((decision.worker, decision.overlap_blocks), (WorkerId(1), 0));
        assert_eq!((decision.stored_blocks, decision.uncached_tokens), (BLOCKS, 1));
        let load_ms = f64::from(BLOCKS * BLOCK_TOKENS) * f64::from(COMPUTED_US) * 0.2 / 1_000.0;
        assert!((decision.terms.load_ms - load_ms).abs() < 1e-2, "{:?}", decision.terms);
        assert_eq!(decision.candidates[0].stored_blocks, BLOCKS);
    }
}

#[test]
fn a_disk_that_takes_longer_than_computing_counts_as_nothing() {
    let index = index(40);
    for (us, loads, stored) in [(30.0, 9, 1), (5_000.0, 1, 0), (f32::NAN, 3, 1), (-1.0, 3, 1)] {
        let mut workers = [view(1, COMPUTED_US), view(2, COMPUTED_US)];
        let measured = v1::Load { disk_us_per_token: us, disk_loads: loads, ..v1::Load::default() };
        let lower = [tiers(measured), none()];
        let held = Held::find(&index.reader(), &prompt(), &mut workers, &lower);
        assert_eq!(held.near(), [Overlap { worker: WorkerId(1), blocks: 40 }]);
        assert_eq!(held.stored().len(), stored, "{us}");
        let decision = choose(&held, &workers, None);
        assert_eq!(decision.stored_blocks, if stored == 1 { BLOCKS } else { 40 }, "{us}");
    }
}

#[test]
fn who_says_nothing_of_tiers_has_none() {
    let index = index(40);
    // All are of an older program: what the index knows of it counts whole, as it did before.
    let mut workers = [view(1, COMPUTED_US), view(2, COMPUTED_US)];
    let held = Held::find(&index.reader(), &prompt(), &mut workers, &[none(), none()]);
    assert_eq!((held.near(), held.stored()), (&held.all[..], &[][..]));
    assert_eq!(held.near()[0].blocks, BLOCKS);
    assert_eq!(workers[0].load.load_us_per_token, 0.0);
    // Beside one that tells its tiers, only what is in the engine.
    let lower = [none(), tiers(v1::Load::default())];
    let held = Held::find(&index.reader(), &prompt(), &mut workers, &lower);
    assert_eq!(held.near(), [Overlap { worker: WorkerId(1), blocks: 40 }]);
    assert!(held.stored().is_empty(), "it has said no pace");
    assert_eq!(choose(&held, &workers, None).stored_blocks, 40);
}

#[test]
fn paces_of_tiers_are_weighed_by_what_lies_in_each() {
    let lower = tiers(v1::Load {
        host_us_per_token: 5.0,
        host_loads: 1_000_000,
        disk_us_per_token: 35.0,
        disk_loads: 1_000_000,
        ..v1::Load::default()
    });
    let near = |priced: Option<(u32, f32)>, blocks, us: f32| {
        let (reach, found) = priced.expect("something lies lower");
        assert_eq!(reach, blocks);
        assert!((found - us).abs() < 0.01, "{found} and not {us}");
    };
    near(lower.price([10, 30, 40, 40], COMPUTED_US), 40, 15.0);
    near(lower.price([10, 30, 40, 40], 20.0), 30, 5.0);
    assert_eq!(lower.price([10, 10, 10, 10], COMPUTED_US), None);
    assert_eq!(lower.price([10, 10, 10, 90], COMPUTED_US), None, "a store has no pace here");
    assert_eq!(lower.price([10, 30, 40, 40], 1.0), None);
    // One measurement is believed by half.
    let once = tiers(v1::Load { disk_us_per_token: 80.0, disk_loads: 1, ..v1::Load::default() });
    assert!((once.us_per_token(Tier::Disk, COMPUTED_US) - 50.0).abs() < 1e-3);
    assert!((once.us_per_token(Tier::Host, COMPUTED_US) - 20.0).abs() < 1e-3);
}
