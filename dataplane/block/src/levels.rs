//! The claims on each block, counted by what they claim.
//!
//! A system prompt is claimed by every session of a tenant, so a list of claims for each block
//! would be long and its maximum slow. But they claim few different things: a block keeps a short
//! falling list of *levels*, each with the number of claims that stand there, in one arena for the
//! whole pool. To claim, to move a claim and to drop it costs the length of that list.

use super::{Class, NONE};

/// A priority, whether the claim still runs, and the class: in the order of strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Level(u16);

impl Level {
    pub(crate) fn new(priority: u8, live: bool, class: Class) -> Self {
        Self(u16::from(priority) << 8 | u16::from(live) << 7 | class as u16)
    }

    pub(crate) fn priority(self) -> u8 {
        (self.0 >> 8) as u8
    }

    pub(crate) fn is_live(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    pub(crate) fn class(self) -> Class {
        Class::from_number(self.0 & 0x7f)
    }
}

#[derive(Debug, Clone, Copy)]
struct Node {
    level: Level,
    count: u32,
    next: u32,
}

/// The lists of all blocks of a pool; each block keeps the number of its first node.
#[derive(Debug)]
pub(crate) struct Levels {
    nodes: Vec<Node>,
    free: u32,
}

impl Levels {
    pub(crate) fn new() -> Self {
        Self { nodes: Vec::new(), free: NONE }
    }

    /// The strongest claim of a list.
    pub(crate) fn top(&self, head: u32) -> Option<Level> {
        self.nodes.get(head as usize).map(|node| node.level)
    }

    /// Adds a claim to the list that begins at `head`.
    pub(crate) fn add(&mut self, head: &mut u32, level: Level) {
        let (before, at) = self.find(*head, level);
        if let Some(node) = self.nodes.get_mut(at as usize)
            && node.level == level
        {
            node.count += 1;
            return;
        }
        let node = Node { level, count: 1, next: at };
        let new = match self.free {
            NONE => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
            free => {
                self.free = self.nodes[free as usize].next;
                self.nodes[free as usize] = node;
                free
            }
        };
        self.link(head, before, new);
    }

    /// Takes a claim out of the list that begins at `head`, if it is there.
    pub(crate) fn remove(&mut self, head: &mut u32, level: Level) {
        let (before, at) = self.find(*head, level);
        let Some(node) = self.nodes.get_mut(at as usize) else { return };
        if node.level != level {
            return;
        }
        node.count -= 1;
        if node.count > 0 {
            return;
        }
        let next = node.next;
        node.next = self.free;
        self.free = at;
        self.link(head, before, next);
    }

    /// Gives a whole list back.
    pub(crate) fn clear(&mut self, head: &mut u32) {
        let mut at = std::mem::replace(head, NONE);
        while let Some(node) = self.nodes.get_mut(at as usize) {
            let next = std::mem::replace(&mut node.next, self.free);
            self.free = at;
            at = next;
        }
    }

    /// The first node that is no stronger, and the one before it.
    fn find(&self, head: u32, level: Level) -> (u32, u32) {
        let (mut before, mut at) = (NONE, head);
        while let Some(node) = self.nodes.get(at as usize)
            && node.level > level
        {
            before = at;
            at = node.next;
        }
        (before, at)
    }

    fn link(&mut self, head: &mut u32, before: u32, to: u32) {
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.next = to,
            None => *head = to,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against plain lists of all claims, whose strongest is looked for.
        #[test]
        fn the_strongest_claim_is_on_top(
            moves in prop::collection::vec((0..3usize, any::<bool>(), 0..5u8, any::<bool>()), 1..120),
        ) {
            let mut levels = Levels::new();
            let mut heads = [NONE; 3];
            let mut model: [Vec<Level>; 3] = Default::default();
            for (block, add, priority, live) in moves {
                let level = Level::new(priority * 25, live, Class::ALL[priority as usize]);
                let found = model[block].iter().position(|l| *l == level);
                if add {
                    levels.add(&mut heads[block], level);
                    model[block].push(level);
                } else if let Some(found) = found {
                    levels.remove(&mut heads[block], level);
                    model[block].swap_remove(found);
                } else if priority == 0 {
                    levels.clear(&mut heads[block]);
                    model[block].clear();
                } else {
                    levels.remove(&mut heads[block], level);
                }
                for (head, model) in heads.iter().zip(&model) {
                    prop_assert_eq!(levels.top(*head), model.iter().max().copied());
                }
            }
            let kept: usize = model.iter().map(Vec::len).sum();
            prop_assert!(levels.nodes.len() <= 30 && kept < 120);
        }
    }

    #[test]
    fn a_level_says_what_it_was_made_of() {
        for class in Class::ALL {
            let level = Level::new(100, true, class);
            assert_eq!((level.priority(), level.is_live(), level.class()), (100, true, class));
        }
        assert!(Level::new(36, false, Class::Plain) > Level::new(35, true, Class::Compacted));
    }
}
