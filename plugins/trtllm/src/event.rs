//! What the executor's cache tells, as the mirror understands it. Pure.
//!
//! Numbers of events follow each other; a gap means that the buffer was full, and that nothing told before is certain
//! any more. Told are whole blocks of tokens alone, of the one cache whose window is the largest.

use mainstay_engine_proxy::event::{Event, Group, Medium, Native, Salt, Stored};

use crate::bridge::Told;

const CREATED: u8 = 1;
const STORED: u8 = 2;
const REMOVED: u8 = 3;
const UPDATED: u8 = 4;

/// What to do about an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Events were lost before this one: all is to be forgotten first.
    Gap,
    Apply(Event),
}

/// Reads the stream.
#[derive(Debug)]
pub(crate) struct Reader {
    block_tokens: u32,
    next: Option<u64>,
    /// The largest window that was told to exist.
    window: Option<i32>,
    /// Blocks of the device in that one's cache.
    pub(crate) blocks: Option<u64>,
    /// Events of a rank of attention parallelism came: which rank a request goes to is not known.
    pub(crate) has_ranks: bool,
}

fn medium(level: i32) -> Option<Medium> {
    match level {
        0 => Some(Medium::Device),
        1 => Some(Medium::Host),
        _ => None,
    }
}

impl Reader {
    pub(crate) fn new(block_tokens: u32) -> Self {
        Self { block_tokens, next: None, window: None, blocks: None, has_ranks: false }
    }

    /// What one event means.
    pub(crate) fn read(&mut self, told: &Told) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.next.is_some_and(|next| next != told.number) {
            steps.push(Step::Gap);
        }
        self.next = Some(told.number.wrapping_add(1));
        if told.is_of_a_rank {
            self.has_ranks = true;
            return steps;
        }
        if told.kind == CREATED {
            if self.window.is_none_or(|window| window < told.window) {
                self.window = Some(told.window);
                self.blocks = Some(told.count);
            }
            return steps;
        }
        if self.window.is_some_and(|window| window != told.window) {
            return steps;
        }
        let event = match told.kind {
            STORED => self.stored(told),
            REMOVED => {
                Some(Event::Dropped(told.hashes.iter().map(|h| Native::Number(*h)).collect()))
            }
            UPDATED => moved(told),
            _ => None,
        };
        steps.extend(event.map(Step::Apply));
        steps
    }

    /// The whole blocks at the beginning of what was stored, as far as all lie in one place.
    fn stored(&self, told: &Told) -> Option<Event> {
        let parts = [told.levels.len(), told.lengths.len(), told.foreign.len()];
        if told.hashes.is_empty() || parts.iter().any(|part| *part != told.hashes.len()) {
            return None;
        }
        let level = told.levels[0];
        let is_whole = |at: &usize| {
            told.lengths[*at] == self.block_tokens
                && !told.foreign[*at]
                && told.levels[*at] == level
        };
        let whole = (0..told.hashes.len()).take_while(is_whole).count();
        let tokens = told.tokens.get(..whole.checked_mul(self.block_tokens as usize)?)?;
        if whole == 0 {
            return None;
        }
        Some(Event::Stored(Stored {
            blocks: told.hashes[..whole].iter().map(|hash| Native::Number(*hash)).collect(),
            parent: told.has_parent.then_some(Native::Number(told.parent)),
            tokens: tokens.to_vec(),
            block_tokens: self.block_tokens,
            medium: Some(medium(level)?),
            salt: Salt::Untold,
            foreign_from: None,
            group: Group::default(),
        }))
    }
}

