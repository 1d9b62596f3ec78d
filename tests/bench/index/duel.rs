//! The prototype, the index of an earlier commit (`base`) and the one of this checkout (`fresh`), built from one
//! timeline in one process and asked in alternation: the least CPU time of each.
//!
//! `duel.sh` builds it beside the harness's `corpus.rs`; it is no part of this workspace's build. Two forms of one
//! index cannot be told apart by runs minutes apart on a machine with other work; rounds of some milliseconds can.
mod corpus;
mod plain;

use std::hint::black_box;
use std::ops::Range;
use std::sync::Barrier;

use corpus::{Cfg, Corpus, Event, Op, Rng, build};

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// All chains lie in one namespace, so its number is the parent of every first block.
const NAMESPACE: u128 = 0x6d61_696e_7374_6179;
/// What the harness's lanes take at once.
const BATCH: usize = 32;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(u64);

impl base::BlockName for Key {
    #[inline(always)]
    fn key(self) -> u64 {
        self.0
    }
}

impl fresh::BlockName for Key {
    #[inline(always)]
    fn key(self) -> u64 {
        self.0
    }
}

fn plain_keys(keys: &[Key]) -> &[u64] {
    // SAFETY: a key is its number, by `repr(transparent)`.
    unsafe { std::slice::from_raw_parts(keys.as_ptr().cast(), keys.len()) }
}

struct Change {
    stored: bool,
    worker: u32,
    parent: Option<u64>,
    blocks: Vec<Key>,
}

/// What is asked for, in the order in which it is asked.
type Questions = Vec<Range<usize>>;

trait Contestant: Sync {
    fn list(&self, prefix: &[Key]) -> usize;
    fn groups(&self, prefix: &[Key]) -> usize;
    fn answer(&self, prefix: &[Key]) -> Vec<(u32, u32)>;
    fn memory(&self) -> (u64, String);
    /// CPU time of one lookup, in nanoseconds.
    fn time(&self, keys: &[Key], questions: &Questions, groups: bool, seconds: f64) -> f64;
}

fn cpu() -> f64 {
    // SAFETY: the clock writes what it is given, and zero is a value of it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn time_of(
    mut ask: impl FnMut(&[Key]) -> usize,
    keys: &[Key],
    questions: &Questions,
    seconds: f64,
) -> f64 {
    let (mut count, mut sum) = (0_u64, 0);
    let start = cpu();
    loop {
        for question in questions {
            sum += ask(&keys[question.clone()]);
        }
        count += questions.len() as u64;
        let used = cpu() - start;
        if used > seconds {
            black_box(sum);
            return used * 1e9 / count as f64;
        }
    }
}

macro_rules! time_each_form {
    () => {
        #[inline(never)]
        fn time(&self, keys: &[Key], questions: &Questions, groups: bool, seconds: f64) -> f64 {
            if groups {
                time_of(|prefix| self.groups(prefix), keys, questions, seconds)
            } else {
                time_of(|prefix| self.list(prefix), keys, questions, seconds)
            }
        }
    };
}

macro_rules! reused {
    ($out:ident: $item:ty, $ask:expr) => {{
        thread_local!(static OUT: std::cell::RefCell<Vec<$item>> = const {
            std::cell::RefCell::new(Vec::new())
        });
        OUT.with_borrow_mut(|$out| {
            $ask;
            black_box(&$out[..]).len()
        })
    }};
}

struct Proto {
    index: &'static proto::Index,
    memory: (u64, String),
}

impl Contestant for Proto {
    fn list(&self, prefix: &[Key]) -> usize {
        reused!(out: (u32, u32), {
            out.clear();
            self.index.find(plain_keys(prefix), out)
        })
    }

    fn groups(&self, prefix: &[Key]) -> usize {
        reused!(out: (u32, u64, u32), {
            out.clear();
            self.index.find_groups(plain_keys(prefix), out)
        })
    }

    fn answer(&self, prefix: &[Key]) -> Vec<(u32, u32)> {
        let mut out = Vec::new();
        self.index.find(plain_keys(prefix), &mut out);
        out.sort_unstable();
        out
    }

    fn memory(&self) -> (u64, String) {
        self.memory.clone()
    }

    time_each_form!();
}

/// Applies all changes as the harness's lane does; answers the CPU time.
fn fill_proto(workers: u32, changes: &[Change]) -> (Box<dyn Contestant>, f64) {
    let index: &'static proto::Index = Box::leak(Box::new(proto::Index::new(workers as usize)));
    let mut writer = index.writer();
    let start = cpu();
    for batch in changes.chunks(BATCH) {
        for change in batch {
            writer.warm(change.blocks[0].0, change.parent.filter(|_| change.stored));
        }
        for change in batch {
            match change.parent {
                Some(parent) if change.stored => writer.warm2(parent),
                None if change.stored => {}
                _ => writer.warm2(change.blocks[0].0),
            }
        }
        for change in batch {
            let blocks = plain_keys(&change.blocks);
            if change.stored {
                writer.store(change.worker, change.parent, blocks);
            } else {
                writer.remove(change.worker, blocks);
            }
        }
    }
    let used = cpu() - start;
    let bytes = writer.bytes().iter().sum::<usize>() as u64;
    (Box::new(Proto { index, memory: (bytes, writer.stats()) }), used)
}

