//! Which namespace a block is of: by the salt that its server tells, or by who asked for its first tokens.
//!
//! The salt is our namespace, spelled out. Servers that do not tell it back (vLLM before its events had extra
//! keys, TensorRT-LLM) are helped by what was asked for lately: a first block is that namespace's which alone asked for
//! it and does not hold it yet. Where several are left it is nobody's, so that no tenant is shown another one's blocks.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// Askers of first blocks that are remembered, of all of them together and of one.
const ASKERS_MAX: usize = 1 << 16;
const ASKERS_OF_ONE_MAX: usize = 256;
const PREFIX: &str = "mainstay-";

/// Who asked for a first block, oldest first.
#[derive(Debug, Default)]
struct Askers {
    namespaces: Vec<u128>,
    /// There were more than are remembered: it is nobody's.
    is_full: bool,
}

/// Salts of namespaces and namespaces of salts.
#[derive(Debug)]
pub struct Salts {
    /// What this engine's salts begin with.
    prefix: String,
    block_tokens: usize,
    hasher: RandomState,
    firsts: HashMap<u64, Askers>,
    /// The first block of each asker that is remembered, oldest first.
    order: VecDeque<u64>,
}

impl Salts {
    /// `own` makes the salts differ from those of every other engine.
    pub fn new(block_tokens: u32, own: bool) -> Self {
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
    pub fn salt_of(&self, namespace: u128) -> String {
        format!("{}{namespace:032x}", self.prefix)
    }

    /// The namespace of a salt of ours.
    pub fn namespace_of(&self, salt: &str) -> Option<u128> {
        let digits = salt.strip_prefix(&self.prefix)?;
        if digits.len() != 32 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        u128::from_str_radix(digits, 16).ok()
    }

    /// Remembers who asks for a prompt.
    pub fn asked(&mut self, namespace: u128, tokens: &[u32]) {
        let Some(first) = tokens.get(..self.block_tokens) else { return };
        let key = self.hasher.hash_one(first);
        let askers = self.firsts.entry(key).or_default();
        if askers.is_full || askers.namespaces.contains(&namespace) {
            return;
        }
        if askers.namespaces.len() >= ASKERS_OF_ONE_MAX {
            askers.is_full = true;
            return;
        }
        askers.namespaces.push(namespace);
        self.order.push_back(key);
        if self.order.len() > ASKERS_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(key) = self.order.pop_front() else { return };
        let Some(askers) = self.firsts.get_mut(&key) else { return };
        askers.namespaces.remove(0);
        if askers.namespaces.is_empty() {
            self.firsts.remove(&key);
        }
    }

    /// The only namespace that asked for a prompt with this first block, besides those that hold it already.
    pub fn only_asker(&self, first: &[u32], holds: impl Fn(u128) -> bool) -> Option<u128> {
        let askers = self.firsts.get(&self.hasher.hash_one(first)).filter(|a| !a.is_full)?;
        let mut left = askers.namespaces.iter().filter(|namespace| !holds(**namespace));
        let one = left.next()?;
        left.next().is_none().then_some(*one)
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
    fn what_two_ask_for_is_nobodys_until_one_holds_it() {
        let mut salts = Salts::new(2, false);
        let only = |salts: &Salts, first: &[u32]| salts.only_asker(first, |_| false);
        salts.asked(1, &[5]);
        salts.asked(1, &[5, 6, 7]);
        salts.asked(1, &[5, 6, 9]);
        assert_eq!((only(&salts, &[5, 6]), only(&salts, &[6, 5])), (Some(1), None));
        salts.asked(2, &[5, 6]);
        assert_eq!(only(&salts, &[5, 6]), None);
        salts.asked(1, &[5, 6]);
        assert_eq!(only(&salts, &[5, 6]), None);
        assert_eq!(salts.only_asker(&[5, 6], |namespace| namespace == 1), Some(2));
        assert_eq!(salts.only_asker(&[5, 6], |_| true), None);
        salts.asked(3, &[5, 6]);
        assert_eq!(salts.only_asker(&[5, 6], |namespace| namespace == 1), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut salts = Salts::new(1, false);
        for token in 0..ASKERS_MAX as u32 + 10 {
            salts.asked(1, &[token]);
        }
        assert_eq!((salts.firsts.len(), salts.order.len()), (ASKERS_MAX, ASKERS_MAX));
        let only = |salts: &Salts, token| salts.only_asker(&[token], |_| false);
        assert_eq!((only(&salts, 9), only(&salts, 10)), (None, Some(1)));
        for namespace in 0..2 * ASKERS_OF_ONE_MAX as u128 {
            salts.asked(namespace, &[7]);
        }
        assert_eq!(salts.order.len(), ASKERS_MAX);
        assert_eq!(salts.only_asker(&[7], |namespace| namespace != 9), None, "too many asked");
    }
}
