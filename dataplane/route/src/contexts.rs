//! Conversations that are warm: what each worker keeps for those who will come back.
//!
//! A cache is always full, so its load does not say whether it holds the past or what is needed next. The router
//! knows: it sent every prompt. A conversation is found again by the last block of the prompt before, which lies
//! somewhere in its next prompt, and counts where it went last until nobody came back for a while. What its prompt
//! shared with others when it began is not counted: the worker has it once. A gateway sees only its own
//! conversations, so with several of them all workers look emptier by the same factor.

use std::collections::BTreeMap;

use mainstay_types::{SequenceHash, WorkerId};

use crate::id_map::IdMap;

/// Conversations that are kept at most; beyond it the one that was quiet the longest is forgotten.
pub const CONTEXTS_MAX: usize = 65_536;
/// Who has not come back for so long is not waited for.
const WARM_MS: u64 = 300_000;
/// Blocks in which the last prompt's end is looked for, below what is cached and below the prompt's end.
const SEARCH_BLOCKS: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Context {
    worker: WorkerId,
    /// Blocks of its prompt, and how many of them others had before it began.
    blocks: u32,
    shared_blocks: u32,
    /// Its place in `by_age`.
    used: (u64, u64),
}

impl Context {
    fn own_blocks(&self) -> u64 {
        u64::from(self.blocks.saturating_sub(self.shared_blocks))
    }
}

/// A conversation that a prompt goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    tail: SequenceHash,
    pub(crate) worker: WorkerId,
    pub(crate) own_blocks: u64,
}

/// All warm conversations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contexts {
    by_tail: IdMap<SequenceHash, Context>,
    /// Oldest first, by time and a count.
    by_age: BTreeMap<(u64, u64), SequenceHash>,
    by_worker: IdMap<WorkerId, u64>,
    own_blocks: u64,
    count: u64,
}