fn moved(told: &Told) -> Option<Event> {
    let (&[hash], &[from, to]) = (&told.hashes[..], &told.levels[..]) else { return None };
    Some(Event::Moved { block: Native::Number(hash), from: medium(from)?, to: medium(to)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(number: u64, hashes: &[u64], lengths: &[u32]) -> Told {
        let tokens = (0..lengths.iter().sum()).collect();
        let (levels, foreign) = (vec![0; hashes.len()], vec![false; hashes.len()]);
        let (hashes, lengths) = (hashes.to_vec(), lengths.to_vec());
        Told {
            number,
            kind: STORED,
            window: 9,
            hashes,
            levels,
            lengths,
            foreign,
            tokens,
            ..Told::default()
        }
    }

    fn created(number: u64, window: i32, count: u64) -> Told {
        Told { number, kind: CREATED, window, count, ..Told::default() }
    }

    fn blocks(steps: &[Step]) -> usize {
        match steps {
            [Step::Apply(Event::Stored(stored))] => {
                assert_eq!(stored.tokens.len(), stored.blocks.len() * 2);
                stored.blocks.len()
            }
            [] => 0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_gap_is_seen_whatever_comes_behind_it() {
        let mut reader = Reader::new(2);
        assert_eq!(reader.read(&stored(5, &[1], &[2])).len(), 1, "the first may have any number");
        assert_eq!(blocks(&reader.read(&stored(6, &[2], &[2]))), 1);
        let steps = reader.read(&stored(8, &[3], &[2]));
        assert!(matches!(&steps[..], [Step::Gap, Step::Apply(_)]), "{steps:?}");
        assert_eq!(reader.read(&created(8, 9, 1)), [Step::Gap], "numbers that fall are no better");
    }

    #[test]
    fn only_whole_blocks_of_tokens_in_one_place_are_told() {
        let mut reader = Reader::new(2);
        let mut number = 0;
        let mut read = |change: &dyn Fn(&mut Told)| {
            let mut told = stored(number, &[1, 2, 3], &[2, 2, 1]);
            number += 1;
            change(&mut told);
            blocks(&reader.read(&told))
        };
        assert_eq!(read(&|_| {}), 2, "the last is not full");
        assert_eq!(read(&|told| told.foreign[1] = true), 1);
        assert_eq!(read(&|told| told.levels[1] = 1), 1);
        assert_eq!(read(&|told| told.levels = vec![7; 3]), 0);
        assert_eq!(read(&|told| told.lengths[0] = 1), 0);
        assert_eq!(read(&|told| told.tokens.truncate(3)), 0);
        assert_eq!(read(&|told| told.foreign.truncate(1)), 0);
        assert_eq!(read(&|told| told.is_of_a_rank = true), 0);
    }

    #[test]
    fn of_several_windows_the_largest_is_followed() {
        let mut reader = Reader::new(2);
        for (number, window, count) in [(0, 4, 10), (1, 9, 20), (2, 6, 30)] {
            assert_eq!(reader.read(&created(number, window, count)), []);
        }
        assert_eq!(reader.blocks, Some(20));
        assert_eq!(blocks(&reader.read(&stored(3, &[1], &[2]))), 1);
        assert_eq!(blocks(&reader.read(&Told { window: 4, ..stored(4, &[1], &[2]) })), 0);
    }

    #[test]
    fn moves_and_removals_have_their_names() {
        let mut reader = Reader::new(2);
        let told = |number, kind, hashes: &[u64], levels: &[i32]| Told {
            number,
            kind,
            hashes: hashes.to_vec(),
            levels: levels.to_vec(),
            ..Told::default()
        };
        let block = Native::Number(4);
        let (from, to) = (Medium::Device, Medium::Host);
        let steps = reader.read(&told(0, UPDATED, &[4], &[0, 1]));
        assert_eq!(steps, [Step::Apply(Event::Moved { block, from, to })]);
        assert_eq!(reader.read(&told(1, UPDATED, &[4], &[])), [], "a change of its worth alone");
        assert_eq!(reader.read(&told(2, UPDATED, &[4], &[0, 5])), []);
        let steps = reader.read(&told(3, REMOVED, &[4, 5], &[]));
        assert_eq!(steps, [Step::Apply(Event::Dropped(vec![block, Native::Number(5)]))]);
        assert_eq!(reader.read(&told(4, 77, &[4], &[])), []);
    }
}