macro_rules! our_index {
    ($name:ident, $fill:ident, $index:ident, $types:ident) => {
        struct $name {
            index: $index::BlockIndex,
            reader: $index::IndexReader,
        }

        impl Contestant for $name {
            fn list(&self, prefix: &[Key]) -> usize {
                reused!(out: $index::Overlap, self.reader.lookup_into(prefix, out))
            }

            fn groups(&self, prefix: &[Key]) -> usize {
                reused!(out: $index::Group, self.reader.groups_into(prefix, out))
            }

            fn answer(&self, prefix: &[Key]) -> Vec<(u32, u32)> {
                let all = self.index.lookup(prefix);
                all.iter().map(|overlap| (overlap.worker.0, overlap.blocks)).collect()
            }

            fn memory(&self) -> (u64, String) {
                let memory = self.index.memory();
                (memory.total(), format!("{memory:?} {:?}", self.index.stats()))
            }

            time_each_form!();
        }

        fn $fill(_: u32, changes: &[Change]) -> (Box<dyn Contestant>, f64) {
            fn event_of(change: &Change) -> $index::EventRef<'_, Key> {
                let (tier, blocks) = ($types::Tier::Device, &change.blocks[..]);
                let worker = $types::WorkerId(change.worker);
                if !change.stored {
                    return $index::EventRef::Remove { worker, blocks, tier };
                }
                let namespace = $types::NamespaceId(NAMESPACE as _);
                let parent = change.parent.unwrap_or(NAMESPACE as u64);
                $index::EventRef::Store { worker, namespace, parent, blocks, tier }
            }
            let mut index = $index::BlockIndex::new(u64::MAX);
            let reader = index.reader();
            let start = cpu();
            for batch in changes.chunks(BATCH) {
                let events: Vec<_> = batch.iter().map(event_of).collect();
                index.apply_batch(&events);
            }
            let used = cpu() - start;
            (Box::new($name { index, reader }), used)
        }
    };
}

our_index!(Base, fill_base, base, base_types);
our_index!(Fresh, fill_fresh, fresh, fresh_types);

type Fill = fn(u32, &[Change]) -> (Box<dyn Contestant>, f64);
const NAMES: [&str; 3] = ["proto", "base", "fresh"];
const FILLS: [Fill; 3] = [fill_proto, fill_base, fill_fresh];

/// `rivals.sh`'s configurations: corpus, workers, placement.
fn config(name: &str) -> Cfg {
    let parts: Vec<&str> = name.split('-').collect();
    let [corpus, workers, route] = parts[..] else { panic!("{name} is no corpus-workers-route") };
    let traces = std::env::var("BENCH_TRACES").expect("BENCH_TRACES names the folder of traces");
    let conversation = format!("{traces}/conversation_trace.jsonl");
    let sessions = format!("weka:{traces}/claude-code");
    let all = usize::MAX;
    let (trace, factor, dup, preamble, max_requests) = match corpus {
        "weka" => (sessions, 32, 1, 5, 14_000),
        "conv" => (conversation, 32, 1, 5, all),
        "dyn" => (conversation, 4, 20, 0, all),
        _ => panic!("{corpus} is no corpus: weka, conv, dyn"),
    };
    let (workers, route) = (workers.parse().expect("a number of workers"), route.into());
    let (cap, seed, decode, holes) = (16_384, 42, true, 0.0);
    Cfg { trace, factor, workers, route, cap, preamble, seed, decode, max_requests, dup, holes }
}

/// A configuration's changes and questions; the index is asked as it is after four fifths of the timeline.
struct Timeline {
    workers: u32,
    changes: Vec<Change>,
    keys: Vec<Key>,
    future: Questions,
    hot: Questions,
}

fn load(name: &str) -> Timeline {
    let cfg = config(name);
    let corpus = build(&cfg);
    let cut = corpus.ops.len() * 4 / 5;
    let changes = corpus.ops[..cut].iter().filter_map(|op| match op {
        Op::Event(at) => Some(change(&corpus, &corpus.events[*at as usize])),
        Op::Query(_) => None,
    });
    let questions = |range: Range<usize>| -> Questions {
        let ops = corpus.ops[range].iter();
        ops.filter_map(|op| match op {
            Op::Query(at) => Some(corpus.queries[*at as usize].clone()),
            Op::Event(_) => None,
        })
        .collect()
    };
    Timeline {
        workers: cfg.workers,
        changes: changes.collect(),
        keys: corpus.q_seq.iter().map(|hash| Key(*hash)).collect(),
        future: questions(cut..corpus.ops.len()),
        hot: questions(cut * 9 / 10..cut),
    }
}

