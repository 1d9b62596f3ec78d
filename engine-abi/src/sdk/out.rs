//! The OUT lane's queue: outputs that are never dropped, yet bounded.
//!
//! Up to [`OUT_ITEMS_SOFT`] items are kept as they come. Beyond that, tokens of a request that has an
//! unfinished item queued past the mark are appended to it, so the queue grows by at most one open
//! item per live request (of up to [`ENTRIES_SOFT`] entries); the shims admit no new request meanwhile.

use std::collections::{HashMap, VecDeque};

use super::{Finish, Output};

/// Queued outputs from which on the engine shall hold back.
pub const OUT_ITEMS_SOFT: usize = 4096;
/// Tokens and logprobs from which on a batch, or an item that others are merged into, is full.
const ENTRIES_SOFT: usize = 1 << 18;

fn entries(output: &Output) -> usize {
    output.tokens.len() + output.logprobs.len()
}

#[derive(Default)]
pub(super) struct OutQueue {
    items: VecDeque<Output>,
    /// The sequence number of the first item.
    first_seq: u64,
    /// Sequence numbers of the open items past the soft mark, by request.
    open: HashMap<u64, u64>,
}

impl OutQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.items.len() < OUT_ITEMS_SOFT
    }

    pub(super) fn push(&mut self, output: Output) {
        if self.has_room() {
            // What stands further ahead must not grow any more, or it would overtake this one.
            self.open.remove(&output.id);
            self.items.push_back(output);
            return;
        }
        let id = output.id;
        let ends = output.finish.is_some();
        if let Some(queued) = self.open_item(id) {
            merge(queued, output);
        } else {
            self.open.insert(id, self.first_seq + self.items.len() as u64);
            self.items.push_back(output);
        }
        if ends {
            self.open.remove(&id);
        }
    }

    pub(super) fn take(&mut self, items_max: usize) -> (u64, Vec<Output>) {
        let first_seq = self.first_seq;
        let mut sum = 0;
        let fits = |output: &&Output| {
            let is_first = sum == 0;
            sum += 1 + entries(output);
            is_first || sum <= ENTRIES_SOFT
        };
        let len = self.items.iter().take(items_max).take_while(fits).count();
        let taken: Vec<Output> = self.items.drain(..len).collect();
        self.first_seq += taken.len() as u64;
        if !self.open.is_empty() {
            let first = self.first_seq;
            self.open.retain(|_, seq| *seq >= first);
        }
        (first_seq, taken)
    }

    /// The queued item past the soft mark that more of request `id` may be merged into.
    fn open_item(&mut self, id: u64) -> Option<&mut Output> {
        let seq = *self.open.get(&id)?;
        let index = usize::try_from(seq.checked_sub(self.first_seq)?).ok()?;
        self.items.get_mut(index).filter(|queued| entries(queued) < ENTRIES_SOFT)
    }
}

/// Appends `later` to `earlier`, of the same request.
fn merge(earlier: &mut Output, later: Output) {
    let shift = earlier.tokens.len() as u32;
    earlier.tokens.extend(later.tokens);
    for mut logprob in later.logprobs {
        logprob.position = logprob.position.saturating_add(shift);
        earlier.logprobs.push(logprob);
    }
    if later.first {
        earlier.first = true;
        earlier.queue_us = later.queue_us;
        earlier.prefill_us = later.prefill_us;
    }
    if later.first || later.finish.is_some() {
        earlier.cached_tokens = later.cached_tokens;
    }
    let finish: Option<Finish> = later.finish;
    if finish.is_some() {
        earlier.finish = finish;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sdk::Logprob;

    fn token(id: u64, token: u32) -> Output {
        let logprob = Logprob { token, logprob: -1.0, position: 0, rank: 0 };
        Output { id, tokens: vec![token], logprobs: vec![logprob], ..Output::default() }
    }

    #[test]
    fn an_engine_that_does_not_throttle_costs_one_item_per_live_request() {
        let mut queue = OutQueue::default();
        for n in 0..100_000_u32 {
            queue.push(token(u64::from(n % 7), n));
        }
        assert!(!queue.has_room());
        assert_eq!(queue.items.len(), OUT_ITEMS_SOFT + 7);
        let (first_seq, taken) = queue.take(usize::MAX);
        assert_eq!((first_seq, taken.len()), (0, OUT_ITEMS_SOFT + 7));
        for id in 0..7_u64 {
            let of_one: Vec<u32> =
                taken.iter().filter(|o| o.id == id).flat_map(|o| o.tokens.clone()).collect();
            let sent: Vec<u32> = (0..100_000_u32).filter(|n| u64::from(n % 7) == id).collect();
            assert_eq!(of_one, sent, "nothing is lost and the order is kept");
        }
        for output in &taken {
            assert_eq!(output.tokens.len(), output.logprobs.len());
            for logprob in &output.logprobs {
                assert_eq!(output.tokens[logprob.position as usize], logprob.token);
            }
        }
        assert!(queue.open.is_empty());
    }

    #[test]
    fn nothing_is_merged_behind_a_final_output() {
        let mut queue = OutQueue::default();
        for n in 0..OUT_ITEMS_SOFT as u32 {
            queue.push(token(1, n));
        }
        queue.push(token(2, 1));
        queue.push(Output { finish: Some(Finish::Stop), cached_tokens: 5, ..token(2, 2) });
        queue.push(token(2, 3));
        let (_, taken) = queue.take(usize::MAX);
        let tail = &taken[OUT_ITEMS_SOFT..];
        assert_eq!(tail.len(), 2);
        assert_eq!((tail[0].tokens.as_slice(), tail[0].cached_tokens), ([1, 2].as_slice(), 5));
        assert_eq!((tail[1].tokens.as_slice(), &tail[1].finish), ([3].as_slice(), &None));
    }

    #[test]
    fn sequence_numbers_go_on_over_takes() {
        let mut queue = OutQueue::default();
        for n in 0..10 {
            queue.push(token(1, n));
        }
        assert_eq!(queue.take(4).0, 0);
        assert_eq!(queue.take(4).0, 4);
        let (first_seq, taken) = queue.take(4);
        assert_eq!((first_seq, taken.len()), (8, 2));
    }
}
