//! Dynamo's published cost function, as its version 1.6.1 describes it, with the books that it keeps itself.
//!
//! ```text
//! cost = (prompt tokens not computed yet + prompt) / block - overlap      at least 0
//!      + different blocks of active requests there, with this one
//! ```
//! Blocks of host memory count three quarters. Its defaults: overlap counts fully, no weight for the number of requests, answers are not tracked, the least cost
//! wins and ties are drawn. With a temperature it draws from a softmax over costs scaled to their range. It goes by
//! what it sent, not by what workers report, and knows of first tokens and ends at once.

use std::sync::Arc;

use mainstay_route::common_prefix;
use mainstay_types::SequenceHash;

use crate::fleet::Overlaps;
use crate::policy::{Question, Ticket};
use crate::rng::mix;

/// What a block of host memory counts beside one of the device.
const HOST_CREDIT: f64 = 0.75;

/// A request that has not ended.
struct Active {
    id: u64,
    chain: Arc<[SequenceHash]>,
    blocks: u32,
    /// Tokens that it has to compute; 0 once it has.
    prefill_tokens: u64,
}

#[derive(Default)]
struct Books {
    active: Vec<Active>,
    /// Different blocks of all active requests.
    blocks: u64,
    prefill_tokens: u64,
}

/// The number of leading blocks that both have.
fn common(a: &Arc<[SequenceHash]>, a_blocks: u32, b: &Arc<[SequenceHash]>, b_blocks: u32) -> u32 {
    let most = a_blocks.min(b_blocks);
    if Arc::ptr_eq(a, b) {
        return most;
    }
    common_prefix(&a[..most as usize], &b[..most as usize]) as u32
}

impl Books {
    /// Blocks of a prompt that no active request has. Prompts form a tree, so those that one has are a prefix.
    fn new_blocks(&self, chain: &Arc<[SequenceHash]>, blocks: u32) -> u32 {
        let shared = self.active.iter().map(|a| common(&a.chain, a.blocks, chain, blocks)).max();
        blocks - shared.unwrap_or(0)
    }
}

/// The cost function with its books.
pub(crate) struct DynamoCost {
    books: Vec<Books>,
    block_tokens: u32,
    temperature: f64,
    last_id: u64,
    costs: Vec<f64>,
    overlap_blocks: Vec<u32>,
    credits: Vec<f64>,
}

impl DynamoCost {
    pub(crate) fn new(workers: u32, block_tokens: u32, temperature: f64) -> Self {
        Self {
            books: (0..workers).map(|_| Books::default()).collect(),
            block_tokens: block_tokens.max(1),
            temperature,
            last_id: 0,
            costs: Vec::new(),
            overlap_blocks: Vec::new(),
            credits: Vec::new(),
        }
    }

    /// Chooses, and notes that the request is on its way there.
    pub(crate) fn choose(&mut self, question: &Question<'_>, overlaps: &Overlaps) -> (u32, Ticket) {
        self.overlap_blocks.clear();
        self.overlap_blocks.resize(self.books.len(), 0);
        for overlap in &overlaps.near {
            if let Some(blocks) = self.overlap_blocks.get_mut(overlap.worker.0 as usize) {
                *blocks = overlap.blocks.min(question.prompt_blocks);
            }
        }
        self.credits.clear();
        self.credits.extend(self.overlap_blocks.iter().map(|blocks| f64::from(*blocks)));
        for overlap in &overlaps.stored {
            if let Some(credit) = self.credits.get_mut(overlap.worker.0 as usize) {
                let further = f64::from(overlap.blocks.min(question.prompt_blocks)) - *credit;
                *credit += further.max(0.0) * HOST_CREDIT;
            }
        }
        self.costs.clear();
        for (books, credit) in self.books.iter().zip(&self.credits) {
            let tokens = books.prefill_tokens + u64::from(question.prompt_tokens);
            let raw = tokens as f64 / f64::from(self.block_tokens);
            let new = books.new_blocks(question.chain, question.prompt_blocks);
            let decode = books.blocks + u64::from(new);
            self.costs.push((raw - credit).max(0.0) + decode as f64);
        }
        let worker = self.pick(question.random);
        let cached = u64::from(self.overlap_blocks[worker]) * u64::from(self.block_tokens);
        let books = &mut self.books[worker];
        let prefill_tokens = u64::from(question.prompt_tokens).saturating_sub(cached);
        books.blocks += u64::from(books.new_blocks(question.chain, question.prompt_blocks));
        books.prefill_tokens += prefill_tokens;
        self.last_id += 1;
        let (id, chain) = (self.last_id, Arc::clone(question.chain));
        books.active.push(Active { id, chain, blocks: question.prompt_blocks, prefill_tokens });
        (worker as u32, Ticket::Dynamo { worker: worker as u32, id })
    }

