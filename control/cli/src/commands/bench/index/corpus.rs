//! A corpus: requests placed on workers with caches of a fixed size, as one order of lookups and block events.
//!
//! Built once, before any clock starts. Each event is there in two forms: block by block, and as run records,
//! which name a stretch that others hold already by its end alone. Requests longer than half a worker's cache are
//! cut, so that no capacity is too small.

use std::ops::Range;

use clap::ValueEnum;
use mainstay_index::BlockKey;

use super::lru::Lru;
use super::rng::{KeyMap, Rng};
use super::sessions::{ROOT_KEY, Request, Source};

/// How requests find their worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Route {
    /// Any worker.
    Random,
    /// The one with the best overlap less its load.
    Kv,
}

/// What to build.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) workers: u32,
    pub(super) capacity_blocks: usize,
    pub(super) route: Route,
    pub(super) requests: usize,
    pub(super) seed: u64,
}

/// Stored blocks lie in [`Corpus::keys`], removed ones in [`Corpus::victims`].
#[derive(Clone, Copy)]
pub(super) enum Change {
    Stored { parent: u64 },
    Removed,
}

/// One block event of one worker.
#[derive(Clone, Copy)]
pub(super) struct Event {
    pub(super) worker: u32,
    pub(super) change: Change,
    first: usize,
    pub(super) count: u32,
    /// Where its run records end; they start where those of the event before end.
    runs_end: usize,
}

/// The same as run records.
#[derive(Clone, Copy)]
pub(super) enum Run {
    /// A stretch that the index knows, held by one more worker.
    Hold { tail: u64, count: u32 },
    /// Blocks that nobody held.
    Store { parent: u64, first: usize, count: u32 },
    /// A stretch that the worker lets go.
    Release { tail: u64, count: u32 },
}

/// What happens next.
#[derive(Clone, Copy)]
pub(super) enum Op {
    Query(u32),
    Event(u32),
}

/// The whole of it.
pub(super) struct Corpus {
    pub(super) name: String,
    pub(super) block_tokens: u64,
    pub(super) workers: u32,
    pub(super) route: Route,
    pub(super) keys: Vec<BlockKey>,
    pub(super) victims: Vec<BlockKey>,
    pub(super) queries: Vec<Range<usize>>,
    pub(super) events: Vec<Event>,
    pub(super) runs: Vec<Run>,
    pub(super) ops: Vec<Op>,
    /// Blocks of prompts that the chosen worker held.
    pub(super) hit_blocks: u64,
}

impl Corpus {
    pub(super) fn query(&self, number: u32) -> &[BlockKey] {
        &self.keys[self.queries[number as usize].clone()]
    }

    pub(super) fn blocks(&self, event: &Event) -> &[BlockKey] {
        let range = event.first..event.first + event.count as usize;
        match event.change {
            Change::Stored { .. } => &self.keys[range],
            Change::Removed => &self.victims[range],
        }
    }

    pub(super) fn runs_of(&self, event: u32) -> &[Run] {
        let number = event as usize;
        let start = number.checked_sub(1).map_or(0, |before| self.events[before].runs_end);
        &self.runs[start..self.events[number].runs_end]
    }

    /// The numbers of all events.
    pub(super) fn all_events(&self) -> Vec<u32> {
        (0..self.events.len() as u32).collect()
    }

    /// Stored and removed blocks of some events.
    pub(super) fn block_ops(&self, events: &[u32]) -> u64 {
        events.iter().map(|e| u64::from(self.events[*e as usize].count)).sum()
    }

    /// The events and the queries of a part of the timeline, given in hundredths.
    pub(super) fn part(&self, from: usize, to: usize) -> (Vec<u32>, Vec<u32>) {
        let at = |percent: usize| self.ops.len() * percent / 100;
        let (mut events, mut queries) = (Vec::new(), Vec::new());
        for op in &self.ops[at(from)..at(to)] {
            match op {
                Op::Event(number) => events.push(*number),
                Op::Query(number) => queries.push(*number),
            }
        }
        (events, queries)
    }
}

/// Everything that changes while a corpus is built.
struct Builder {
    corpus: Corpus,
    shape: Shape,
    caches: Vec<Lru>,
    /// How many workers hold a block: what tells a hold from a store.
    holders: KeyMap<u32>,
    loads: Vec<f64>,
    rng: Rng,
}

/// Serves the source's requests and writes down what the index would be told and asked.
pub(super) fn build(
    name: &str,
    block_tokens: u64,
    source: &mut dyn Source,
    shape: &Shape,
) -> Corpus {
    let corpus = Corpus {
        name: name.to_owned(),
        block_tokens,
        workers: shape.workers,
        route: shape.route,
        keys: Vec::new(),
        victims: Vec::new(),
        queries: Vec::new(),
        events: Vec::new(),
        runs: Vec::new(),
        ops: Vec::new(),
        hit_blocks: 0,
    };
    let caches = (0..shape.workers).map(|_| Lru::new(shape.capacity_blocks)).collect();
    let mut builder = Builder {
        corpus,
        shape: shape.clone(),
        caches,
        holders: KeyMap::default(),
        loads: vec![0.0; shape.workers as usize],
        rng: Rng::new(shape.seed ^ 0x0c0a_9005),
    };
    let mut request = Request::default();
    while builder.corpus.queries.len() < shape.requests && source.next(&mut request) {
        builder.serve(&mut request);
    }
    builder.corpus
}

