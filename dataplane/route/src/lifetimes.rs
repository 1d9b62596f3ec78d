//! When things with a booking's name end: which is due, and which is the oldest.
//!
//! What ends before its time is not looked for here but swept out once there is as much of it as of the rest, so
//! both questions cost little however many there are. Names that are gone may be answered: whoever asks ignores them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::bookings::BookingId;

/// The order of beginnings and of ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifetimes {
    begun: VecDeque<BookingId>,
    ends: BinaryHeap<Reverse<(u64, BookingId)>>,
}

impl Lifetimes {
    /// One more begins, where `max` may be alive at a time; `alive` tells who is.
    pub(crate) fn add(
        &mut self,
        id: BookingId,
        until_ms: u64,
        max: usize,
        alive: impl Fn(&BookingId) -> bool,
    ) {
        if self.begun.len() >= 2 * max {
            self.begun.retain(|id| alive(id));
        }
        if self.ends.len() >= 2 * max {
            let mut ends = std::mem::take(&mut self.ends).into_vec();
            ends.retain(|Reverse((_, id))| alive(id));
            // Of those that end sooner than was said only that is kept, or this would be done for each one more.
            ends.sort_unstable_by_key(|Reverse((until_ms, id))| (*id, *until_ms));
            ends.dedup_by_key(|Reverse((_, id))| *id);
            self.ends = ends.into();
        }
        self.begun.push_back(id);
        self.ends.push(Reverse((until_ms, id)));
    }

    /// One ends earlier than was said.
    pub(crate) fn sooner(&mut self, id: BookingId, until_ms: u64) {
        self.ends.push(Reverse((until_ms, id)));
    }

    /// One whose time is over.
    pub(crate) fn due(&mut self, now_ms: u64) -> Option<BookingId> {
        let Reverse((until_ms, _)) = self.ends.peek()?;
        if *until_ms > now_ms {
            return None;
        }
        self.ends.pop().map(|Reverse((_, id))| id)
    }

    /// The oldest, which is not answered again.
    pub(crate) fn oldest(&mut self) -> Option<BookingId> {
        self.begun.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_swept_out_and_the_rest_keeps_its_order() {
        let mut times = Lifetimes::default();
        for number in 0..100 {
            // Only every tenth is still alive when it is looked at.
            times.add(BookingId(number), 1_000 - number, 10, |id| id.0 % 10 == 0);
            assert!(times.begun.len() <= 20 && times.ends.len() <= 20);
        }
        assert_eq!(times.oldest(), Some(BookingId(0)));
        assert_eq!(times.oldest(), Some(BookingId(10)));
        assert_eq!(times.due(900), None);
        assert_eq!(times.due(901), Some(BookingId(99)));
        assert_eq!(times.due(u64::MAX), Some(BookingId(98)));
    }

    #[test]
    fn what_ends_sooner_does_so_once_and_takes_no_room_for_good() {
        let mut times = Lifetimes::default();
        for number in 0..10 {
            times.add(BookingId(number), 1_000, 10, |_| true);
            times.sooner(BookingId(number), 100 + number);
        }
        times.add(BookingId(10), 1_000, 10, |id| id.0 != 3);
        assert_eq!(times.ends.len(), 10);
        let due: Vec<_> = std::iter::from_fn(|| times.due(999)).collect();
        assert_eq!(due, [0, 1, 2, 4, 5, 6, 7, 8, 9].map(BookingId));
        assert_eq!((times.due(1_000), times.due(1_000)), (Some(BookingId(10)), None));
    }
}
