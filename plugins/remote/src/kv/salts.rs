//! Which namespace a block is of: by the salt that its server tells, or by who asked for its first tokens.
//!
//! The salt is our namespace, spelled out. Servers that do not tell it back (vLLM before its events had extra
//! keys) are helped by what was asked for lately: first blocks that only one namespace asked for are that one's;
//! those that several asked for are nobody's, so that no tenant is shown another one's blocks.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// First blocks that are remembered.
const FIRSTS_MAX: usize = 1 << 16;
const PREFIX: &str = "mainstay-";

/// Whose first block it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    One(u128),
    Several,
}

/// Salts of namespaces and namespaces of salts.
#[derive(Debug)]
pub(crate) struct Salts {
    /// What this engine's salts begin with.
    prefix: String,
    block_tokens: usize,
    hasher: RandomState,
    firsts: HashMap<u64, Asker>,
    order: VecDeque<u64>,
}

impl Salts {
    /// `own` makes the salts differ from those of every other engine.
    pub(crate) fn new(block_tokens: u32, own: bool) -> Self {
        let hasher = RandomState::new();
        let prefix = if own {
            let nonce = hasher.hash_one(std::process::id());
            format!("{PREFIX}{nonce:016x}-")
        } else {
            PREFIX.to_owned()
        };
        let (firsts, order) = (HashMap::new(), VecDeque::new());
        Self { prefix, block_tokens: block_tokens.max(1) as usize, hasher, firsts, order }
    }

    /// What a server is told to keep this namespace's blocks apart by.
    pub(crate) fn salt_of(&self, namespace: u128) -> String {
        format!("{}{namespace:032x}", self.prefix)
    }

    /// The namespace of a salt of ours.
    pub(crate) fn namespace_of(&self, salt: &str) -> Option<u128> {
        let digits = salt.strip_prefix(&self.prefix)?;
        if digits.len() != 32 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        u128::from_str_radix(digits, 16).ok()
    }

    /// Remembers who asks for a prompt.
    pub(crate) fn asked(&mut self, namespace: u128, tokens: &[u32]) {
        let Some(first) = tokens.get(..self.block_tokens) else { return };
        let key = self.hasher.hash_one(first);
        match self.firsts.get_mut(&key) {
            Some(Asker::One(asker)) if *asker == namespace => {}
            Some(asker) => *asker = Asker::Several,
            None => {
                if self.order.len() >= FIRSTS_MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.firsts.remove(&oldest);
                }
                self.firsts.insert(key, Asker::One(namespace));
                self.order.push_back(key);
            }
        }
    }

    /// The only namespace that asked for a prompt with this first block.
    pub(crate) fn only_asker(&self, first: &[u32]) -> Option<u128> {
        match self.firsts.get(&self.hasher.hash_one(first))? {
            Asker::One(namespace) => Some(*namespace),
            Asker::Several => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn salts_are_namespaces_and_nothing_else_is() {
        let salts = Salts::new(2, false);
        let salt = salts.salt_of(0xabc);
        assert_eq!(salts.namespace_of(&salt), Some(0xabc));
        for other in ["", "tenantA", "mainstay-", "mainstay-+0000000000000000000000000000abc"] {
            assert_eq!(salts.namespace_of(other), None, "{other}");
        }
        let own = Salts::new(2, true);
        assert_eq!(own.namespace_of(&salt), None, "another engine's");
        assert_eq!(own.namespace_of(&own.salt_of(7)), Some(7));
    }

    #[test]
    fn what_two_ask_for_is_nobodys() {
        let mut salts = Salts::new(2, false);
        salts.asked(1, &[5]);
        salts.asked(1, &[5, 6, 7]);
        salts.asked(1, &[5, 6, 9]);
        assert_eq!(salts.only_asker(&[5, 6]), Some(1));
        assert_eq!(salts.only_asker(&[6, 5]), None);
        salts.asked(2, &[5, 6]);
        assert_eq!(salts.only_asker(&[5, 6]), None);
        salts.asked(1, &[5, 6]);
        assert_eq!(salts.only_asker(&[5, 6]), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut salts = Salts::new(1, false);
        for token in 0..FIRSTS_MAX as u32 + 10 {
            salts.asked(1, &[token]);
        }
        assert_eq!((salts.firsts.len(), salts.order.len()), (FIRSTS_MAX, FIRSTS_MAX));
        assert_eq!((salts.only_asker(&[9]), salts.only_asker(&[10])), (None, Some(1)));
    }
}