impl Contexts {
    pub(crate) fn len(&self) -> usize {
        self.by_tail.len()
    }

    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some((&(used_ms, _), &tail)) = self.by_age.first_key_value() {
            let warm = used_ms.saturating_add(WARM_MS) > now_ms;
            if warm && self.by_tail.len() < CONTEXTS_MAX {
                return;
            }
            self.remove(tail);
        }
    }

    /// The conversation that a prompt goes on with, of which `cached_blocks` are known somewhere.
    pub(crate) fn find(&self, prompt_blocks: &[SequenceHash], cached_blocks: u32) -> Option<Known> {
        let look = |end: usize| {
            let searched = &prompt_blocks[end.saturating_sub(SEARCH_BLOCKS)..end];
            let tail = searched.iter().rev().find(|block| self.by_tail.contains_key(block))?;
            let context = self.by_tail.get(tail)?;
            let own_blocks = context.own_blocks();
            Some(Known { tail: *tail, worker: context.worker, own_blocks })
        };
        // What is cached ends with the answer to the last prompt, as a rule.
        let cached = prompt_blocks.len().min(cached_blocks as usize);
        look(cached).or_else(|| look(prompt_blocks.len()))
    }

    /// Blocks that a worker keeps for conversations, without the one that asks.
    pub(crate) fn warm_blocks(&self, worker: WorkerId, known: Option<&Known>) -> u64 {
        let all = self.by_worker.get(&worker).copied().unwrap_or(0);
        let own = known.filter(|known| known.worker == worker).map_or(0, |known| known.own_blocks);
        all.saturating_sub(own)
    }

    /// What a conversation has on average.
    pub(crate) fn mean_blocks(&self) -> u64 {
        self.own_blocks.checked_div(self.by_tail.len() as u64).unwrap_or(0)
    }

    /// A prompt goes to a worker that has `overlap_blocks` of it.
    pub(crate) fn sent(
        &mut self,
        now_ms: u64,
        worker: WorkerId,
        prompt_blocks: &[SequenceHash],
        overlap_blocks: u32,
    ) {
        let Some(&tail) = prompt_blocks.last() else { return };
        let known = self.find(prompt_blocks, overlap_blocks);
        let before = known.and_then(|known| self.remove(known.tail));
        let shared_blocks = before.map_or(overlap_blocks, |context| context.shared_blocks);
        self.remove(tail);
        self.expire(now_ms);
        self.count += 1;
        let blocks = u32::try_from(prompt_blocks.len()).unwrap_or(u32::MAX);
        let context = Context { worker, blocks, shared_blocks, used: (now_ms, self.count) };
        *self.by_worker.entry(worker).or_default() += context.own_blocks();
        self.own_blocks += context.own_blocks();
        self.by_age.insert(context.used, tail);
        self.by_tail.insert(tail, context);
    }

    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        let gone: Vec<SequenceHash> = self
            .by_tail
            .iter()
            .filter(|(_, context)| context.worker == worker)
            .map(|(tail, _)| *tail)
            .collect();
        for tail in gone {
            self.remove(tail);
        }
    }

    fn remove(&mut self, tail: SequenceHash) -> Option<Context> {
        let context = self.by_tail.remove(&tail)?;
        self.by_age.remove(&context.used);
        self.own_blocks -= context.own_blocks();
        if let Some(blocks) = self.by_worker.get_mut(&context.worker) {
            *blocks -= context.own_blocks();
            if *blocks == 0 {
                self.by_worker.remove(&context.worker);
            }
        }
        Some(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId(1);
    const B: WorkerId = WorkerId(2);

    fn prompt(name: u128, shared: u128, blocks: u128) -> Vec<SequenceHash> {
        (0..blocks)
            .map(|at| SequenceHash(if at < shared { at } else { (name << 32) + at }))
            .collect()
    }

    #[test]
    fn a_conversation_counts_once_and_where_it_went_last() {
        let mut contexts = Contexts::default();
        contexts.sent(0, A, &prompt(1, 10, 50), 10);
        contexts.sent(1, A, &prompt(2, 10, 30), 10);
        assert_eq!((contexts.len(), contexts.warm_blocks(A, None)), (2, 60));
        // The next turn: twenty more blocks, five of them the answer that is cached.
        let next = prompt(1, 10, 70);
        let known = contexts.find(&next, 55).unwrap();
        assert_eq!((known.worker, known.own_blocks), (A, 40));
        assert_eq!(contexts.warm_blocks(A, Some(&known)), 20);
        contexts.sent(2, A, &next, 55);
        assert_eq!((contexts.len(), contexts.warm_blocks(A, None)), (2, 80));
        assert_eq!(contexts.mean_blocks(), 40);
        contexts.sent(3, B, &prompt(1, 10, 75), 10);
        assert_eq!((contexts.warm_blocks(A, None), contexts.warm_blocks(B, None)), (20, 65));
        // The same prompt once more is the same conversation.
        contexts.sent(4, B, &prompt(1, 10, 75), 75);
        assert_eq!((contexts.len(), contexts.warm_blocks(B, None)), (2, 65));
    }

    #[test]
    fn who_does_not_come_back_is_forgotten() {
        let mut contexts = Contexts::default();
        contexts.sent(0, A, &prompt(1, 0, 5), 0);
        contexts.sent(1_000, B, &prompt(2, 0, 5), 0);
        contexts.expire(WARM_MS);
        assert_eq!((contexts.len(), contexts.warm_blocks(A, None)), (1, 0));
        assert_eq!(contexts.find(&prompt(1, 0, 9), 5), None);
        contexts.forget_worker(B);
        assert_eq!((contexts.len(), contexts.mean_blocks()), (0, 0));
        contexts.sent(0, A, &[], 3);
        assert_eq!(contexts.len(), 0);
    }

    #[test]
    fn the_number_of_conversations_is_bounded() {
        let mut contexts = Contexts::default();
        for name in 0..CONTEXTS_MAX as u128 + 10 {
            contexts.sent(0, A, &prompt(name + 1, 0, 2), 0);
        }
        assert!(contexts.len() <= CONTEXTS_MAX);
        assert_eq!(contexts.warm_blocks(A, None), 2 * contexts.len() as u64);
    }
}
