//! A reader's walk along a prefix: one head per run, and the workers that still hold everything so far.
//!
//! The walk takes no lock and writes nothing. It notes which heads it used and, at its end, whether each is still
//! the head that readers find; if so there was an instant at which all it saw was true, else it starts again. A
//! writer never makes it wait: what a reader looks at is written anew only after readers were sent elsewhere.

use core::mem::MaybeUninit;

use crate::BlockName;
use crate::head::{Head, WORDS, WORDS_MAX, filter_bit};
use crate::head_table::{Found, View};
use crate::region::prefetch;
use crate::segments::{Segment, leading};
use crate::shared::Shared;
use crate::sync::{Ordering, fence};

/// Heads that a lookup notes without allocating.
const NOTED: usize = 12;

/// Takes what a walk finds: these workers hold that many leading blocks.
pub(crate) trait Sink {
    /// Forgets what it took. A walk calls it once the table's state is read.
    fn restart(&mut self);
    /// Workers `64 * word` and the set `bits`, at least one, hold `depth` leading blocks.
    fn take(&mut self, word: usize, bits: u64, depth: u32);
    /// The same of one worker.
    fn take_one(&mut self, slot: u32, depth: u32) {
        self.take(slot as usize / 64, 1 << (slot % 64), depth);
    }
}

/// A head that a walk rests on: where its slot lies, the version of its line, and what the slot said.
#[derive(Clone, Copy)]
struct Note {
    at: u32,
    version: u32,
    slot: u64,
}

/// The heads that a walk rests on. The first `count` of `few` are written: to clear them all for each walk costs
/// more than most walks note.
struct Noted {
    few: [MaybeUninit<Note>; NOTED],
    count: usize,
    more: Vec<Note>,
}

impl Noted {
    #[inline(always)]
    fn new() -> Self {
        Self { few: [const { MaybeUninit::uninit() }; NOTED], count: 0, more: Vec::new() }
    }

    #[inline(always)]
    fn add(&mut self, found: Found, version: u32) {
        let note = Note { at: found.at, version, slot: found.slot };
        match self.few.get_mut(self.count) {
            Some(place) => {
                place.write(note);
            }
            None => self.more.push(note),
        }
        self.count += 1;
    }

    #[inline(always)]
    fn still_hold(&self, shared: &Shared, view: &View<'_>) -> bool {
        let holds = |note: &Note| {
            let found = Found { at: note.at, slot: note.slot };
            view.is_still(found) && shared.heads[found.line()].version() == note.version
        };
        // SAFETY: `add` wrote the first `count` places, or all of them.
        let few = |note: &MaybeUninit<Note>| holds(unsafe { note.assume_init_ref() });
        self.few[..self.count.min(NOTED)].iter().all(few)
            && (self.count <= NOTED || self.more.iter().all(holds))
    }
}

/// A walk under way. `W` is how many words of worker bits it can hold.
pub(crate) struct Walk<'a, N, const W: usize> {
    shared: &'a Shared,
    view: View<'a>,
    prefix: &'a [N],
    at: usize,
    words: usize,
    alive: [u64; W],
    noted: Noted,
    accept: u8,
}

#[derive(PartialEq, Eq)]
enum Step {
    More,
    End,
    Stale,
}

impl<'a, N: BlockName, const W: usize> Walk<'a, N, W> {
    #[inline(always)]
    fn new(shared: &'a Shared, view: View<'a>, prefix: &'a [N], words: usize, accept: u8) -> Self {
        Self {
            shared,
            view,
            prefix,
            at: 0,
            words: words.min(W),
            alive: [0; W],
            noted: Noted::new(),
            accept,
        }
    }

    #[inline(always)]
    fn probe(&self) -> Option<Found> {
        let key = self.prefix[self.at].key();
        let heads = &self.shared.heads;
        self.view.find(key, |found| heads[found.line()].first() == key)
    }

    /// Takes in the run that starts at the current block.
    #[inline(always)]
    fn advance<S: Sink, const ANY: bool>(&mut self, found: Found, sink: &mut S) -> Step {
        let head = self.shared.heads[found.line()].load::<W>();
        let rest = &self.prefix[self.at..];
        let length = head.length as usize;
        if length == 0 || head.first != rest[0].key() {
            return Step::Stale;
        }
        self.noted.add(found, head.changes);
        let matched = if length <= rest.len() && rest[length - 1].key() == head.last {
            length
        } else {
            self.shared.equal_leading(head.start, &rest[..length.min(rest.len())])
        };
        let mut held = [0_u64; W];
        self.full_holders(&head, &mut held);
        if head.segments != 0 && !ANY {
            self.partial_tiers(&head, matched as u32, &mut held, sink);
        } else if head.segments != 0 && self.needs_segments(&held) {
            self.partial_holders(&head, matched as u32, &mut held, sink);
        }
        let left = self.keep_alive(&held, sink);
        self.at += matched;
        if !left || self.at == self.prefix.len() {
            return Step::End;
        }
        let wanted = filter_bit(self.prefix[self.at].key());
        if head.filter & wanted == 0 { Step::End } else { Step::More }
    }

