//! Which leases claim which blocks, so that the end of one reaches the tiers below the engine: pure.
//!
//! An engine knows its leases; a tier has of a block only the most that was said of it. Here is what requests named:
//! once the lease of a session that is over was the last that named a block, nobody is known to want it any more. It is
//! a hint like all of these: what does not fit is forgotten, the lease that was renewed longest ago first, and its
//! claims end by their time.

use std::collections::{BTreeMap, HashMap};

use mainstay_engine_abi::sdk::RetentionRange;
use mainstay_types::{NamespaceId, SequenceHash};

/// Names of blocks that are remembered, of all leases. By their layout they and the table of blocks take some 50 MiB at
/// most.
const NAMES_MAX: usize = 1 << 19;

/// A lease, or what a request claims without one, which nobody ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Name {
    Lease(NamespaceId, u128),
    Unnamed(u64),
}

#[derive(Debug, Default)]
struct Claims {
    blocks: Vec<SequenceHash>,
    stamp: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Leased {
    claims: HashMap<Name, Claims>,
    /// By when they were renewed.
    order: BTreeMap<u64, Name>,
    /// How many claim a block.
    counts: HashMap<SequenceHash, u32>,
    names: usize,
    stamp: u64,
}

impl Leased {
    /// A request claims blocks by these leases, each in the place of what it claimed before; `None` is no lease.
    pub(crate) fn claim_all(
        &mut self,
        namespace: NamespaceId,
        claims: Vec<(Option<u128>, Vec<SequenceHash>)>,
    ) {
        for (lease, blocks) in claims {
            self.claim_within(NAMES_MAX, namespace, lease, blocks);
        }
    }

    fn claim_within(
        &mut self,
        names_max: usize,
        namespace: NamespaceId,
        lease: Option<u128>,
        blocks: Vec<SequenceHash>,
    ) {
        if blocks.is_empty() || blocks.len() > names_max {
            return;
        }
        self.stamp += 1;
        let name = lease.map_or(Name::Unnamed(self.stamp), |lease| Name::Lease(namespace, lease));
        // The next turn of a conversation names what the last one did, and more.
        let before = self.claims.remove(&name).unwrap_or_default();
        self.order.remove(&before.stamp);
        let same = before.blocks.iter().zip(&blocks).take_while(|(old, new)| old == new).count();
        for block in &blocks[same..] {
            *self.counts.entry(*block).or_insert(0) += 1;
        }
        for block in &before.blocks[same..] {
            self.uncount(*block);
        }
        self.names = self.names + blocks.len() - before.blocks.len();
        self.claims.insert(name, Claims { blocks, stamp: self.stamp });
        self.order.insert(self.stamp, name);
        while self.names > names_max {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.forget(oldest);
        }
    }

    /// A lease is over: the blocks of it that nobody else is known to claim.
    pub(crate) fn end(&mut self, namespace: NamespaceId, lease: u128) -> Vec<SequenceHash> {
        self.forget(Name::Lease(namespace, lease))
    }

    fn forget(&mut self, name: Name) -> Vec<SequenceHash> {
        let Some(claims) = self.claims.remove(&name) else { return Vec::new() };
        self.order.remove(&claims.stamp);
        self.names -= claims.blocks.len();
        claims.blocks.into_iter().filter(|block| self.uncount(*block)).collect()
    }

    /// One claim less; says whether it was the last.
    fn uncount(&mut self, block: SequenceHash) -> bool {
        let Some(count) = self.counts.get_mut(&block) else { return true };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.counts.remove(&block);
        }
        last
    }
}

