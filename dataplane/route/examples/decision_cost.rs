//! What a decision costs: microseconds for one question and for noting its answer, in the middle of a busy stream.
//!
//! A thousand workers all hold a common beginning of 512 blocks, some hold more, and conversations of up to 8,192
//! blocks come by turns, a thousand requests a second of virtual time, so that bookings, predictions and warm
//! conversations are as many as they get. Arguments: workers, blocks of a prompt, requests that are measured, and
//! `learned` for the policy that learns.

use std::collections::VecDeque;
use std::time::Instant;

use mainstay_index::Overlap;
use mainstay_route::{BookingId, Inputs, Policy, Router, WorkerLoad, WorkerView};
use mainstay_types::{Epoch, SequenceHash, WorkerId};

const BLOCK_TOKENS: u32 = 16;
/// What all prompts begin with.
const COMMON_BLOCKS: usize = 512;
/// Prompts that come by turns: together they are larger than any cache near the core.
const PROMPTS: u64 = 64;
/// Requests that are running at any time.
const RUNNING: usize = 4_000;
/// Requests before the measurement starts, most of them short and none alike.
const BEFORE: u64 = 60_000;

/// Any spreading of numbers will do: hashes are spread already.
fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn prompt(name: u64, blocks: usize) -> Vec<SequenceHash> {
    let hash = |at: usize| {
        let owner = if at < COMMON_BLOCKS { 0 } else { name + 1 };
        let low = mixed(owner << 24 | at as u64);
        SequenceHash(u128::from(mixed(low)) << 64 | u128::from(low))
    };
    (0..blocks).map(hash).collect()
}

struct Bench {
    router: Router,
    workers: Vec<WorkerView>,
    running: VecDeque<BookingId>,
    choose_ns: Vec<u64>,
    book_ns: Vec<u64>,
    now_ms: u64,
    policy: Policy,
}

impl Bench {
    fn new(count: u32, policy: Policy) -> Self {
        let view = |id: u32| WorkerView {
            id: WorkerId(id + 1),
            epoch: Epoch(1),
            draining: false,
            load: WorkerLoad {
                heard_ms: 1,
                running: (mixed(id.into()) % 16) as u32,
                waiting_prefill_tokens: mixed(u64::from(id) + 7) % 2_000,
                prefill_us_per_token: 50.0 + (id % 7) as f32,
                decode_us_per_step: 15_000.0,
                blocks_free: Some(20_000),
                blocks_total: Some(50_000),
                ..WorkerLoad::default()
            },
            abroad: false,
        };
        let workers = (0..count).map(view).collect();
        let (running, choose_ns, book_ns) = (VecDeque::new(), Vec::new(), Vec::new());
        let (router, now_ms) = (Router::default(), 1_000);
        Self { router, workers, running, choose_ns, book_ns, now_ms, policy }
    }

    /// One request: each worker's load is heard every 50 ms, each at another time.
    fn ask(&mut self, number: u64, blocks: &[SequenceHash], overlaps: &[Overlap]) {
        self.now_ms += 1;
        let heard = self.workers.iter_mut().skip((self.now_ms % 50) as usize).step_by(50);
        heard.for_each(|view| view.load.heard_ms = self.now_ms);
        let inputs = Inputs {
            now_ms: self.now_ms,
            prompt_blocks: blocks,
            prompt_tokens: blocks.len() as u32 * BLOCK_TOKENS + 5,
            block_tokens: BLOCK_TOKENS,
            overlaps,
            stored: &[],
            fetch: None,
            workers: &self.workers,
            excluded: &[],
            priority: 0,
            random: mixed(number),
            policy: self.policy,
            region_penalty_ms: None,
        };
        let start = Instant::now();
        let decision = self.router.choose(&inputs).expect("there are workers");
        self.choose_ns.push(start.elapsed().as_nanos() as u64);
        let start = Instant::now();
        let booking = self.router.book(self.now_ms, &decision, blocks);
        self.book_ns.push(start.elapsed().as_nanos() as u64);
        // Each worker is as quick as its load says, a few are not.
        let slow = if decision.worker.0 % 50 == 7 { 3.0 } else { 1.0 };
        let took_ms = (decision.cost_ms * slow) as u64;
        self.router.first_token(self.now_ms + took_ms, booking);
        self.running.push_back(booking);
        if self.running.len() > RUNNING {
            let ended = self.running.pop_front().expect("it is not empty");
            self.router.release(ended);
        }
    }
}

/// Everybody holds the common part, in no order; a few hold more of this one.
fn overlaps(name: u64, workers: u32, blocks: u32) -> Vec<Overlap> {
    let mut all: Vec<u32> = (0..workers).collect();
    all.sort_unstable_by_key(|id| mixed(u64::from(*id) ^ name << 32));
    let more = |place: usize| match place {
        // All but the last turn.
        0..3 => blocks - blocks / 4 - 60,
        3..43 => blocks / 8,
        _ => (COMMON_BLOCKS as u32).min(blocks),
    };
    let held = all.iter().enumerate();
    held.map(|(place, id)| Overlap { worker: WorkerId(id + 1), blocks: more(place) }).collect()
}

fn report(what: &str, ns: &mut [u64]) {
    ns.sort_unstable();
    let at = |share: f64| ns[((ns.len() - 1) as f64 * share) as usize] as f64 / 1_000.0;
    println!("{what}: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us", at(0.5), at(0.99), at(0.999));
}

fn main() {
    let learned = std::env::args().any(|word| word == "learned");
    let policy = if learned { Policy::KvLearned } else { Policy::Kv };
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse().ok());
    let mut next = |usual: u64| numbers.next().unwrap_or(usual);
    let (workers, blocks, count) = (next(1_000) as u32, next(8_192) as usize, next(20_000));
    let mut bench = Bench::new(workers, policy);
    for number in 0..BEFORE {
        let short = prompt(1_000 + number, COMMON_BLOCKS.min(blocks) + 40);
        let held = number.is_multiple_of(16).then(|| overlaps(number, workers, short.len() as u32));
        bench.ask(number, &short, &held.unwrap_or_default());
    }
    let prompts: Vec<_> = (0..PROMPTS).map(|name| prompt(name, blocks)).collect();
    let held: Vec<_> = (0..PROMPTS).map(|name| overlaps(name, workers, blocks as u32)).collect();
    bench.choose_ns.clear();
    bench.book_ns.clear();
    for number in 0..count {
        // A turn of each conversation is longer than the one before.
        let name = (number % PROMPTS) as usize;
        let length = blocks - blocks / 4 + (number / PROMPTS * 8) as usize % (blocks / 4 + 1);
        bench.ask(BEFORE + number, &prompts[name][..length], &held[name]);
    }
    let (bookings, predictions) = (bench.router.booking_count(), bench.router.prediction_count());
    let conversations = bench.router.conversation_count();
    println!("{workers} workers, {blocks} blocks, {count} requests, {}", policy.name());
    println!("{bookings} bookings, {predictions} predictions, {conversations} conversations");
    report("choose", &mut bench.choose_ns);
    report("book", &mut bench.book_ns);
}