    /// Words that may have a worker. The few of a narrow walk are cheaper to take all than to count.
    #[inline(always)]
    fn words(&self) -> usize {
        if W <= WORDS { W } else { self.words }
    }

    /// Who held all so far and does not hold this run has been found; answers whether anybody is left.
    #[inline(always)]
    fn keep_alive<S: Sink>(&mut self, held: &[u64; W], sink: &mut S) -> bool {
        let words = self.words();
        if self.at == 0 {
            self.alive[..words].copy_from_slice(&held[..words]);
            return held[..words].iter().fold(0, |any, held| any | held) != 0;
        }
        let (mut gone, mut left) = (0, 0);
        for (alive, held) in self.alive[..words].iter().zip(held) {
            gone |= alive & !held;
            left |= alive & held;
        }
        if gone != 0 {
            for (word, (alive, held)) in self.alive.iter_mut().zip(held).enumerate().take(words) {
                if *alive & !held != 0 {
                    sink.take(word, *alive & !held, self.at as u32);
                }
                *alive &= held;
            }
        }
        left != 0
    }

    #[inline(always)]
    fn needs_segments(&self, held: &[u64; W]) -> bool {
        let pairs = || self.alive.iter().zip(held).take(self.words());
        self.at == 0 || pairs().fold(0, |any, (alive, held)| any | alive & !held) != 0
    }

    #[inline(always)]
    fn full_holders(&self, head: &Head, held: &mut [u64; W]) {
        if W <= WORDS || !head.wide {
            // A narrow walk may meet a wide head for an instant; the table's state has moved then.
            held[..WORDS.min(W)].copy_from_slice(&head.words[..WORDS.min(W)]);
        } else {
            head.wide_words(self.shared, |word, bits| held[word % W] = bits);
        }
    }

    /// Reads the run's list for who holds a part of it.
    #[inline]
    fn partial_holders<S: Sink>(
        &mut self,
        head: &Head,
        matched: u32,
        held: &mut [u64; W],
        sink: &mut S,
    ) {
        // The segments of a full holder say nothing about how much it holds.
        let mut wanted = [0_u64; W];
        for (word, wanted) in wanted.iter_mut().enumerate().take(self.words()) {
            *wanted = !held[word] & if self.at == 0 { u64::MAX } else { self.alive[word] };
        }
        let list = self.shared.list(head.segments);
        let entry = |at: usize| list.get(at).map(|entry| Segment(entry.load(Ordering::Relaxed)));
        let mut next = 0;
        while let Some(segment) = entry(next) {
            next += 1;
            let slot = segment.slot();
            let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
            // Who does not hold the run's first block is left to the words.
            if segment.from() != 0 || word >= W || wanted[word] & bit == 0 {
                continue;
            }
            let mut depth = segment.to();
            while let Some(more) = entry(next).filter(|s| s.slot() == slot && s.from() == depth) {
                depth = more.to();
                next += 1;
            }
            if depth >= matched {
                held[word] |= bit;
            } else {
                sink.take_one(slot, self.at as u32 + depth);
                self.alive[word] &= !bit;
            }
        }
    }

    /// The same for blocks in accepted tiers, where full holders count too.
    fn partial_tiers<S: Sink>(
        &mut self,
        head: &Head,
        matched: u32,
        held: &mut [u64; W],
        sink: &mut S,
    ) {
        let list = self.shared.list(head.segments);
        let entry = |at: usize| Segment(list[at].load(Ordering::Relaxed));
        let mut at = 0;
        while at < list.len() {
            let slot = entry(at).slot();
            let from = at;
            while at < list.len() && entry(at).slot() == slot {
                at += 1;
            }
            let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
            if word >= self.words() || (self.at > 0 && self.alive[word] & bit == 0) {
                continue;
            }
            let full = held[word] & bit != 0;
            let depth = leading((from..at).map(entry), full, head.length, self.accept);
            if depth >= matched {
                held[word] |= bit;
                continue;
            }
            held[word] &= !bit;
            if depth > 0 || self.at > 0 {
                sink.take_one(slot, self.at as u32 + depth);
                self.alive[word] &= !bit;
            }
        }
    }

    #[inline(always)]
    fn finish<S: Sink>(&self, sink: &mut S) -> bool {
        if self.at > 0 {
            for word in 0..self.words() {
                if self.alive[word] != 0 {
                    sink.take(word, self.alive[word], self.at as u32);
                }
            }
        }
        fence(Ordering::Acquire);
        self.noted.still_hold(self.shared, &self.view)
            && self.shared.table.state() == self.view.state()
    }
}