impl Builder {
    fn serve(&mut self, request: &mut Request) {
        let prompt = request.prompt_blocks.min(self.shape.capacity_blocks / 2);
        if prompt < request.prompt_blocks {
            request.chain.truncate(prompt);
        }
        request.chain.truncate(prompt + self.shape.capacity_blocks / 8);
        let chain = &request.chain;
        let first = self.corpus.keys.len();
        self.corpus.keys.extend_from_slice(chain);
        self.corpus.ops.push(Op::Query(self.corpus.queries.len() as u32));
        self.corpus.queries.push(first..first + prompt);

        let worker = self.choose(&chain[..prompt]);
        let held = held(&self.caches[worker], &chain[..prompt]);
        self.corpus.hit_blocks += held as u64;
        let decoded = chain.len() - prompt;
        // Loads fade, so that what counts is the recent past.
        let fade = 1.0 - 1.0 / (4.0 * f64::from(self.shape.workers));
        self.loads.iter_mut().for_each(|load| *load *= fade);
        self.loads[worker] += (prompt - held + decoded) as f64;

        // What is in use must not be evicted to make room for the rest.
        self.touch(worker, chain, held);
        self.store(worker, chain, first, held, prompt);
        for block in prompt..chain.len() {
            // An agent that comes back to its worker may find what it decodes there already.
            if !self.caches[worker].holds(chain[block].0) {
                self.store(worker, chain, first, block, block + 1);
            }
        }
        self.touch(worker, chain, chain.len());
    }

    fn choose(&mut self, prompt: &[BlockKey]) -> usize {
        let workers = self.caches.len();
        let start = self.rng.place(workers);
        if self.shape.route == Route::Random {
            return start;
        }
        let cost = |worker: usize| self.loads[worker] - held(&self.caches[worker], prompt) as f64;
        let turned = (0..workers).map(|number| (number + start) % workers);
        let best = turned.map(|worker| (worker, cost(worker))).min_by(|a, b| a.1.total_cmp(&b.1));
        best.map_or(0, |(worker, _)| worker)
    }

    /// Makes the first `count` blocks the newest, the first of them newest of all.
    fn touch(&mut self, worker: usize, chain: &[BlockKey], count: usize) {
        for block in (0..count).rev() {
            self.caches[worker].touch(chain[block].0, parent_of(chain, block));
        }
    }

    /// Makes room for blocks `from` to `to` of a chain and stores them.
    fn store(&mut self, worker: usize, chain: &[BlockKey], first: usize, from: usize, to: usize) {
        if from == to {
            return;
        }
        self.evict(worker, to - from);
        for block in (from..to).rev() {
            self.caches[worker].touch(chain[block].0, parent_of(chain, block));
        }
        let mut known = 0;
        for (position, key) in chain[from..to].iter().enumerate() {
            let holders = self.holders.entry(key.0).or_insert(0);
            if *holders > 0 && known == position {
                known += 1;
            }
            *holders += 1;
        }
        if known > 0 {
            self.corpus
                .runs
                .push(Run::Hold { tail: chain[from + known - 1].0, count: known as u32 });
        }
        let rest = from + known;
        if rest < to {
            let (parent, count) = (parent_of(chain, rest), (to - rest) as u32);
            self.corpus.runs.push(Run::Store { parent, first: first + rest, count });
        }
        let change = Change::Stored { parent: parent_of(chain, from) };
        self.emit(worker, change, first + from, to - from);
    }

    fn evict(&mut self, worker: usize, count: usize) {
        let first = self.corpus.victims.len();
        // The stretch that is being let go, and the parent of the block last taken.
        let (mut tail, mut length, mut next) = (0, 0u32, None);
        while self.caches[worker].len() + count > self.shape.capacity_blocks {
            let Some((key, parent)) = self.caches[worker].evict() else { break };
            if next != Some(key) {
                if length > 0 {
                    self.corpus.runs.push(Run::Release { tail, count: length });
                }
                (tail, length) = (key, 0);
            }
            (length, next) = (length + 1, Some(parent));
            self.corpus.victims.push(BlockKey(key));
            if let Some(holders) = self.holders.get_mut(&key) {
                *holders -= 1;
                if *holders == 0 {
                    self.holders.remove(&key);
                }
            }
        }
        if length > 0 {
            self.corpus.runs.push(Run::Release { tail, count: length });
            self.emit(worker, Change::Removed, first, self.corpus.victims.len() - first);
        }
    }

    fn emit(&mut self, worker: usize, change: Change, first: usize, count: usize) {
        self.corpus.ops.push(Op::Event(self.corpus.events.len() as u32));
        let runs_end = self.corpus.runs.len();
        let (worker, count) = (worker as u32, count as u32);
        self.corpus.events.push(Event { worker, change, first, count, runs_end });
    }
}

fn parent_of(chain: &[BlockKey], block: usize) -> u64 {
    block.checked_sub(1).map_or(ROOT_KEY, |before| chain[before].0)
}

/// How many leading blocks a cache holds. Caches never have holes, which makes it a binary search.
fn held(cache: &Lru, prompt: &[BlockKey]) -> usize {
    prompt.partition_point(|key| cache.holds(key.0))
}

#[cfg(test)]
mod tests;
