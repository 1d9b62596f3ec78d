//! Random schedules of requests, evictions, loads, leases, pins and ends over three workers with the native engine:
//! every answer equals, bit for bit, what is computed without a cache.
//!
//! A world is three workers and 25 schedules; what one schedule leaves behind the next one finds. Each world is drawn
//! from its seed. `MAINSTAY_SCHEDULES=N` plays N schedules, `MAINSTAY_LONG=1` ten thousand, `MAINSTAY_SEED=S` the
//! world of one seed.

mod bent;
mod seat;
mod truth;
mod world;

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;

use crate::tests::counted;
use crate::tests::fake_control::FakeControl;
use crate::tiers::TierConfig;
use seat::{Plan, Seat};
use truth::{MODELS, Truth};
use world::{Tally, World};

/// Schedules of a world.
const OF_WORLD: u64 = 25;
/// Schedules that every run plays.
const SCHEDULES: u64 = 300;
const SCHEDULES_LONG: u64 = 10_000;
/// Worlds at a time; they wait more than they compute.
const AT_ONCE: usize = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Plays a world from its seed.
async fn play(seed: u64, truths: &[Arc<Truth>], bent: bool) -> Result<Tally, String> {
    let model = (seed % MODELS.len() as u64) as usize;
    let mut world = World::new(seed, model, Arc::clone(&truths[model]), bent).await;
    for at in 0..OF_WORLD {
        let played = world.schedule().await;
        played.map_err(|error| format!("MAINSTAY_SEED={seed}, schedule {at}: {error}"))?;
    }
    let played = world.end().await;
    truths[model].forget();
    played.map_err(|error| format!("MAINSTAY_SEED={seed}, the end: {error}"))
}

fn truths() -> Vec<Arc<Truth>> {
    (0..MODELS.len()).map(|model| Arc::new(Truth::of(model))).collect()
}

/// A worker with the native engine, room for some prompts, and nothing below or beside it.
pub(super) async fn native_alone(control: &FakeControl) -> Seat {
    let engine = truth::engine_config(0, 800, 512);
    let plan = Plan { name: "alone".into(), engine, tiers: TierConfig::default(), bent: false };
    Seat::take(plan, control).await
}

/// Blocks that came in, by where from.
fn loaded(from: &str) -> u64 {
    counted("mainstay_worker_loaded_blocks_total", &[&format!("from=\"{from}\"")])
}

#[test]
fn answers_equal_those_without_a_cache() {
    // Before the first count, or counts before it are lost.
    counted("none", &[]);
    let long = std::env::var("MAINSTAY_LONG").is_ok_and(|text| text == "1");
    let schedules =
        number("MAINSTAY_SCHEDULES").unwrap_or(if long { SCHEDULES_LONG } else { SCHEDULES });
    let seeds = match number("MAINSTAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..schedules.div_ceil(OF_WORLD),
    };
    let one = seeds.end - seeds.start == 1;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let begun = Instant::now();
    let worlds = seeds.end - seeds.start;
    let tally = runtime.expect("a runtime").block_on(async move {
        let truths = truths();
        let played = futures::stream::iter(seeds).map(|seed| play(seed, &truths, false));
        let mut played = played.buffer_unordered(AT_ONCE);
        let mut tally = Tally::default();
        while let Some(world) = played.next().await {
            tally.add(&world.unwrap_or_else(|error| panic!("{error}")));
        }
        tally
    });
    println!("{} schedules in {:.0?}: {tally:?}", worlds * OF_WORLD, begun.elapsed());
    let (local, remote, peer) = (loaded("local"), loaded("remote"), loaded("peer"));
    println!("blocks loaded: {local} from tiers, {remote} from the store, {peer} from workers");
    // What was not done proves nothing.
    assert!(tally.answers > worlds * OF_WORLD * 3 && tally.cached_tokens > 0, "{tally:?}");
    assert!(local > 0 && peer > 0, "nothing was loaded");
    if !one {
        assert!(remote > 0 && tally.ends > 0 && tally.resets > 0 && tally.kept > 0, "{tally:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_wrong_bit_of_a_load_is_found() {
    let truths = truths();
    for seed in 0..4 {
        if let Err(found) = play(seed, &truths, true).await {
            let what = found.contains("is not what it is") || found.contains("without a cache");
            assert!(what, "{found}");
            return;
        }
    }
    panic!("four worlds of engines that take everything in wrongly, and nobody noticed");
}
