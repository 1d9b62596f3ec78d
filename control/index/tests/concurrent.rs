//! Readers beside writers: every answer has to be true at some instant between its question and its return.
//!
//! Writers publish the number of an act before it begins and after it ends; a reader samples both numbers around
//! its lookup and keeps the answer. Afterwards the acts are gone through again, block by block, and each answer must
//! be that of one state inside its window: for one index the answers about all workers together, for a sharded one
//! each worker's for itself. A second hunt stores and frees thousands of chains under readers that know what each
//! may say. A reader that skips the last check of its heads, or a writer that writes a line that readers still use,
//! fails here within a second. MAINSTAY_LONG=1 runs each test for a minute, MAINSTAY_SEED=S with other acts.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use mainstay_index::model::ModelIndex;
use mainstay_index::{BlockIndex, Group, IndexLimits, IndexReader, Overlap, ShardedIndex};
use mainstay_types::{NamespaceId, SequenceHash, Tier, WorkerId};

#[path = "support/history.rs"]
mod history;
#[path = "support/rng.rs"]
mod rng;

use history::{Act, Author, Depths, State, WORKERS, World, depths_of, name, worker_id};
use rng::{Rng, mix};

const READERS: usize = 4;
const WRITERS: usize = 4;
const SAMPLES_MAX: usize = if cfg!(miri) { 200 } else { 100_000 };