    fn pick(&self, random: u64) -> usize {
        let least = self.costs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.costs.iter().copied().fold(0.0, f64::max);
        let weight = |cost: f64| -> f64 {
            if self.temperature <= 0.0 || most <= least {
                return if cost <= least { 1.0 } else { 0.0 };
            }
            (-(cost - least) / (most - least) / self.temperature).exp()
        };
        let sum: f64 = self.costs.iter().map(|cost| weight(*cost)).sum();
        let mut drawn = (mix(random) >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        for (at, cost) in self.costs.iter().enumerate() {
            drawn -= weight(*cost);
            if drawn < 0.0 {
                return at;
            }
        }
        // Rounding may leave a rest: the last that can be drawn has it.
        self.costs.iter().rposition(|cost| weight(*cost) > 0.0).unwrap_or(0)
    }

    /// The prompt of a request is computed.
    pub(crate) fn prefilled(&mut self, worker: u32, id: u64) {
        let Some(books) = self.books.get_mut(worker as usize) else { return };
        if let Some(active) = books.active.iter_mut().find(|active| active.id == id) {
            books.prefill_tokens -= std::mem::take(&mut active.prefill_tokens);
        }
    }

    /// A request has ended.
    pub(crate) fn ended(&mut self, worker: u32, id: u64) {
        self.prefilled(worker, id);
        let Some(books) = self.books.get_mut(worker as usize) else { return };
        let Some(at) = books.active.iter().position(|active| active.id == id) else { return };
        let Active { chain, blocks, .. } = books.active.swap_remove(at);
        books.blocks -= u64::from(books.new_blocks(&chain, blocks));
    }
}

#[cfg(test)]
mod tests {
    use mainstay_index::Overlap;
    use mainstay_types::WorkerId;

    use super::*;

    fn chain(from: u128, blocks: u128) -> Arc<[SequenceHash]> {
        (0..blocks).map(|at| SequenceHash(if at < 4 { at } else { from + at })).collect()
    }

    fn question(chain: &Arc<[SequenceHash]>, random: u64) -> Question<'_> {
        Question {
            now_ms: 0,
            session: 0,
            chain,
            prompt_blocks: chain.len() as u32,
            prompt_tokens: chain.len() as u32 * 10 + 5,
            block_tokens: 10,
            priority: 0,
            output_tokens: 0,
            fetch_us_per_token: None,
            random,
        }
    }

    fn near(blocks: u32) -> Overlaps {
        let near = vec![Overlap { worker: WorkerId(1), blocks }];
        Overlaps { near, ..Overlaps::default() }
    }

    #[test]
    fn costs_are_those_of_the_formula() {
        let mut cost = DynamoCost::new(2, 10, 0.0);
        let (a, b) = (chain(100, 10), chain(200, 8));
        let overlap = near(6);
        let (worker, first) = cost.choose(&question(&a, 0), &overlap);
        assert_eq!((worker, &cost.costs[..]), (1, &[20.5, 14.5][..]));
        // 45 tokens wait at worker 1; of ten blocks there b shares four.
        cost.choose(&question(&b, 0), &near(0));
        assert_eq!(cost.costs, [16.5, 8.5 + 4.5 + 14.0]);
        let Ticket::Dynamo { worker, id } = first else { panic!("its own ticket") };
        cost.prefilled(worker, id);
        cost.choose(&question(&b, 0), &near(0));
        assert_eq!(cost.costs[1], 8.5 + 14.0);
        cost.ended(worker, id);
        assert_eq!(cost.books[1].active.len(), 1);
        assert_eq!((cost.books[1].blocks, cost.books[1].prefill_tokens), (8, 85));
    }

    #[test]
    fn a_temperature_spreads_and_its_absence_does_not() {
        let a = chain(100, 10);
        let spread = |temperature: f64| {
            let mut seen = [0; 2];
            for random in 0..200 {
                let mut cost = DynamoCost::new(2, 10, temperature);
                let overlap = near(6);
                seen[cost.choose(&question(&a, random), &overlap).0 as usize] += 1;
            }
            seen
        };
        assert_eq!(spread(0.0), [0, 200]);
        // e^-1 against 1 is 27 %.
        let warm = spread(1.0);
        assert!((35..75).contains(&warm[0]), "{warm:?}");
    }

    #[test]
    fn books_are_empty_when_all_have_ended() {
        let mut cost = DynamoCost::new(3, 10, 0.0);
        let mut tickets = Vec::new();
        for number in 0..60_u64 {
            let chain = chain(u128::from(number % 7) * 50, 3 + u128::from(number % 11));
            tickets.push(cost.choose(&question(&chain, number), &near(0)).1);
            if number % 3 == 0 {
                let at = number as usize % tickets.len();
                if let Ticket::Dynamo { worker, id } = tickets.swap_remove(at) {
                    cost.ended(worker, id);
                }
            }
        }
        for ticket in tickets {
            if let Ticket::Dynamo { worker, id } = ticket {
                cost.ended(worker, id);
            }
        }
        assert!(cost.books.iter().all(|b| b.blocks == 0 && b.prefill_tokens == 0));
    }
}
