//! Corpora are what they say: every stored block is new to its worker, every removed one was there, and run
//! records say the same as block events.

use std::collections::{HashMap, HashSet};

use super::super::sessions::{Agents, Chats};
use super::*;

fn shape(route: Route) -> Shape {
    Shape { workers: 4, capacity_blocks: 6_000, route, requests: 400, seed: 5 }
}

fn agents(route: Route) -> Corpus {
    build("agent", 16, &mut Agents::new(5), &shape(route))
}

#[test]
fn events_change_exactly_what_they_name() {
    for corpus in [
        agents(Route::Kv),
        agents(Route::Random),
        build("chat", 16, &mut Chats::new(5), &shape(Route::Kv)),
    ] {
        let mut held: HashMap<u32, HashSet<u64>> = HashMap::new();
        for event in &corpus.events {
            let blocks = held.entry(event.worker).or_default();
            for key in corpus.blocks(event) {
                match event.change {
                    Change::Stored { .. } => assert!(blocks.insert(key.0)),
                    Change::Removed => assert!(blocks.remove(&key.0)),
                }
            }
            assert!(blocks.len() <= 6_000);
        }
        assert_eq!(corpus.queries.len(), 400);
        assert!(corpus.events.iter().any(|e| matches!(e.change, Change::Removed)));
    }
}

/// A stretch of `count` blocks that ends at `tail`, along the parents.
fn stretch(parents: &HashMap<u64, u64>, tail: u64, count: u32) -> Vec<u64> {
    let mut keys = vec![tail];
    while keys.len() < count as usize {
        keys.push(parents[&keys[keys.len() - 1]]);
    }
    keys
}

#[test]
fn run_records_say_the_same() {
    let corpus = agents(Route::Random);
    let mut parents = HashMap::new();
    let mut holders: HashMap<u64, u32> = HashMap::new();
    let mut kinds = [0; 3];
    for number in corpus.all_events() {
        let event = corpus.events[number as usize];
        let mut named = HashSet::new();
        for run in corpus.runs_of(number) {
            match *run {
                Run::Hold { tail, count } => {
                    kinds[0] += 1;
                    let keys = stretch(&parents, tail, count);
                    assert!(keys.iter().all(|k| holders[k] > 0), "a hold of what nobody has");
                    named.extend(keys);
                }
                Run::Store { parent, first, count } => {
                    kinds[1] += 1;
                    let mut before = parent;
                    for key in &corpus.keys[first..first + count as usize] {
                        parents.insert(key.0, before);
                        before = key.0;
                        named.insert(key.0);
                    }
                }
                Run::Release { tail, count } => {
                    kinds[2] += 1;
                    named.extend(stretch(&parents, tail, count));
                }
            }
        }
        let blocks: HashSet<u64> = corpus.blocks(&event).iter().map(|k| k.0).collect();
        assert_eq!(named, blocks, "event {number}");
        for key in blocks {
            match event.change {
                Change::Stored { .. } => *holders.entry(key).or_default() += 1,
                Change::Removed => *holders.get_mut(&key).unwrap() -= 1,
            }
        }
    }
    assert!(kinds.iter().all(|k| *k > 50), "{kinds:?}");
    assert_eq!(corpus.runs.len(), kinds.iter().sum::<usize>());
}

#[test]
fn a_seed_is_a_corpus_and_routing_by_overlap_hits_more() {
    let (one, two, random) = (agents(Route::Kv), agents(Route::Kv), agents(Route::Random));
    assert_eq!(one.keys, two.keys);
    assert_eq!(one.victims, two.victims);
    assert!(one.hit_blocks > random.hit_blocks, "{} {}", one.hit_blocks, random.hit_blocks);
}

#[test]
fn decoded_blocks_come_one_at_a_time() {
    let corpus = agents(Route::Kv);
    let single = corpus.events.iter().filter(|e| e.count == 1).count();
    assert!(single * 2 > corpus.events.len(), "{single} of {}", corpus.events.len());
}

#[test]
fn parts_cover_the_timeline_and_tiny_caches_do() {
    let corpus = agents(Route::Kv);
    let (warm, early) = corpus.part(0, 80);
    let (rest, late) = corpus.part(80, 100);
    assert_eq!(warm.len() + rest.len(), corpus.events.len());
    assert_eq!(early.len() + late.len(), corpus.queries.len());
    let tiny = Shape { capacity_blocks: 64, requests: 50, ..shape(Route::Kv) };
    let corpus = build("agent", 16, &mut Agents::new(1), &tiny);
    assert!(corpus.queries.iter().all(|q| q.len() <= 32));
}
