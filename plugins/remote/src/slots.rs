//! llama.cpp's slots, and what lies in each: which one a request gets, and whether it may use what is there. Pure.
//!
//! llama.cpp has no salts, so namespaces are kept apart here. What lies in a slot is used again only by the
//! namespace that left it there, and only where the server does not swap it for something from its own store of
//! prompts, which knows no namespaces: it does that when less than half of the slot would be kept, or the prompt
//! resembles it too little. A slot whose last request did not end by itself is not known.

/// What lies in a slot.
#[derive(Clone, Debug)]
struct Content {
    namespace: u128,
    tokens: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    is_busy: bool,
    content: Option<Content>,
    /// When it was given back, counted in givings.
    used: u64,
}

/// The slots of one server.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    turns: u64,
}

/// A slot for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) slot: u32,
    /// What lies there may be used.
    pub(crate) reuse: bool,
}

fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

impl Slots {
    pub(crate) fn new(count: u32) -> Self {
        Self { slots: vec![Slot::default(); count.max(1) as usize], turns: 0 }
    }

    /// Takes a free slot: the one with the most of this prompt, else the one that was longest unused.
    pub(crate) fn take(&mut self, namespace: u128, tokens: &[u32]) -> Option<Given> {
        let usable = |slot: &Slot| {
            let content = slot.content.as_ref().filter(|own| own.namespace == namespace)?;
            let shared = common(&content.tokens, tokens);
            let is_most = shared * 2 > content.tokens.len() && shared * 2 > tokens.len();
            is_most.then_some(shared)
        };
        let free = || self.slots.iter().enumerate().filter(|(_, slot)| !slot.is_busy);
        let best = free()
            .filter_map(|(index, slot)| Some((usable(slot)?, index)))
            .max()
            .map(|(_, index)| (index, true));
        let oldest = || {
            let key = |(_, slot): &(usize, &Slot)| (slot.content.is_some(), slot.used);
            free().min_by_key(key).map(|(index, _)| (index, false))
        };
        let (index, reuse) = best.or_else(oldest)?;
        self.slots[index].is_busy = true;
        self.slots[index].content = None;
        Some(Given { slot: index as u32, reuse })
    }

    /// Gives a slot back with what its request left there, if that is known: its prompt and its answer.
    pub(crate) fn give_back(&mut self, slot: u32, left: Option<(u128, Vec<u32>)>) {
        self.turns += 1;
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.is_busy = false;
            slot.used = self.turns;
            slot.content = left.map(|(namespace, tokens)| Content { namespace, tokens });
        }
    }

    /// The server has started again, or may have.
    pub(crate) fn forget(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.content = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(slot: u32, reuse: bool) -> Option<Given> {
        Some(Given { slot, reuse })
    }

    #[test]
    fn the_next_turn_finds_its_slot_and_another_namespace_does_not() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.take(1, &[1, 2, 3]), given(0, false));
        assert_eq!(slots.take(2, &[1, 2, 3]), given(1, false));
        assert_eq!(slots.take(1, &[1]), None);
        slots.give_back(0, Some((1, vec![1, 2, 3, 4])));
        slots.give_back(1, Some((2, vec![1, 2, 3, 4])));
        assert_eq!(slots.take(2, &[1, 2, 3, 4, 5]), given(1, true));
        assert_eq!(slots.take(2, &[1, 2, 3, 4, 5]), given(0, false), "that one is the other's");
    }

    #[test]
    fn what_the_server_might_swap_is_not_used() {
        let mut slots = Slots::new(1);
        for (left, prompt, reuse) in [
            (vec![1, 2, 3, 4], vec![1, 2, 9], false),
            (vec![1, 2, 3, 4], vec![1, 2, 3, 9, 9], true),
            (vec![1, 2, 3], vec![1, 2, 3, 4, 5, 6, 7], false),
        ] {
            slots.take(1, &[]);
            slots.give_back(0, Some((1, left)));
            assert_eq!(slots.take(1, &prompt), given(0, reuse), "{prompt:?}");
            slots.give_back(0, None);
            assert_eq!(slots.take(1, &prompt), given(0, false), "not known any more");
            slots.give_back(0, None);
        }
        slots.give_back(0, Some((1, vec![1, 2])));
        slots.forget();
        assert_eq!(slots.take(1, &[1, 2]), given(0, false));
    }
}
