//! Conversations that are warm: what each worker keeps for those who will come back.
//!
//! A cache is always full, so its load does not say whether it holds the past or what is needed next. The router
//! knows: it sent every prompt. A conversation is found again by the last block of the prompt before, which lies
//! somewhere in its next prompt, and counts where it went last until nobody came back for a while. What its prompt
//! shared with others when it began is not counted: the worker has it once. Whether somebody will come back at all
//! is not known of a first prompt: it counts by how often others of its namespace did, so nothing where nobody did,
//! and all of it where a quarter did, since those who come back grow to many times their first prompt.
//! A gateway sees only its own conversations, so with several of them all workers look emptier by the same factor.

use std::collections::BTreeMap;

use mainstay_types::{Epoch, NamespaceId, SequenceHash, WorkerId};

use crate::id_map::IdMap;

/// Conversations that are kept at most; beyond it the one that was quiet the longest is forgotten.
pub const CONTEXTS_MAX: usize = 65_536;
/// Namespaces that are told apart; those beyond it are taken for one.
const CROWDS_MAX: usize = 1_024;
/// Who has not come back for so long is not waited for.
const WARM_MS: u64 = 300_000;
/// Blocks in which the last prompt's end is looked for, below what is cached and below the prompt's end.
const SEARCH_BLOCKS: usize = 256;
/// What so many did counts half once as many more have gone on or have not.
const SEEN_MAX: u32 = 1_024;
/// First prompts count whole where one of so many comes back.
const GROWTH: f64 = 4.0;
/// Conversations that are taken to have never gone on, so that the first to come back proves little.
const DOUBT: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Context {
    worker: WorkerId,
    epoch: Epoch,
    namespace: NamespaceId,
    /// Blocks of its prompt, and how many of them others had before it began.
    blocks: u32,
    shared_blocks: u32,
    /// What of its own blocks counts at its worker.
    counted_blocks: u32,
    /// It has gone on at least once.
    returned: bool,
    /// Its place in `by_age`.
    used: (u64, u64),
}

impl Context {
    fn own_blocks(&self) -> u32 {
        self.blocks.saturating_sub(self.shared_blocks)
    }
}

/// The conversations of one namespace.
#[derive(Debug, Clone, Default)]
struct Crowd {
    contexts: u32,
    /// Of those that have gone on.
    returned: u32,
    returned_blocks: u64,
    /// How many went on lately, and how many were given up: until then nothing is known of them.
    returned_lately: u32,
    lapsed_lately: u32,
    /// Its place in `empty`, if it has no conversation.
    emptied: u64,
}

impl Crowd {
    /// How likely somebody who begins comes back.
    fn returns(&self) -> f64 {
        let seen = self.returned_lately + self.lapsed_lately + DOUBT;
        f64::from(self.returned_lately) / f64::from(seen)
    }

    fn seen(&mut self, returned: bool) {
        if self.returned_lately + self.lapsed_lately >= SEEN_MAX {
            self.returned_lately /= 2;
            self.lapsed_lately /= 2;
        }
        match returned {
            true => self.returned_lately += 1,
            false => self.lapsed_lately += 1,
        }
    }
}

/// A conversation that a prompt goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    tail: SequenceHash,
    pub(crate) worker: WorkerId,
    epoch: Epoch,
    counted_blocks: u32,
}

/// What a prompt that was sent changed.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    tail: SequenceHash,
    used: (u64, u64),
    before: Option<(SequenceHash, Context)>,
    /// Another conversation that ended with the same block, whose place it took.
    displaced: Option<Context>,
}

impl Moved {
    /// The worker's cache was cleared: nothing is put back there.
    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        self.before = self.before.filter(|(_, was)| was.worker != worker);
        self.displaced = self.displaced.filter(|was| was.worker != worker);
    }
}

/// All warm conversations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contexts {
    by_tail: IdMap<SequenceHash, Context>,
    sieve: Sieve,
    /// Oldest first, by time and a count.
    by_age: BTreeMap<(u64, u64), SequenceHash>,
    /// What each worker keeps in its present life.
    by_worker: IdMap<WorkerId, (Epoch, u64)>,
    crowds: IdMap<NamespaceId, Crowd>,
    /// Crowds without conversations, the one that was left the longest ago first: what was learned of a namespace
    /// outlives its conversations while nobody else needs the room.
    empty: BTreeMap<u64, NamespaceId>,
    count: u64,
}

