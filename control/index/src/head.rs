//! The head of a run: all that a reader needs of it, in one cache line, which is an entry of the head table.
//!
//! One word of the line, the [`Control`], says whether a run lives there, how long it is, and which version of the
//! line this is. A run comes and goes by one store of that word; the others are filled while nobody lives there. A
//! change makes the version odd, writes, and makes it even: who meets an odd version takes the line's words from the
//! *journal*, where the writer put them before, so that no reader ever waits for a writer. What a reader took counts
//! if the version is the same afterwards.

use crate::region::Zeroed;
use crate::sync::{AtomicU64, Ordering, fence};

/// Words of worker bits inside a line: 256 workers.
pub(crate) const WORDS: usize = 4;
/// Words of worker bits at most: 8,192 workers.
pub(crate) const WORDS_MAX: usize = 128;
/// Blocks of a run at most.
pub(crate) const RUN_BLOCKS_MAX: u32 = 32_768;

const FOLDED: u64 = 0xffff;
const LENGTH_SHIFT: u32 = 16;
const LENGTH: u64 = 0xffff << LENGTH_SHIFT;
const WIDE: u64 = 1 << (LENGTH_SHIFT + 16);
const USED: u64 = WIDE << 1;
/// The last word is the filter. Nobody of the last 64 workers holds all of the run.
const ROOMY: u64 = WIDE << 2;
const VERSION_SHIFT: u32 = LENGTH_SHIFT + 19;
const VERSION_STEP: u64 = 1 << VERSION_SHIFT;

/// Version and length of a line, and its filter where that has no word of its own, in one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Control(u64);

impl Control {
    /// Whether a probe for a key that is not here has to go on: some run lived here since the table was built.
    #[inline(always)]
    pub(crate) fn is_used(self) -> bool {
        self.0 & USED != 0
    }

    /// Whether a run lives here.
    #[inline(always)]
    pub(crate) fn is_live(self) -> bool {
        self.0 & LENGTH != 0
    }

    /// Whether the line is being written: its words count for nothing, and the journal has them as they were.
    #[inline(always)]
    pub(crate) fn is_changing(self) -> bool {
        self.0 & VERSION_STEP != 0
    }

    /// Changes whenever the line does. 29 bits.
    #[inline(always)]
    pub(crate) fn version(self) -> u32 {
        (self.0 >> VERSION_SHIFT) as u32
    }

    fn length(self) -> u32 {
        (self.0 >> LENGTH_SHIFT) as u32 & 0xffff
    }

    #[inline(always)]
    fn is_roomy(self) -> bool {
        self.0 & ROOMY != 0
    }

    /// The next stable version, with what `head` says.
    #[inline(always)]
    fn after(self, head: &Head) -> Self {
        let wide = if head.wide { WIDE } else { 0 };
        let filter = if head.is_roomy() { ROOMY } else { fold(head.filter) };
        Self(self.next_version() | USED | u64::from(head.length) << LENGTH_SHIFT | wide | filter)
    }

    /// The version after next, alone: a stable one. It starts over after 2^28 changes of a line.
    #[inline(always)]
    fn next_version(self) -> u64 {
        (self.0 >> VERSION_SHIFT).wrapping_add(2) << VERSION_SHIFT
    }
}

/// A head as shared memory.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Line {
    control: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    /// Start of the keys, and in the upper half the list of segments.
    place: AtomicU64,
    words: [AtomicU64; WORDS],
}

// SAFETY: integers only.
unsafe impl Zeroed for Line {}

/// A head as a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where the first key lies, in keys.
    pub(crate) start: u32,
    /// Blocks.
    pub(crate) length: u32,
    /// The list of segments, in units of their arena; 0 for none.
    pub(crate) segments: u32,
    /// One bit per child head, by [`filter_bit`]; others may be set too.
    pub(crate) filter: u64,
    /// The first block.
    pub(crate) first: u64,
    /// The last block.
    pub(crate) last: u64,
    /// Workers that hold all of it: words 0 to 3 or, when `wide`, up to three named words or a spilled set.
    pub(crate) words: [u64; WORDS],
    /// See [`Head::words`].
    pub(crate) wide: bool,
}

impl Head {
    /// Whether the last word of its line is free for the filter.
    #[inline(always)]
    fn is_roomy(&self) -> bool {
        !self.wide && self.words[WORDS - 1] == 0
    }
}

/// The bit of a head's filter that stands for a child whose first block is `key`.
#[inline(always)]
pub(crate) fn filter_bit(key: u64) -> u64 {
    1 << (key.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 58)
}

