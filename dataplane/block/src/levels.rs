//! The claims on each block, counted by what they claim.
//!
//! A system prompt is claimed by every session of a tenant, so a list of claims for each block
//! would be long and its maximum slow. But they claim few different things: a block keeps a short
//! list of *kinds* of claims, each with the number of those that run and of those that are over, in
//! one arena for the whole pool. A claim that runs out stays in its kind, so that a list grows only
//! where somebody claims something, and there it has a limit: a client that claims a thousand
//! different things makes none of its own blocks slow, nor those that it shares with others. Past
//! that limit a claim is counted as the next *round* kind below it, of which there are few. So none
//! is ever refused: were one, whoever comes first with many weak ones could demote what others need.

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

/// Round priorities are its multiples.
const ROUND_PRIORITY: u8 = 5;
/// Round priorities of claims that are over.
const ROUND_AFTER: [u8; 4] = [60, super::PRIORITY_DEFAULT, 20, 0];

/// What is claimed: a level while the claim runs, and one from its end on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) live: Level,
    pub(crate) after: Level,
}

impl Kind {
    pub(crate) fn new(priority: u8, after: u8, class: Class) -> Self {
        let priority = priority.min(super::PRIORITY_MAX);
        Self {
            live: Level::new(priority, true, class),
            after: Level::new(after.min(priority), false, class),
        }
    }

    pub(crate) fn level(self, over: bool) -> Level {
        if over { self.after } else { self.live }
    }

    /// As it is counted: as it is, or as the next round one below.
    pub(crate) fn counted(self, is_round: bool) -> Self {
        if !is_round {
            return self;
        }
        let priority = self.live.priority() / ROUND_PRIORITY * ROUND_PRIORITY;
        let after = self.after.priority().min(priority);
        let after = ROUND_AFTER.into_iter().find(|round| *round <= after).unwrap_or(0);
        Self::new(priority, after, Class::Plain)
    }
}

#[derive(Debug, Clone, Copy)]
struct Node {
    kind: Kind,
    live: u32,
    over: u32,
    next: u32,
}

impl Node {
    fn strongest(&self) -> Level {
        if self.live > 0 { self.kind.live } else { self.kind.after }
    }

    fn count(&mut self, over: bool) -> &mut u32 {
        if over { &mut self.over } else { &mut self.live }
    }
}

/// The lists of all blocks of a pool; each block keeps the number of its first node.
#[derive(Debug)]
pub(crate) struct Levels {
    nodes: Vec<Node>,
    free: u32,
    kinds_max: usize,
}

impl Levels {
    pub(crate) fn new(kinds_max: usize) -> Self {
        Self { nodes: Vec::new(), free: NONE, kinds_max }
    }

    /// The strongest claim of a list.
    pub(crate) fn top(&self, head: u32) -> Option<Level> {
        let mut node = self.nodes.get(head as usize)?;
        let mut top = node.strongest();
        while let Some(next) = self.nodes.get(node.next as usize) {
            top = top.max(next.strongest());
            node = next;
        }
        Some(top)
    }