impl Contexts {
    pub(crate) fn len(&self) -> usize {
        self.by_tail.len()
    }

    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some((&(used_ms, _), &tail)) = self.by_age.first_key_value() {
            let warm = used_ms.saturating_add(WARM_MS) > now_ms;
            if warm && self.by_tail.len() <= CONTEXTS_MAX {
                return;
            }
            let gone = self.remove(tail).filter(|context| !context.returned);
            if let Some(crowd) = gone.and_then(|gone| self.crowds.get_mut(&gone.namespace)) {
                crowd.seen(false);
            }
        }
    }

    /// The conversation that a prompt goes on with, of which `cached_blocks` are known somewhere.
    pub(crate) fn find(&self, prompt_blocks: &[SequenceHash], cached_blocks: u32) -> Option<Known> {
        let look = |from: usize, end: usize| {
            let searched = prompt_blocks.get(from..end)?.iter().rev();
            let mut likely = searched.filter(|block| self.sieve.may_have(block));
            likely.find_map(|tail| self.by_tail.get(tail).map(|context| (*tail, context)))
        };
        // What is cached ends with the answer to the last prompt, as a rule.
        let length = prompt_blocks.len();
        let cached = length.min(cached_blocks as usize);
        let rest = length.saturating_sub(SEARCH_BLOCKS).max(cached);
        let (tail, context) = look(cached.saturating_sub(SEARCH_BLOCKS), cached)
            .or_else(|| look(rest.min(length), length))?;
        let Context { worker, epoch, counted_blocks, .. } = *context;
        Some(Known { tail, worker, epoch, counted_blocks })
    }

    /// Tells which workers keep how much for conversations, without the one that asks, and in which life.
    pub(crate) fn each_warm(
        &self,
        known: Option<&Known>,
        mut tell: impl FnMut(WorkerId, Epoch, u64),
    ) {
        for (worker, (epoch, blocks)) in &self.by_worker {
            let own = known.filter(|known| known.worker == *worker && known.epoch == *epoch);
            let own = own.map_or(0, |known| u64::from(known.counted_blocks));
            tell(*worker, *epoch, blocks.saturating_sub(own));
        }
    }

    /// What a conversation that begins is expected to have in the end.
    pub(crate) fn expected_blocks(&self, namespace: NamespaceId) -> u64 {
        let Some(crowd) = self.crowds.get(&self.crowd_of(namespace)) else { return 0 };
        let mean = crowd.returned_blocks.checked_div(u64::from(crowd.returned)).unwrap_or(0);
        (mean as f64 * crowd.returns()) as u64
    }

    /// A prompt goes to a worker that has `overlap_blocks` of it, and goes on with `known`.
    pub(crate) fn sent(
        &mut self,
        now_ms: u64,
        (worker, epoch, namespace): (WorkerId, Epoch, NamespaceId),
        prompt_blocks: &[SequenceHash],
        overlap_blocks: u32,
        known: Option<&Known>,
    ) -> Option<Moved> {
        let &tail = prompt_blocks.last()?;
        let known = known.map_or(tail, |known| known.tail);
        let before = self.remove(known).map(|context| (known, context));
        let displaced = self.remove(tail);
        let namespace = before.map_or(namespace, |(_, was)| was.namespace);
        let namespace = self.make_room(namespace);
        let crowd = self.crowds.entry(namespace).or_default();
        let returned = before.is_some();
        if before.is_some_and(|(_, context)| !context.returned) {
            crowd.seen(true);
        }
        let share = if returned { 1.0 } else { (crowd.returns() * GROWTH).min(1.0) };
        self.count += 1;
        let blocks = u32::try_from(prompt_blocks.len()).unwrap_or(u32::MAX);
        let shared_blocks = before.map_or(overlap_blocks, |(_, context)| context.shared_blocks);
        let used = (now_ms, self.count);
        let own = Context {
            worker,
            epoch,
            namespace,
            blocks,
            shared_blocks,
            counted_blocks: 0,
            returned,
            used,
        };
        let counted_blocks = (f64::from(own.own_blocks()) * share) as u32;
        self.insert(tail, Context { counted_blocks, ..own });
        self.expire(now_ms);
        Some(Moved { tail, used, before, displaced })
    }

    /// The prompt never got there: its conversation is where it was before.
    pub(crate) fn undo(&mut self, moved: &Moved) {
        if self.by_tail.get(&moved.tail).is_none_or(|context| context.used != moved.used) {
            return;
        }
        self.remove(moved.tail);
        let first = moved.before.filter(|(_, was)| !was.returned);
        if let Some(crowd) = first.and_then(|(_, was)| self.crowds.get_mut(&was.namespace)) {
            crowd.returned_lately = crowd.returned_lately.saturating_sub(1);
        }
        let displaced = moved.displaced.map(|context| (moved.tail, context));
        for (tail, context) in moved.before.into_iter().chain(displaced) {
            if !self.by_tail.contains_key(&tail) {
                let namespace = self.make_room(context.namespace);
                self.insert(tail, Context { namespace, ..context });
            }
        }
    }

    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        let of_worker = self.by_tail.iter().filter(|(_, context)| context.worker == worker);
        let gone: Vec<SequenceHash> = of_worker.map(|(tail, _)| *tail).collect();
        for tail in gone {
            self.remove(tail);
        }
        self.by_worker.remove(&worker);
    }

    /// Under which name a namespace is kept.
    fn crowd_of(&self, namespace: NamespaceId) -> NamespaceId {
        let room = self.crowds.len() < CROWDS_MAX || !self.empty.is_empty();
        let known = room || self.crowds.contains_key(&namespace);
        if known { namespace } else { NamespaceId(u128::MAX) }
    }

    /// The same, where a crowd without conversations makes room for one that is not kept yet.
    fn make_room(&mut self, namespace: NamespaceId) -> NamespaceId {
        let name = self.crowd_of(namespace);
        if !self.crowds.contains_key(&name)
            && self.crowds.len() >= CROWDS_MAX
            && let Some((_, left)) = self.empty.pop_first()
        {
            self.crowds.remove(&left);
        }
        name
    }

    fn insert(&mut self, tail: SequenceHash, context: Context) {
        let kept = self.by_worker.entry(context.worker).or_insert((context.epoch, 0));
        if kept.0 < context.epoch {
            *kept = (context.epoch, 0);
        }
        if kept.0 == context.epoch {
            kept.1 += u64::from(context.counted_blocks);
        }
        let crowd = self.crowds.entry(context.namespace).or_default();
        if crowd.contexts == 0 {
            self.empty.remove(&crowd.emptied);
        }
        crowd.contexts += 1;
        if context.returned {
            crowd.returned += 1;
            crowd.returned_blocks += u64::from(context.own_blocks());
        }
        self.by_age.insert(context.used, tail);
        self.sieve.add(&tail);
        self.by_tail.insert(tail, context);
    }

    fn remove(&mut self, tail: SequenceHash) -> Option<Context> {
        let context = self.by_tail.remove(&tail)?;
        self.sieve.remove(&tail);
        self.by_age.remove(&context.used);
        if let Some(kept) = self.by_worker.get_mut(&context.worker)
            && kept.0 == context.epoch
        {
            kept.1 = kept.1.saturating_sub(u64::from(context.counted_blocks));
            if kept.1 == 0 {
                self.by_worker.remove(&context.worker);
            }
        }
        if let Some(crowd) = self.crowds.get_mut(&context.namespace) {
            crowd.contexts = crowd.contexts.saturating_sub(1);
            if context.returned {
                crowd.returned = crowd.returned.saturating_sub(1);
                let own = u64::from(context.own_blocks());
                crowd.returned_blocks = crowd.returned_blocks.saturating_sub(own);
            }
            if crowd.contexts == 0 {
                self.count += 1;
                crowd.emptied = self.count;
                self.empty.insert(self.count, context.namespace);
            }
        }
        Some(context)
    }
}

/// Says of most blocks that they are nobody's end, without a look at the table, which is too large to be near.
///
/// Counts of how many ends fall on each of its places. One that is full stays full: then a look is in vain sometimes.
#[derive(Debug, Clone, Default)]
struct Sieve {
    /// Empty until something is added.
    counts: Vec<u8>,
}

impl Sieve {
    /// Eight places for each conversation.
    const PLACES: usize = 8 * CONTEXTS_MAX;

    fn place(block: &SequenceHash) -> usize {
        // Other bits than the tables take first; block hashes are spread already.
        (block.0 >> 64) as usize % Self::PLACES
    }

    fn may_have(&self, block: &SequenceHash) -> bool {
        self.counts.get(Self::place(block)).is_some_and(|count| *count > 0)
    }

    fn add(&mut self, block: &SequenceHash) {
        if self.counts.is_empty() {
            self.counts = vec![0; Self::PLACES];
        }
        let count = &mut self.counts[Self::place(block)];
        *count = count.saturating_add(1);
    }

    fn remove(&mut self, block: &SequenceHash) {
        if let Some(count) = self.counts.get_mut(Self::place(block))
            && *count < u8::MAX
        {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