#[inline(always)]
fn walk_once<N: BlockName, S: Sink, const W: usize, const ANY: bool>(
    (shared, view, words): (&Shared, View<'_>, usize),
    prefix: &[N],
    accept: u8,
    sink: &mut S,
) -> bool {
    let mut walk = Walk::<N, W>::new(shared, view, prefix, words, accept);
    while let Some(found) = walk.probe() {
        match walk.advance::<S, ANY>(found, sink) {
            Step::More => {}
            Step::End => break,
            Step::Stale => return false,
        }
    }
    walk.finish(sink)
}

#[inline(always)]
fn walk<N: BlockName, S: Sink, const ANY: bool>(
    shared: &Shared,
    prefix: &[N],
    accept: u8,
    sink: &mut S,
) {
    if prefix.is_empty() {
        return sink.restart();
    }
    loop {
        // In this order: who sees the table's state sees the words, and names of workers, that came before it.
        let view = shared.table.view();
        view.prefetch(prefix[0].key());
        prefetch(prefix, prefix.len() - 1);
        let words = shared.words.load(Ordering::Relaxed) as usize;
        sink.restart();
        let index = (shared, view, words);
        let whole = if words <= 1 {
            walk_once::<N, S, 1, ANY>(index, prefix, accept, sink)
        } else if words <= WORDS {
            walk_once::<N, S, WORDS, ANY>(index, prefix, accept, sink)
        } else {
            walk_once::<N, S, WORDS_MAX, ANY>(index, prefix, accept, sink)
        };
        if whole {
            return;
        }
        crate::sync::spin_loop();
    }
}

/// Who holds how many leading blocks, in any tier.
#[inline(always)]
pub(crate) fn walk_any<N: BlockName, S: Sink>(shared: &Shared, prefix: &[N], sink: &mut S) {
    walk::<N, S, true>(shared, prefix, 0xf, sink);
}

/// The same for blocks in one of the tiers of `accept`, which has to name the device.
pub(crate) fn walk_tiers<N: BlockName, S: Sink>(
    shared: &Shared,
    prefix: &[N],
    accept: u8,
    sink: &mut S,
) {
    walk::<N, S, false>(shared, prefix, accept, sink);
}

/// Lookups of a burst that are under way at once.
const LANES: usize = 8;

/// Several walks at once: while one waits for memory the others go on.
pub(crate) fn walk_burst<N: BlockName, S: Sink>(
    shared: &Shared,
    prefixes: &[&[N]],
    sinks: &mut [S],
) {
    for (prefixes, sinks) in prefixes.chunks(LANES).zip(sinks.chunks_mut(LANES)) {
        let view = shared.table.view();
        let words = shared.words.load(Ordering::Relaxed) as usize;
        if words <= WORDS && prefixes.iter().all(|p| !p.is_empty()) {
            burst((shared, view, words), prefixes, sinks);
        } else {
            for (prefix, sink) in prefixes.iter().zip(sinks) {
                walk_any(shared, prefix, sink);
            }
        }
    }
}

fn burst<N: BlockName, S: Sink>(
    (shared, view, words): (&Shared, View<'_>, usize),
    prefixes: &[&[N]],
    sinks: &mut [S],
) {
    let mut walks: [Option<Walk<'_, N, WORDS>>; LANES] = [const { None }; LANES];
    for ((lane, prefix), sink) in walks.iter_mut().zip(prefixes).zip(sinks.iter_mut()) {
        sink.restart();
        let walk = Walk::new(shared, view, prefix, words, 0xf);
        walk.view.prefetch(prefix[0].key());
        *lane = Some(walk);
    }
    for walk in walks.iter().flatten() {
        walk.prefetch_head();
    }
    let mut open = prefixes.len();
    while open > 0 {
        for (at, lane) in walks.iter_mut().enumerate() {
            let Some(walk) = lane else { continue };
            let step = match walk.probe() {
                Some(found) => walk.advance::<S, true>(found, &mut sinks[at]),
                None => Step::End,
            };
            if step == Step::More {
                walk.view.prefetch(walk.prefix[walk.at].key());
                continue;
            }
            if step == Step::Stale || !walk.finish(&mut sinks[at]) {
                walk_any(shared, prefixes[at], &mut sinks[at]);
            }
            *lane = None;
            open -= 1;
        }
        for walk in walks.iter().flatten() {
            walk.prefetch_head();
        }
    }
}

impl<N: BlockName, const W: usize> Walk<'_, N, W> {
    /// Fetches the head that the next step will most likely need.
    #[inline(always)]
    fn prefetch_head(&self) {
        let key = self.prefix[self.at].key();
        self.view.find(key, |found| {
            prefetch(&self.shared.heads, found.line());
            true
        });
    }
}
