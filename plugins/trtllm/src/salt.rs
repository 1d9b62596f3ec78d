//! Namespaces as the numbers that the executor keeps them apart by. Pure.
//!
//! A salt there has 64 bits and our namespace 128: a hash of one could be another's, so numbers are given in order.

use std::collections::HashMap;

/// Namespaces that are remembered.
const NAMESPACES_MAX: usize = 1 << 20;

/// Which number each namespace has. A number is never given twice.
#[derive(Debug, Default)]
pub(crate) struct SaltIds {
    ids: HashMap<u128, u64>,
    given: u64,
}

impl SaltIds {
    /// A namespace's number, and whether all others had to be forgotten for it: what they hold can't be hit any more.
    pub(crate) fn of(&mut self, namespace: u128) -> (u64, bool) {
        if let Some(id) = self.ids.get(&namespace) {
            return (*id, false);
        }
        let is_full = self.ids.len() >= NAMESPACES_MAX;
        if is_full {
            self.ids.clear();
        }
        self.given += 1;
        self.ids.insert(namespace, self.given);
        (self.given, is_full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_namespaces_for_ever() {
        let mut salts = SaltIds::default();
        assert_eq!((salts.of(7), salts.of(8), salts.of(7)), ((1, false), (2, false), (1, false)));
        for namespace in 0..NAMESPACES_MAX as u128 - 2 {
            salts.of(namespace + 100);
        }
        let last = NAMESPACES_MAX as u64;
        assert_eq!(salts.of(1), (last + 1, true));
        assert_eq!(salts.of(7), (last + 2, false), "a new one, not the old one");
        assert_eq!(salts.ids.len(), 2);
    }
}