fn seed() -> u64 {
    std::env::var("MAINSTAY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn time_to_run() -> Duration {
    let long = std::env::var("MAINSTAY_LONG").is_ok_and(|text| text == "1");
    Duration::from_secs(if long { 60 } else { 4 })
}

/// The depths in an answer. Nobody else may be in it, and nobody twice.
fn depths(found: &[Overlap]) -> Depths {
    let mut depths = [0; WORKERS];
    for overlap in found {
        let worker = (0..WORKERS).find(|&number| worker_id(number) == overlap.worker);
        let worker = worker.unwrap_or_else(|| panic!("{overlap:?} never held any of it"));
        assert_eq!(depths[worker], 0, "{overlap:?} comes twice");
        assert_ne!(overlap.blocks, 0, "{overlap:?} says nothing");
        depths[worker] = overlap.blocks as u16;
    }
    depths
}

/// Slots that the worlds of this test may use.
const SLOTS: u32 = 256;

/// Who is in which slot.
fn slots(reader: &IndexReader) -> Vec<Option<WorkerId>> {
    (0..SLOTS).map(|slot| reader.worker_of_slot(slot)).collect()
}

/// The list that groups stand for; `None` if one of their slots has changed hands since `before`.
fn listed(
    groups: &[Group],
    before: &[Option<WorkerId>],
    reader: &IndexReader,
) -> Option<Vec<Overlap>> {
    let mut list = Vec::new();
    for group in groups {
        for bit in (0..64).filter(|bit| group.bits >> bit & 1 == 1) {
            let slot = group.word * 64 + bit;
            let worker = reader.worker_of_slot(slot);
            if worker != before[slot as usize] {
                return None;
            }
            list.push(Overlap { worker: worker?, blocks: group.depth });
        }
    }
    Some(list)
}

// --- one index -----------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
struct Sample {
    question: usize,
    /// The last act that had ended before the lookup, and the last that had begun when it returned.
    ended: u32,
    begun: u32,
    depths: Depths,
}

#[derive(Default)]
struct Clock {
    begun: AtomicU32,
    ended: AtomicU32,
    over: AtomicBool,
}

fn read(world: &World, reader: &IndexReader, clock: &Clock, seed: u64) -> Vec<Sample> {
    let mut rng = Rng(seed);
    let (mut list, mut groups) = (Vec::new(), Vec::new());
    let mut burst: [Vec<Group>; 5] = Default::default();
    let mut samples = Vec::new();
    while !clock.over.load(Ordering::Relaxed) && samples.len() < SAMPLES_MAX {
        let questions: [usize; 5] = std::array::from_fn(|_| rng.below(world.questions.len()));
        let form = rng.below(8);
        let prefixes = questions.map(|question| world.questions[question].as_slice());
        let before = if form < 3 { slots(reader) } else { Vec::new() };
        let ended = clock.ended.load(Ordering::SeqCst);
        match form {
            0 => reader.burst_into(&prefixes, &mut burst),
            1 | 2 => reader.groups_into(prefixes[0], &mut groups),
            _ => reader.lookup_into(prefixes[0], &mut list),
        }
        fence(Ordering::SeqCst);
        let begun = clock.begun.load(Ordering::SeqCst);
        let mut keep = |question, found: Option<Vec<Overlap>>| {
            let depths = found.map(|found| depths(&found));
            samples.extend(depths.map(|depths| Sample { question, ended, begun, depths }));
        };
        match form {
            0 => (0..5).for_each(|i| keep(questions[i], listed(&burst[i], &before, reader))),
            1 | 2 => keep(questions[0], listed(&groups, &before, reader)),
            _ => keep(questions[0], Some(std::mem::take(&mut list))),
        }
    }
    samples
}

/// How much was checked.
#[derive(Debug, Default)]
struct Tally {
    acts: usize,
    samples: usize,
    /// Answers during which some act ran.
    overtaken: usize,
}

/// Goes through the acts again and finds each sample a state that fits.
fn judge(world: &World, states: &mut [State], acts: &[Act], samples: &mut [Sample]) -> Tally {
    samples.sort_unstable_by_key(|sample| sample.ended);
    let tally = Tally {
        acts: acts.len(),
        samples: samples.len(),
        overtaken: samples.iter().filter(|s| s.begun > s.ended).count(),
    };
    let mut next = 0;
    let mut open: Vec<Sample> = Vec::new();
    for (ended, act) in acts.iter().map(Some).chain([None]).enumerate() {
        let ended = ended as u32;
        while next < samples.len() && samples[next].ended == ended {
            let sample = samples[next];
            next += 1;
            if depths_of(states, sample.question) != sample.depths {
                open.push(sample);
            }
        }
        if let Some(late) = open.iter().find(|sample| sample.begun <= ended) {
            refute(world, states, acts, late);
        }
        let Some(act) = act else { break };
        let Some(worker) = (0..WORKERS).find(|&number| worker_id(number) == act.worker()) else {
            continue;
        };
        let mut state = states[worker].clone();
        state.go(world, act, |state, bound| {
            open.retain(|sample| {
                let mut due = depths_of(states, sample.question);
                let own = state.depths[sample.question];
                due[worker] = if bound { own.min(sample.depths[worker]) } else { own };
                due != sample.depths
            });
        });
        states[worker] = state;
    }
    tally
}

fn refute(world: &World, states: &[State], acts: &[Act], sample: &Sample) -> ! {
    let window = &acts[sample.ended as usize..(sample.begun as usize).min(acts.len())];
    let short: Vec<String> = window.iter().take(6).map(|act| format!("{act:?}")).collect();
    panic!(
        "no instant fits {sample:?}\nof {} blocks; at the end of its window it was {:?}\nacts in the window: {}, of which {short:#?}",
        world.questions[sample.question].len(),
        depths_of(states, sample.question),
        window.len(),
    );
}

/// One round: four producers, one writer, four readers; answers the acts in their order, and the samples.
fn round(
    world: &World,
    index: &mut BlockIndex,
    authors: &mut [Author],
    acts_max: usize,
) -> (Vec<Act>, Vec<Sample>) {
    let clock = Clock::default();
    let readers: Vec<IndexReader> = (0..READERS).map(|_| index.reader()).collect();
    let mut acts = Vec::with_capacity(acts_max);
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Act>(64);
        for author in authors {
            let send = send.clone();
            let share = acts_max / WRITERS;
            scope.spawn(move || {
                for _ in 0..share {
                    let act = author.act(world);
                    if send.send(act).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut reading = Vec::new();
        for (i, reader) in readers.iter().enumerate() {
            let clock = &clock;
            reading.push(scope.spawn(move || read(world, reader, clock, mix(i as u64))));
        }
        for act in receive {
            let event = world.event(&act);
            let number = acts.len() as u32 + 1;
            clock.begun.store(number, Ordering::SeqCst);
            index.apply(act.worker(), &event);
            clock.ended.store(number, Ordering::SeqCst);
            acts.push(act);
        }
        clock.over.store(true, Ordering::SeqCst);
        for thread in reading {
            samples.extend(thread.join().expect("a reader finds nothing wrong"));
        }
    });
    (acts, samples)
}

#[test]
fn every_answer_of_one_index_was_true_at_one_instant() {
    let world = World::new(seed());
    let mut index = BlockIndex::new(u64::MAX);
    let mut model = ModelIndex::new(u64::MAX);
    let mut states = vec![State::new(&world); WORKERS];
    let per_writer = WORKERS / WRITERS;
    let author =
        |i: usize| Author::new(mix(seed()) + i as u64, i * per_writer..(i + 1) * per_writer);
    let mut authors: Vec<Author> = (0..WRITERS).map(author).collect();
    let until = Instant::now() + time_to_run();
    let mut sum = Tally::default();
    while Instant::now() < until {
        let acts_max = if cfg!(miri) { 40 } else { 20_000 };
        let (acts, mut samples) = round(&world, &mut index, &mut authors, acts_max);
        let tally = judge(&world, &mut states, &acts, &mut samples);
        sum.acts += tally.acts;
        sum.samples += tally.samples;
        sum.overtaken += tally.overtaken;
        for act in &acts {
            model.apply(act.worker(), &world.event(act));
        }
        world.check(&states, &model);
        for (question, prefix) in world.questions.iter().enumerate() {
            assert_eq!(depths(&index.lookup(prefix)), depths_of(&states, question));
        }
        assert_eq!(index.held_count(), model.held_count());
        if cfg!(miri) {
            break;
        }
    }
    println!("one index: {sum:?}");
    assert!(cfg!(miri) || sum.overtaken > 100, "readers and writer hardly met: {sum:?}");
}

// --- many writers --------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
struct WideSample {
    question: usize,
    ended: [u32; WORKERS],
    begun: [u32; WORKERS],
    depths: Depths,
}

#[repr(align(128))]
#[derive(Default)]
struct WorkerClock {
    begun: AtomicU32,
    ended: AtomicU32,
}

/// Goes through one worker's acts again; its part of each sample must be true of one state in its own window.
fn judge_worker(
    world: &World,
    state: &mut State,
    worker: usize,
    acts: &[Act],
    samples: &mut [WideSample],
) {
    samples.sort_unstable_by_key(|sample| sample.ended[worker]);
    let mut next = 0;
    let mut open: Vec<WideSample> = Vec::new();
    for (ended, act) in acts.iter().map(Some).chain([None]).enumerate() {
        while next < samples.len() && samples[next].ended[worker] == ended as u32 {
            let sample = samples[next];
            next += 1;
            if state.depths[sample.question] != sample.depths[worker] {
                open.push(sample);
            }
        }
        if let Some(late) = open.iter().find(|sample| sample.begun[worker] <= ended as u32) {
            let window = &acts[late.ended[worker] as usize..late.begun[worker] as usize];
            panic!(
                "worker {worker} never answered question {} of {} blocks with {}; at the end of the window it was {}; of all {:?}; acts: {} {:?}",
                late.question,
                world.questions[late.question].len(),
                late.depths[worker],
                state.depths[late.question],
                late.depths,
                window.len(),
                window.iter().take(4).collect::<Vec<_>>()
            );
        }
        let Some(act) = act else { break };
        state.go(world, act, |state, bound| {
            open.retain(|sample| {
                let (own, seen) = (state.depths[sample.question], sample.depths[worker]);
                if bound { seen > own } else { seen != own }
            });
        });
    }
}

fn read_wide(
    world: &World,
    index: &ShardedIndex,
    clocks: &[WorkerClock],
    over: &AtomicBool,
    seed: u64,
) -> Vec<WideSample> {
    let reader = index.reader();
    let mut rng = Rng(seed);
    let mut list = Vec::new();
    let mut samples = Vec::new();
    while !over.load(Ordering::Relaxed) && samples.len() < SAMPLES_MAX {
        let question = rng.below(world.questions.len());
        let ended = std::array::from_fn(|worker| clocks[worker].ended.load(Ordering::SeqCst));
        reader.lookup_into(&world.questions[question], &mut list);
        fence(Ordering::SeqCst);
        let begun = std::array::from_fn(|worker| clocks[worker].begun.load(Ordering::SeqCst));
        samples.push(WideSample { question, ended, begun, depths: depths(&list) });
    }
    samples
}

/// One writer's acts of a round, with the workers that they are of.
fn write_wide(
    world: &World,
    index: &ShardedIndex,
    clocks: &[WorkerClock],
    author: &mut Author,
) -> Vec<(usize, Act)> {
    let mut done: Vec<(usize, Act)> = Vec::new();
    let mut counts = [0_u32; WORKERS];
    for _ in 0..if cfg!(miri) { 10 } else { 6_000 } {
        let act = author.act(world);
        let event = world.event(&act);
        let id = act.worker();
        let Some(worker) = (0..WORKERS).find(|&number| worker_id(number) == id) else {
            index.apply(id, &event);
            continue;
        };
        counts[worker] += 1;
        clocks[worker].begun.store(counts[worker], Ordering::SeqCst);
        index.apply(id, &event);
        clocks[worker].ended.store(counts[worker], Ordering::SeqCst);
        done.push((worker, act));
    }
    done
}

#[test]
fn every_answer_of_a_sharded_index_was_true_of_each_worker_at_some_instant() {
    let world = World::new(seed() + 77);
    // Fewer shards than writers, so that writers meet in them too.
    let index = ShardedIndex::new(3, IndexLimits::default());
    let mut states = vec![State::new(&world); WORKERS];
    let per_writer = WORKERS / WRITERS;
    let author =
        |i: usize| Author::new(mix(seed()) ^ i as u64, i * per_writer..(i + 1) * per_writer);
    let mut authors: Vec<Author> = (0..WRITERS).map(author).collect();
    let until = Instant::now() + time_to_run();
    let (mut acts_sum, mut samples_sum) = (0, 0);
    while Instant::now() < until {
        let clocks: Vec<WorkerClock> = (0..WORKERS).map(|_| WorkerClock::default()).collect();
        let over = AtomicBool::new(false);
        let mut acts: Vec<Vec<Act>> = vec![Vec::new(); WORKERS];
        let mut samples = Vec::new();
        std::thread::scope(|scope| {
            let (world, index, clocks, over) = (&world, &index, &clocks, &over);
            let reading: Vec<_> = (0..READERS)
                .map(|i| scope.spawn(move || read_wide(world, index, clocks, over, mix(i as u64))))
                .collect();
            let writing: Vec<_> = authors
                .iter_mut()
                .map(|author| scope.spawn(move || write_wide(world, index, clocks, author)))
                .collect();
            for thread in writing {
                for (worker, act) in thread.join().expect("a writer meets nothing wrong") {
                    acts[worker].push(act);
                }
            }
            over.store(true, Ordering::SeqCst);
            for thread in reading {
                samples.extend(thread.join().expect("a reader finds nothing wrong"));
            }
        });
        for worker in 0..WORKERS {
            judge_worker(&world, &mut states[worker], worker, &acts[worker], &mut samples);
            acts_sum += acts[worker].len();
        }
        samples_sum += samples.len();
        let (reader, mut list) = (index.reader(), Vec::new());
        for (question, prefix) in world.questions.iter().enumerate() {
            reader.lookup_into(prefix, &mut list);
            assert_eq!(depths(&list), depths_of(&states, question));
        }
        if cfg!(miri) {
            break;
        }
    }
    println!("sharded: {acts_sum} acts, {samples_sum} samples of {WORKERS} workers");
}

// --- the hunt for torn states --------------------------------------------------------------------------------------

/// Chains in the hunt.
const HUNTED: usize = if cfg!(miri) { 8 } else { 12_000 };

/// One chain of the hunt and who may hold it: its first holder all of it, its second the first half.
struct Prey {
    blocks: Vec<SequenceHash>,
    first: WorkerId,
    second: WorkerId,
    /// Twice the number of changes, odd while one is under way.
    state: AtomicU32,
}

impl Prey {
    fn new(number: u64) -> Self {
        let random = mix(number ^ 0xface);
        let length = match random % 64 {
            0 if !cfg!(miri) => 400 + random / 64 % 3_000,
            1..8 => 60 + random / 64 % 200,
            _ => 1 + random / 64 % 30,
        };
        let blocks = (0..length).map(|i| name(1 << 61 | number << 16 | i)).collect();
        let worker = |shift: u32| WorkerId(1 + (random >> shift) as u32 % 150);
        let (first, second) = (worker(20), worker(40));
        let second = if first == second { WorkerId(500) } else { second };
        Self { blocks, first, second, state: AtomicU32::new(0) }
    }

    /// Leading blocks of the first and of the second holder after so many changes.
    fn due(&self, changes: u32) -> (u32, u32) {
        let whole = self.blocks.len() as u32;
        let half = whole.div_ceil(2);
        match changes % 4 {
            0 => (0, 0),
            1 => (whole, 0),
            2 => (whole, half),
            _ => (0, half),
        }
    }

    /// The next change.
    fn change(&self, index: &mut BlockIndex, rng: &mut Rng) {
        let changes = self.state.load(Ordering::Relaxed) / 2;
        self.state.store(2 * changes + 1, Ordering::SeqCst);
        let half = &self.blocks[..self.blocks.len().div_ceil(2)];
        let namespace = NamespaceId(3);
        let mut remove = |worker, blocks: &[SequenceHash]| {
            let mut blocks: Vec<SequenceHash> = blocks.iter().rev().copied().collect();
            if rng.one_in(8) {
                blocks.reverse();
            }
            for part in blocks.chunks(1 + rng.below(200)) {
                index.remove(worker, part, Tier::Device);
            }
        };
        match changes % 4 {
            0 => drop(index.store(self.first, namespace, 3, &self.blocks, Tier::Device)),
            1 => drop(index.store(self.second, namespace, 3, half, Tier::Device)),
            2 => remove(self.first, &self.blocks),
            _ => remove(self.second, half),
        }
        self.state.store(2 * changes + 2, Ordering::SeqCst);
    }

    /// Looks the chain up and says what is wrong with the answer; answers whether nothing changed meanwhile.
    fn look(&self, reader: &IndexReader, list: &mut Vec<Overlap>) -> bool {
        let before = self.state.load(Ordering::SeqCst);
        reader.lookup_into(&self.blocks, list);
        fence(Ordering::SeqCst);
        let after = self.state.load(Ordering::SeqCst);
        let depth = |worker| list.iter().find(|o| o.worker == worker).map_or(0, |o| o.blocks);
        let found = (depth(self.first), depth(self.second));
        let others = list.iter().filter(|o| o.worker != self.first && o.worker != self.second);
        assert_eq!(others.count(), 0, "strangers in {list:?} of {} blocks", self.blocks.len());
        assert_eq!(list.len(), usize::from(found.0 > 0) + usize::from(found.1 > 0), "{list:?}");
        if before == after && before.is_multiple_of(2) {
            let due = self.due(before / 2);
            assert_eq!(found, due, "after {} changes of {} blocks", before / 2, self.blocks.len());
            return true;
        }
        let (whole, half) = self.due(2);
        assert!(found.0 <= whole && found.1 <= half, "{list:?} of {whole} blocks");
        false
    }
}

#[test]
fn no_reader_sees_a_chain_that_never_was() {
    let prey: Vec<Prey> = (0..HUNTED as u64).map(Prey::new).collect();
    let mut index = BlockIndex::new(u64::MAX);
    let readers: Vec<IndexReader> = (0..READERS).map(|_| index.reader()).collect();
    let (over, at) = (AtomicBool::new(false), AtomicUsize::new(0));
    let until = Instant::now() + time_to_run();
    let (mut changes, mut looks, mut calm) = (0_u64, 0_u64, 0_u64);
    std::thread::scope(|scope| {
        let (prey, over, at) = (&prey, &over, &at);
        let hunt = move |reader: &IndexReader, seed: u64| {
            let (mut rng, mut list, mut looks, mut calm) = (Rng(seed), Vec::new(), 0_u64, 0_u64);
            while !over.load(Ordering::Relaxed) {
                // Half of all looks go where the writer is.
                let near = at.load(Ordering::Relaxed);
                let chosen = if rng.one_in(2) { near } else { rng.below(prey.len()) };
                calm += u64::from(prey[chosen].look(reader, &mut list));
                looks += 1;
            }
            (looks, calm)
        };
        let hunting: Vec<_> = readers
            .iter()
            .enumerate()
            .map(|(i, reader)| scope.spawn(move || hunt(reader, mix(i as u64 + 9))))
            .collect();
        let mut rng = Rng(mix(seed()));
        let mut turn = 0;
        // All chains come and go in turn, which grows the table and frees it; then some at random.
        while Instant::now() < until && turn < if cfg!(miri) { 2 } else { usize::MAX } {
            for number in 0..prey.len() {
                let number = if turn % 3 == 2 { rng.below(prey.len()) } else { number };
                at.store(number, Ordering::Relaxed);
                let times = if turn % 3 == 0 { 1 } else { 1 + rng.below(4) };
                for _ in 0..times {
                    prey[number].change(&mut index, &mut rng);
                    changes += 1;
                }
                if hunting.iter().any(|thread| thread.is_finished()) {
                    break;
                }
            }
            turn += 1;
            if hunting.iter().any(|thread| thread.is_finished()) {
                break;
            }
        }
        over.store(true, Ordering::SeqCst);
        for thread in hunting {
            let (looked, was_calm) = thread.join().expect("a reader finds nothing wrong");
            looks += looked;
            calm += was_calm;
        }
    });
    let mut list = Vec::new();
    for chain in &prey {
        assert!(chain.look(&readers[0], &mut list));
    }
    println!("the hunt: {changes} changes, {looks} looks, {calm} with nothing changing meanwhile");
}
