//! Who owns which part of a region: a frontier that grows, and free lists by size class.
//!
//! Classes grow by quarters of a power of two, so that a rounded-up piece wastes an eighth on average. A piece
//! of up to two classes more is taken before the frontier moves, which keeps churn inside what it has used
//! already. The region is two halves: compaction copies what lives into the other half and gives this one back.

/// An allocator of units inside one half of a region at a time.
#[derive(Debug)]
pub(crate) struct Arena {
    /// First unit of the half in use.
    start: u32,
    /// Units per half.
    half: u32,
    frontier: u32,
    free: Vec<Vec<u32>>,
    /// Units handed out.
    used: u64,
}

/// The size class of a piece of `units`: 1 to 4, then four classes per doubling.
fn class_of(units: u32) -> usize {
    if units <= 4 {
        return units as usize;
    }
    let octave = ((units - 1) / 4).ilog2();
    (4 * octave + units.div_ceil(1 << octave)) as usize
}

/// The units of a class.
fn units_of(class: usize) -> u32 {
    if class <= 4 {
        return class as u32;
    }
    let (octave, quarter) = ((class - 5) / 4, (class - 5) % 4);
    (5 + quarter as u32) << octave
}

/// A piece: where it starts and how many units it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u32,
    pub(crate) units: u32,
}

impl Arena {
    /// Halves of `half` units. Unit 0 is never handed out, so that it can mean "none".
    pub(crate) fn new(half: u32) -> Self {
        Self { start: 0, half, frontier: 1, free: Vec::new(), used: 0 }
    }

    /// A piece of at least `units`; `None` once the half is full.
    pub(crate) fn take(&mut self, units: u32) -> Option<Piece> {
        let class = class_of(units.max(1));
        for near in class..class + 3 {
            if let Some(start) = self.free.get_mut(near).and_then(Vec::pop) {
                let units = units_of(near);
                self.used += u64::from(units);
                return Some(Piece { start, units });
            }
        }
        let units = units_of(class);
        let end = self.frontier.checked_add(units)?;
        if end - self.start > self.half {
            return None;
        }
        let start = core::mem::replace(&mut self.frontier, end);
        self.used += u64::from(units);
        Some(Piece { start, units })
    }

    /// Takes a piece back.
    pub(crate) fn give(&mut self, piece: Piece) {
        let class = class_of(piece.units);
        if self.free.len() <= class {
            self.free.resize_with(class + 1, Vec::new);
        }
        self.free[class].push(piece.start);
        self.used -= u64::from(piece.units);
    }

    /// Units handed out.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Units that were ever handed out in this half.
    pub(crate) fn touched(&self) -> u64 {
        u64::from(self.frontier - self.start)
    }

    /// Starts over in the other half; answers the units of the old one, to be discarded once all has moved.
    pub(crate) fn flip(&mut self) -> core::ops::Range<u32> {
        let old = self.start..self.frontier;
        self.start = if self.start == 0 { self.half } else { 0 };
        self.frontier = self.start + 1;
        self.free.clear();
        self.used = 0;
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_and_round_trip() {
        for units in 1..5_000 {
            let class = class_of(units);
            assert!(units_of(class) >= units, "{units}");
            assert!(class <= 1 || units_of(class - 1) < units, "{units}");
            assert_eq!(class_of(units_of(class)), class, "{units}");
        }
    }

    #[test]
    fn pieces_come_back_and_the_half_ends() {
        let mut arena = Arena::new(20);
        let first = arena.take(9).expect("room");
        assert_eq!(first, Piece { start: 1, units: 10 });
        assert!(arena.take(10).is_none());
        arena.give(first);
        assert_eq!(arena.used(), 0);
        assert_eq!(arena.take(10), Some(first));
        let old = arena.flip();
        assert_eq!((old, arena.take(1)), (0..11, Some(Piece { start: 21, units: 1 })));
    }
}