    /// Adds a claim that runs to the list that begins at `head`; whether it is counted as a round one, as which it has
    /// to be taken out again.
    #[must_use]
    pub(crate) fn add(&mut self, head: &mut u32, kind: Kind) -> bool {
        let Some(kinds) = self.add_to_known(*head, kind) else { return false };
        let is_round = kinds >= self.kinds_max;
        let kind = kind.counted(is_round);
        if is_round && self.add_to_known(*head, kind).is_none() {
            return true;
        }
        let node = Node { kind, live: 1, over: 0, next: *head };
        *head = match self.free {
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
        is_round
    }

    /// Adds a claim to the others of its kind; where there is none, answers with how many kinds there are.
    fn add_to_known(&mut self, head: u32, kind: Kind) -> Option<usize> {
        let (mut at, mut kinds) = (head, 0);
        while let Some(node) = self.nodes.get_mut(at as usize) {
            if node.kind == kind {
                node.live += 1;
                return None;
            }
            at = node.next;
            kinds += 1;
        }
        Some(kinds)
    }

    /// A claim of a list is over, if it is there.
    pub(crate) fn run_out(&mut self, head: u32, kind: Kind) {
        let (_, at) = self.find(head, kind);
        if let Some(node) = self.nodes.get_mut(at as usize)
            && node.live > 0
        {
            node.live -= 1;
            node.over += 1;
        }
    }

    /// Takes a claim out of the list that begins at `head`, if it is there.
    pub(crate) fn remove(&mut self, head: &mut u32, kind: Kind, over: bool) {
        let (before, at) = self.find(*head, kind);
        let Some(node) = self.nodes.get_mut(at as usize) else { return };
        let count = node.count(over);
        *count = count.saturating_sub(1);
        if node.live + node.over > 0 {
            return;
        }
        let next = std::mem::replace(&mut node.next, self.free);
        self.free = at;
        match self.nodes.get_mut(before as usize) {
            Some(before) => before.next = next,
            None => *head = next,
        }
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

    /// The node of that kind, and the one before it.
    fn find(&self, head: u32, kind: Kind) -> (u32, u32) {
        let (mut before, mut at) = (NONE, head);
        while let Some(node) = self.nodes.get(at as usize)
            && node.kind != kind
        {
            before = at;
            at = node.next;
        }
        (before, at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS_MAX: usize = 3;

    proptest! {
        /// Against plain lists of all claims, whose strongest is looked for.
        #[test]
        fn the_strongest_claim_is_on_top(
            moves in prop::collection::vec((0..3usize, 0..3u8, 0..5u8, 0..5u8), 1..120),
        ) {
            let mut levels = Levels::new(KINDS_MAX);
            let mut heads = [NONE; 3];
            let mut model: [Vec<(Kind, bool)>; 3] = Default::default();
            for (block, what, priority, after) in moves {
                let kind = Kind::new(priority * 25, after * 25, Class::ALL[priority as usize]);
                let claims = &mut model[block];
                let mut kinds: Vec<Kind> = Vec::new();
                claims.iter().for_each(|c| if !kinds.contains(&c.0) { kinds.push(c.0) });
                let at = |over| claims.iter().position(|c| *c == (kind, over));
                match (what, at(false)) {
                    (0, _) => {
                        let fits = kinds.contains(&kind) || kinds.len() < KINDS_MAX;
                        prop_assert_eq!(levels.add(&mut heads[block], kind), !fits);
                        claims.push((kind.counted(!fits), false));
                    }
                    (1, Some(at)) => {
                        levels.run_out(heads[block], kind);
                        claims[at].1 = true;
                    }
                    (2, Some(at)) => {
                        levels.remove(&mut heads[block], kind, false);
                        claims.swap_remove(at);
                    }
                    _ => if let Some(at) = at(true) {
                        levels.remove(&mut heads[block], kind, true);
                        claims.swap_remove(at);
                    } else if priority == 0 {
                        levels.clear(&mut heads[block]);
                        claims.clear();
                    } else if !kinds.contains(&kind) {
                        levels.remove(&mut heads[block], kind, false);
                        levels.run_out(heads[block], kind);
                    }
                }
                for (head, model) in heads.iter().zip(&model) {
                    let top = model.iter().map(|(kind, over)| kind.level(*over)).max();
                    prop_assert_eq!(levels.top(*head), top);
                }
            }
            prop_assert!(levels.nodes.len() <= 3 * (KINDS_MAX + 15));
        }
    }

    /// Whatever is claimed, a list is no longer than the limit and all round kinds.
    #[test]
    fn there_are_few_round_kinds_and_none_above_what_was_claimed() {
        let mut levels = Levels::new(KINDS_MAX);
        let (mut head, mut claims) = (NONE, Vec::new());
        for (priority, after) in (0..=100).flat_map(|p| (0..=p).map(move |after| (p, after))) {
            for class in Class::ALL {
                let kind = Kind::new(priority, after, class);
                let counted = kind.counted(levels.add(&mut head, kind));
                assert!(counted.live.priority() <= priority && counted.after.priority() <= after);
                assert!(priority - counted.live.priority() < ROUND_PRIORITY);
                claims.push(counted);
            }
        }
        assert!(levels.nodes.len() <= KINDS_MAX + 61, "{}", levels.nodes.len());
        assert_eq!(levels.top(head).map(Level::priority), Some(100));
        for counted in claims {
            levels.remove(&mut head, counted, false);
        }
        assert_eq!(head, NONE, "nothing is left of them");
    }

    #[test]
    fn a_level_says_what_it_was_made_of() {
        for class in Class::ALL {
            let level = Level::new(100, true, class);
            assert_eq!((level.priority(), level.is_live(), level.class()), (100, true, class));
        }
        assert!(Level::new(36, false, Class::Plain) > Level::new(35, true, Class::Compacted));
        let kind = Kind::new(255, 99, Class::Plain);
        assert_eq!((kind.live.priority(), kind.after.priority()), (100, 99));
        assert_eq!(Kind::new(10, 99, Class::Plain).after.priority(), 10);
    }
}
