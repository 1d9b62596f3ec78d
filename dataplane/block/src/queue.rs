//! The blocks that may go now, in the order in which they will.
//!
//! Lowest priority first, then the one whose last use is longest ago. Each priority has a list in
//! the order of use, and a bitmap says which lists have blocks, so that the next victim is found in
//! O(1). A block comes in order nearly always: one that was just released is the newest of its
//! list, and one whose last child went was used as long ago as that child, which was the oldest.
//! What comes out of order (a pin or a lease that ended later) waits in a sorted set beside the
//! lists, so the order is exact whatever happens, and only that set costs a logarithm.
//!
//! The links are the caller's, one for each block, since queues of many tenants can share them: a
//! block is in one of these at most.

use std::collections::BTreeSet;

use super::{NONE, PRIORITY_MAX};

const LISTS: usize = PRIORITY_MAX as usize + 1;

/// Where a block stands in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Absent,
    List(u8),
    Late(u8),
}

/// A block's place in one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    prev: u32,
    next: u32,
    /// Order of use, unequal for all blocks of a pool.
    stamp: u64,
    place: Place,
}

impl Link {
    pub(crate) const ABSENT: Self = Self { prev: NONE, next: NONE, stamp: 0, place: Place::Absent };

    /// The priority under which it waits, if it does.
    pub(crate) fn priority(&self) -> Option<u8> {
        match self.place {
            Place::Absent => None,
            Place::List(priority) | Place::Late(priority) => Some(priority),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

/// Blocks in the order in which they go.
#[derive(Debug)]
pub(crate) struct Queue {
    lists: Box<[List; LISTS]>,
    /// A bit for each list that has a block.
    occupied: u128,
    late: BTreeSet<(u8, u64, u32)>,
    late_ever: u64,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            lists: Box::new([List { head: NONE, tail: NONE }; LISTS]),
            occupied: 0,
            late: BTreeSet::new(),
            late_ever: 0,
        }
    }

    /// How many ever came out of order.
    pub(crate) fn late_ever(&self) -> u64 {
        self.late_ever
    }

    /// The next to go.
    pub(crate) fn first(&self, links: &[Link]) -> Option<u32> {
        let listed = (self.occupied != 0).then(|| {
            let priority = self.occupied.trailing_zeros() as usize;
            let id = self.lists[priority].head;
            (priority as u8, links[id as usize].stamp, id)
        });
        match (listed, self.late.first().copied()) {
            (Some(listed), Some(late)) => Some(listed.min(late).2),
            (listed, late) => listed.or(late).map(|(_, _, id)| id),
        }
    }

    /// Puts a block that is in no queue of these links into this one.
    pub(crate) fn insert(&mut self, links: &mut [Link], id: u32, priority: u8, stamp: u64) {
        let priority = priority.min(PRIORITY_MAX);
        let list = &mut self.lists[priority as usize];
        let mut link = Link { prev: NONE, next: NONE, stamp, place: Place::List(priority) };
        if list.tail == NONE {
            *list = List { head: id, tail: id };
            self.occupied |= 1 << priority;
        } else if stamp > links[list.tail as usize].stamp {
            link.prev = list.tail;
            links[list.tail as usize].next = id;
            list.tail = id;
        } else if stamp < links[list.head as usize].stamp {
            link.next = list.head;
            links[list.head as usize].prev = id;
            list.head = id;
        } else {
            link.place = Place::Late(priority);
            self.late.insert((priority, stamp, id));
            self.late_ever += 1;
        }
        links[id as usize] = link;
    }

    /// Takes a block out, if it is in.
    pub(crate) fn remove(&mut self, links: &mut [Link], id: u32) {
        let link = std::mem::replace(&mut links[id as usize], Link::ABSENT);
        let priority = match link.place {
            Place::Absent => return,
            Place::Late(priority) => {
                self.late.remove(&(priority, link.stamp, id));
                return;
            }
            Place::List(priority) => priority,
        };
        let list = &mut self.lists[priority as usize];
        match link.prev {
            NONE => list.head = link.next,
            prev => links[prev as usize].next = link.next,
        }
        match link.next {
            NONE => list.tail = link.prev,
            next => links[next as usize].prev = link.prev,
        }
        if list.head == NONE {
            self.occupied &= !(1 << priority);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a sorted set of all.
        #[test]
        fn the_order_is_exact(
            moves in prop::collection::vec((0..24u32, 0..4u8, 0..64u64), 1..200),
        ) {
            let mut links = [Link::ABSENT; 24];
            let mut queue = Queue::new();
            let mut model = BTreeSet::new();
            for (turn, (id, priority, age)) in moves.into_iter().enumerate() {
                if let Some(old) = links[id as usize].priority() {
                    prop_assert!(model.remove(&(old, links[id as usize].stamp, id)));
                    queue.remove(&mut links, id);
                } else {
                    let stamp = (turn as u64 * 8).saturating_sub(age) * 64 + u64::from(id);
                    queue.insert(&mut links, id, priority * 33, stamp);
                    model.insert((priority * 33, stamp, id));
                }
                prop_assert_eq!(queue.first(&links), model.first().map(|first| first.2));
            }
            while let Some(id) = queue.first(&links) {
                prop_assert_eq!(model.pop_first().map(|first| first.2), Some(id));
                queue.remove(&mut links, id);
            }
            prop_assert!(model.is_empty());
        }
    }
}