/// What a request claims of its blocks, by lease; what it claims without one comes first.
pub(crate) fn of_request(
    ranges: &[RetentionRange],
    leases: &[u128],
    blocks: &[SequenceHash],
    block_tokens: u32,
) -> Vec<(Option<u128>, Vec<SequenceHash>)> {
    let names = std::iter::once(None).chain(leases.iter().copied().map(Some));
    let tokens = block_tokens.max(1);
    let claimed = |lease: usize| {
        let mut named = vec![false; blocks.len()];
        for range in ranges.iter().filter(|range| usize::from(range.lease) == lease) {
            let end = (range.end.div_ceil(tokens) as usize).min(blocks.len());
            let first = ((range.start / tokens) as usize).min(end);
            named[first..end].fill(true);
        }
        blocks.iter().zip(named).filter(|(_, named)| *named).map(|(block, _)| *block).collect()
    };
    let all = names.enumerate().map(|(lease, name)| (name, claimed(lease)));
    all.filter(|(_, blocks): &(_, Vec<_>)| !blocks.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: NamespaceId = NamespaceId(1);

    fn blocks(range: std::ops::Range<u128>) -> Vec<SequenceHash> {
        range.map(SequenceHash).collect()
    }

    #[test]
    fn only_what_nobody_else_claims_is_let_go() {
        let mut leased = Leased::default();
        leased.claim_all(OURS, vec![(Some(1), blocks(0..4))]);
        leased.claim_all(OURS, vec![(Some(2), blocks(0..10))]);
        leased.claim_all(OURS, vec![(Some(3), blocks(0..6))]);
        // A turn later the second has another history from the seventh block on.
        leased.claim_all(OURS, vec![(Some(2), [blocks(0..6), blocks(20..25)].concat())]);
        assert_eq!(leased.end(NamespaceId(2), 2), [], "another tenant's lease of that name");
        assert_eq!(leased.end(OURS, 2), blocks(20..25));
        assert_eq!(leased.end(OURS, 2), [], "it is over");
        assert_eq!(leased.end(OURS, 3), blocks(4..6));
        leased.claim_all(OURS, vec![(None, blocks(0..2))]);
        assert_eq!(leased.end(OURS, 1), blocks(2..4), "what a request claims by itself stays");
    }

    #[test]
    fn a_request_claims_by_lease_what_its_ranges_touch() {
        let range = |start, end, lease| RetentionRange { start, end, lease, ..Default::default() };
        let ranges = [range(0, 20, 1), range(20, 36, 2), range(40, u32::MAX, 2), range(3, 4, 0)];
        let claims = of_request(&ranges, &[7, 8, 9], &blocks(0..4), 16);
        let due = [(None, blocks(0..1)), (Some(7), blocks(0..2)), (Some(8), blocks(1..4))];
        assert_eq!(claims, due);
        assert_eq!(of_request(&[range(9_999, u32::MAX, 0)], &[], &blocks(0..4), 0), []);
    }

    #[test]
    fn what_does_not_fit_is_forgotten_the_oldest_first() {
        let mut leased = Leased::default();
        leased.claim_within(10, OURS, Some(1), blocks(0..5));
        leased.claim_within(10, OURS, Some(2), blocks(10..15));
        leased.claim_within(10, OURS, Some(1), blocks(0..5));
        leased.claim_within(10, OURS, Some(3), blocks(20..23));
        leased.claim_within(10, OURS, Some(4), blocks(0..11));
        assert_eq!((leased.names, leased.claims.len(), leased.order.len()), (8, 2, 2));
        assert_eq!(leased.end(OURS, 2), []);
        assert_eq!(leased.end(OURS, 1), blocks(0..5));
    }

    proptest! {
        /// Its counts are what its leases name, whatever comes.
        #[test]
        fn counts_are_those_of_the_leases(
            steps in proptest::collection::vec((0..4_u128, 0..6_u128, 0..8_u128, 0..4_u8), 1..60),
        ) {
            let mut leased = Leased::default();
            for (lease, from, len, what) in steps {
                match what {
                    0 => drop(leased.end(OURS, lease)),
                    1 => leased.claim_within(20, OURS, None, blocks(from..from + len)),
                    _ => leased.claim_within(20, OURS, Some(lease), blocks(from..from + len)),
                }
                let mut counts = HashMap::new();
                for block in leased.claims.values().flat_map(|claims| &claims.blocks) {
                    *counts.entry(*block).or_insert(0_u32) += 1;
                }
                prop_assert_eq!(&leased.counts, &counts);
                let names: usize = leased.claims.values().map(|claims| claims.blocks.len()).sum();
                prop_assert_eq!((leased.names, leased.order.len()), (names, leased.claims.len()));
                prop_assert!(names <= 20);
            }
        }
    }
}