/// A filter in a quarter of its bits: each stands for four neighbours.
#[inline(always)]
fn fold(filter: u64) -> u64 {
    let pairs = filter | filter >> 1;
    let mut bits = (pairs | pairs >> 2) & 0x1111_1111_1111_1111;
    bits = (bits | bits >> 3) & 0x0303_0303_0303_0303;
    bits = (bits | bits >> 6) & 0x000f_000f_000f_000f;
    bits = (bits | bits >> 12) & 0x0000_00ff_0000_00ff;
    (bits | bits >> 24) & FOLDED
}

/// All bits that a folded filter may stand for.
#[inline(always)]
fn unfold(folded: u64) -> u64 {
    let mut bits = folded & FOLDED;
    bits = (bits | bits << 24) & 0x0000_00ff_0000_00ff;
    bits = (bits | bits << 12) & 0x000f_000f_000f_000f;
    bits = (bits | bits << 6) & 0x0303_0303_0303_0303;
    bits = (bits | bits << 3) & 0x1111_1111_1111_1111;
    bits * 0xf
}

impl Line {
    /// What to read first of a line.
    #[inline(always)]
    pub(crate) fn control(&self) -> Control {
        Control(self.control.load(Ordering::Acquire))
    }

    /// Whether the line is still in that version. Call [`fence`] with `Acquire` before.
    #[inline(always)]
    pub(crate) fn is_still(&self, version: u32) -> bool {
        Control(self.control.load(Ordering::Relaxed)).version() == version
    }

    /// The key of the first block of the run that lives or lived here.
    #[inline(always)]
    pub(crate) fn first(&self) -> u64 {
        self.first.load(Ordering::Relaxed)
    }

    /// Reads the line, with its first `W` words; it counts only if the version of `control` is stable and stays.
    #[inline(always)]
    pub(crate) fn load<const W: usize>(&self, control: Control) -> Head {
        let word = |at: usize| if at < W { self.words[at].load(Ordering::Relaxed) } else { 0 };
        let place = self.place.load(Ordering::Relaxed);
        let (filter, last_word) = if control.is_roomy() {
            (self.words[WORDS - 1].load(Ordering::Relaxed), 0)
        } else {
            (unfold(control.0), word(WORDS - 1))
        };
        Head {
            start: place as u32,
            length: control.length(),
            segments: (place >> 32) as u32,
            filter,
            first: self.first.load(Ordering::Relaxed),
            last: self.last.load(Ordering::Relaxed),
            words: [word(0), word(1), word(2), last_word],
            wide: control.0 & WIDE != 0,
        }
    }

    /// The writer's own look.
    #[inline(always)]
    pub(crate) fn head(&self) -> Head {
        self.load::<WORDS>(Control(self.control.load(Ordering::Relaxed)))
    }

    /// A run moves in, where nobody lives.
    #[inline(always)]
    pub(crate) fn fill(&self, head: &Head) {
        let old = Control(self.control.load(Ordering::Relaxed));
        debug_assert!(!old.is_live() && head.length != 0);
        // Readers that still look at who lived here before find the control changed: that store came before.
        fence(Ordering::Release);
        self.first.store(head.first, Ordering::Relaxed);
        self.store_words(head);
        self.control.store(old.after(head).0, Ordering::Release);
    }

    /// Another state of the run that lives here, or another run with the same first block.
    #[inline(always)]
    pub(crate) fn change(&self, head: &Head, journal: &Self) {
        let old = self.begin_change(journal);
        debug_assert!(self.first() == head.first && head.length != 0);
        self.store_words(head);
        self.control.store(old.after(head).0, Ordering::Release);
    }