fn change(corpus: &Corpus, event: &Event) -> Change {
    match event {
        Event::Store { worker, parent, blocks, .. } => Change {
            stored: true,
            worker: *worker,
            parent: *parent,
            blocks: corpus.stored[blocks.clone()].iter().map(|block| Key(block.0)).collect(),
        },
        Event::Remove { worker, hashes } => Change {
            stored: false,
            worker: *worker,
            parent: None,
            blocks: corpus.removed[hashes.clone()].iter().map(|hash| Key(*hash)).collect(),
        },
    }
}

fn shuffled(questions: &Questions, seed: u64) -> Questions {
    let (mut order, mut dice) = (questions.clone(), Rng(seed * 7_919 + 1));
    for at in (1..order.len()).rev() {
        order.swap(at, dice.below(at as u64 + 1) as usize);
    }
    order
}

/// One measurement: as many readers as there are lists of questions.
fn measure(
    index: &dyn Contestant,
    keys: &[Key],
    readers: &[Questions],
    groups: bool,
    seconds: f64,
) -> f64 {
    if let [questions] = readers {
        return index.time(keys, questions, groups, seconds);
    }
    let start = Barrier::new(readers.len());
    std::thread::scope(|scope| {
        let read = |questions| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                index.time(keys, questions, groups, seconds)
            })
        };
        let all: Vec<_> = readers.iter().map(read).collect();
        let sum: f64 = all.into_iter().map(|reader| reader.join().expect("a reader ends")).sum();
        sum / readers.len() as f64
    })
}

fn print_line(name: &str, what: &str, least: [f64; 3]) {
    let cell = |time: f64| if time < f64::MAX { format!("{time:.1}") } else { "-".into() };
    let [proto, base, fresh] = least.map(cell);
    let ratio = |a: usize, b: usize| {
        let known = least[a] < f64::MAX && least[b] < f64::MAX;
        if known { format!("{:.3}", least[a] / least[b]) } else { "-".into() }
    };
    let (to_proto, before, to_base) = (ratio(2, 0), ratio(1, 0), ratio(2, 1));
    println!("{name} {what} {proto} {base} {fresh} {before} {to_proto} {to_base}");
}

fn check(timeline: &Timeline, contestants: &[Option<Box<dyn Contestant>>; 3]) {
    let all = timeline.future.iter().chain(&timeline.hot).step_by(37);
    for question in all {
        let prefix = &timeline.keys[question.clone()];
        let mut answers = contestants.iter().flatten().map(|index| index.answer(prefix));
        let first = answers.next().unwrap_or_default();
        assert!(answers.all(|answer| answer == first), "contestants differ at {question:?}");
    }
}

fn duel(name: &str, rounds: usize, seconds: f64, who: &str, readers_max: usize) {
    let timeline = load(name);
    let named = |at: usize| who.split(',').any(|name| name == NAMES[at]);
    let mut contestants: [Option<Box<dyn Contestant>>; 3] = [const { None }; 3];
    let mut events = [f64::MAX; 3];
    let blocks: usize = timeline.changes.iter().map(|change| change.blocks.len()).sum();
    for _ in 0..rounds.div_ceil(8).min(4) {
        for at in (0..3).filter(|at| named(*at)) {
            let (index, used) = FILLS[at](timeline.workers, &timeline.changes);
            events[at] = events[at].min(used * 1e9 / blocks as f64);
            contestants[at] = Some(index);
        }
    }
    check(&timeline, &contestants);
    for (at, index) in contestants.iter().enumerate() {
        if let Some(index) = index {
            println!("# {name} {} {:?}", NAMES[at], index.memory());
        }
    }
    print_line(name, "events", events);
    let (future, hot) = (&timeline.future, &timeline.hot);
    let mut sets = Vec::new();
    for readers in 1..=readers_max {
        for (set, questions) in [("future", future), ("hot", hot)] {
            let all: Vec<_> = (0..readers as u64).map(|seed| shuffled(questions, seed)).collect();
            sets.push((format!("{set}{readers}"), all));
        }
    }
    for groups in [false, true] {
        let mut least = vec![[f64::MAX; 3]; sets.len()];
        for round in 0..rounds {
            for (least, (_, readers)) in least.iter_mut().zip(&sets) {
                for at in (0..3).map(|at| (at + round) % 3) {
                    if let Some(index) = &contestants[at] {
                        let time = measure(&**index, &timeline.keys, readers, groups, seconds);
                        least[at] = least[at].min(time);
                    }
                }
            }
        }
        for (least, (set, _)) in least.into_iter().zip(&sets) {
            print_line(name, &format!("{set}-{}", if groups { "groups" } else { "list" }), least);
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, seconds, who, readers, names @ ..] = &words[..] else {
        panic!("usage: duel ROUNDS SECONDS proto,base,fresh READERS CONFIGURATION...");
    };
    let rounds = rounds.parse().expect("a number of rounds");
    let seconds = seconds.parse().expect("seconds of a measurement");
    let readers = readers.parse().expect("a number of readers");
    println!("# configuration measure proto base fresh base/proto fresh/proto fresh/base (ns)");
    for name in names {
        duel(name, rounds, seconds, who, readers);
    }
}