    /// Puts the line into the journal and sends readers there; answers what its control was.
    #[inline(always)]
    pub(crate) fn begin_change(&self, journal: &Self) -> Control {
        let old = Control(self.control.load(Ordering::Relaxed));
        debug_assert!(old.is_live() && !old.is_changing());
        // Readers that still look at the change before this one find that line's version moved on.
        fence(Ordering::Release);
        journal.control.store(old.0, Ordering::Relaxed);
        for (to, from) in journal.rest().into_iter().zip(self.rest()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.control.store(old.0 + VERSION_STEP, Ordering::Release);
        // Who reads one of the new words sees the odd version.
        fence(Ordering::Release);
        old
    }

    /// The run moves out. `used` says whether probes have to go on behind the line.
    #[inline(always)]
    pub(crate) fn vacate(&self, used: bool) {
        let old = Control(self.control.load(Ordering::Relaxed));
        let used = if used { USED } else { 0 };
        self.control.store(old.next_version() | used, Ordering::Release);
    }

    /// As if nobody had ever lived here. Only where no reader looks, or where all find out that they have to start
    /// again.
    pub(crate) fn clear(&self) {
        if self.control.load(Ordering::Relaxed) != 0 {
            self.control.store(0, Ordering::Relaxed);
        }
    }

    /// All that a change writes besides the control.
    #[inline(always)]
    fn rest(&self) -> [&AtomicU64; 2 + WORDS] {
        let [a, b, c, d] = &self.words;
        [&self.last, &self.place, a, b, c, d]
    }

    #[inline(always)]
    pub(crate) fn store_words(&self, head: &Head) {
        let place = u64::from(head.segments) << 32 | u64::from(head.start);
        self.last.store(head.last, Ordering::Relaxed);
        self.place.store(place, Ordering::Relaxed);
        let last = if head.is_roomy() { head.filter } else { head.words[WORDS - 1] };
        let [a, b, c, _] = head.words;
        for (word, value) in self.words.iter().zip([a, b, c, last]) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Lets readers look for a child. It needs no new version: a reader that misses the bit came before.
    #[inline(always)]
    pub(crate) fn add_filter(&self, bits: u64) {
        let control = Control(self.control.load(Ordering::Relaxed));
        let (word, bits) = if control.is_roomy() {
            (&self.words[WORDS - 1], bits)
        } else {
            (&self.control, fold(bits))
        };
        let now = word.load(Ordering::Relaxed);
        if now & bits != bits {
            word.store(now | bits, Ordering::Release);
        }
    }

    /// What the filter says now.
    #[inline(always)]
    pub(crate) fn filter(&self) -> u64 {
        self.head().filter
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HEAD: Head = Head {
        start: u32::MAX,
        length: RUN_BLOCKS_MAX,
        segments: u32::MAX - 1,
        filter: u64::MAX,
        first: 0,
        last: u64::MAX,
        words: [1, 2, 3, u64::MAX],
        wide: true,
    };

    #[test]
    fn a_line_says_what_was_put_into_it() {
        let (line, journal) = (Line::default(), Line::default());
        line.fill(&HEAD);
        assert_eq!(line.head(), HEAD);
        let narrow = Head { wide: false, length: 1, filter: 0, ..HEAD };
        line.change(&narrow, &journal);
        assert_eq!((line.head(), Head { first: HEAD.first, ..journal.head() }), (narrow, HEAD));
        line.add_filter(1 << 19);
        assert_eq!(line.filter(), 0xf << 16, "a folded filter stands for more");
        let roomy = Head { words: [1, 2, 3, 0], filter: 1 << 63, ..narrow };
        line.change(&roomy, &journal);
        assert_eq!(line.head(), roomy);
        line.add_filter(1 << 19);
        assert_eq!(line.filter(), 1 << 63 | 1 << 19);
        assert_eq!(line.load::<1>(line.control()).filter, line.filter());
        assert_eq!(line.load::<1>(line.control()).words, [1, 0, 0, 0]);
    }

    #[test]
    fn each_step_has_a_version_of_its_own_and_versions_start_over() {
        let (line, journal) = (Line::default(), Line::default());
        let mut last = line.control();
        for step in 0..5_u32 {
            match step {
                0 | 4 => line.fill(&HEAD),
                1 | 2 => line.change(&HEAD, &journal),
                _ => line.vacate(step == 3),
            }
            let now = line.control();
            assert!(!now.is_changing() && now.is_used() && now.is_live() == (step != 3));
            assert_eq!(now.version(), last.version() + 2);
            assert!(!line.is_still(last.version()) && line.is_still(now.version()));
            last = now;
        }
        let highest = Control(u64::MAX << (VERSION_SHIFT + 1) | USED);
        assert_eq!(highest.after(&HEAD).version(), 0);
        assert_eq!(highest.after(&HEAD).length(), RUN_BLOCKS_MAX);
    }

    #[test]
    fn a_folded_filter_keeps_every_bit() {
        for bit in 0..64 {
            assert_eq!(fold(1 << bit), 1 << (bit / 4));
            assert_eq!(unfold(1 << (bit / 4)), 0xf << (bit / 4 * 4));
        }
        assert_eq!((fold(u64::MAX), unfold(FOLDED), fold(0), unfold(0)), (FOLDED, u64::MAX, 0, 0));
    }

    #[test]
    fn children_spread_over_the_whole_filter() {
        let bits = (0..2_000_u64).map(|n| filter_bit(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        assert_eq!(bits.fold(0, |all, bit| all | bit), u64::MAX);
    }
}
