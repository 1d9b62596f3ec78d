//! The mirror beside a model of a server: what is told is what is held.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::*;

const BLOCK: u32 = 2;
const NAMESPACE: u128 = 0xaa;

fn salts() -> Salts {
    Salts::new(BLOCK, false)
}

fn mirror(counts_copies: bool) -> Mirror {
    Mirror::new(HashKey([3; 16]), BLOCK, counts_copies, 10_000)
}

fn stored(blocks: &[u64], parent: Option<u64>, tokens: &[u32]) -> Stored {
    Stored {
        blocks: blocks.iter().map(|n| Native::Number(*n)).collect(),
        parent: parent.map(Native::Number),
        tokens: tokens.to_vec(),
        block_tokens: BLOCK,
        medium: Some(Medium::Device),
        salt: if parent.is_some() { Salt::Untold } else { Salt::Text(salts().salt_of(NAMESPACE)) },
        ..Stored::default()
    }
}

fn removed(blocks: &[u64]) -> Event {
    let blocks = blocks.iter().map(|n| Native::Number(*n)).collect();
    Event::Removed { blocks, medium: Some(Medium::Device), group: Group::default() }
}

fn apply(mirror: &mut Mirror, event: Event) -> Vec<Change> {
    let mut told = Vec::new();
    mirror.apply(event, &salts(), |change| told.push(change));
    told
}

fn names(tokens: &[u32]) -> Vec<u128> {
    let mut names = Vec::new();
    BlockHashKey::new(HashKey([3; 16])).chain(NAMESPACE, BLOCK, tokens, &mut names);
    names.iter().map(|name| name.0).collect()
}

fn told_stored(parent: u128, blocks: &[u128]) -> Change {
    let (namespace, blocks) = (NAMESPACE, blocks.to_vec());
    Change::Event(KvEvent::Stored { namespace, parent, blocks, tier: 0, snapshot: false })
}

fn told_removed(blocks: &[u128]) -> Change {
    let (blocks, cause) = (blocks.to_vec(), Cause::Capacity);
    Change::Event(KvEvent::Removed { blocks, tier: 0, cause })
}

#[test]
fn blocks_get_our_names_and_their_children_theirs() {
    let mut mirror = mirror(true);
    let due = names(&[1, 2, 3, 4, 5, 6]);
    let told = apply(&mut mirror, Event::Stored(stored(&[10, 11], None, &[1, 2, 3, 4])));
    assert_eq!(told, [told_stored(NAMESPACE, &due[..2])]);
    let told = apply(&mut mirror, Event::Stored(stored(&[12], Some(11), &[5, 6])));
    assert_eq!(told, [told_stored(due[1], &due[2..])]);
    let held = |mirror: &Mirror, prompt: &[u32]| mirror.held_tokens(NAMESPACE, prompt);
    assert_eq!(held(&mirror, &[1, 2, 3, 4, 5, 6, 7]), 6);
    assert_eq!(
        (held(&mirror, &[1, 2, 3, 4]), held(&mirror, &[2, 1, 3]), held(&mirror, &[])),
        (2, 0, 0)
    );
    assert_eq!(mirror.held_tokens(NAMESPACE + 1, &[1, 2, 3]), 0);
    assert_eq!(apply(&mut mirror, removed(&[12, 99])), [told_removed(&due[2..])]);
    assert_eq!(held(&mirror, &[1, 2, 3, 4, 5, 6, 7]), 4);
    assert_eq!((mirror.blocks_held(), mirror.passed().strangers), (2, 1));
    let told = apply(&mut mirror, Event::Cleared);
    assert_eq!((told, mirror.blocks_held()), (vec![Change::Cleared], 0));
}

#[test]
fn a_block_that_is_held_twice_is_gone_when_both_are() {
    let mut counting = mirror(true);
    let both = || Event::Stored(stored(&[10, 11], None, &[1, 2, 3, 4]));
    assert_eq!(apply(&mut counting, both()).len(), 1);
    assert_eq!(apply(&mut counting, both()), []);
    assert_eq!(apply(&mut counting, removed(&[11])), []);
    assert_eq!(apply(&mut counting, removed(&[11])).len(), 1);
    // SGLang tells a block again without holding it twice.
    let mut plain = mirror(false);
    apply(&mut plain, both());
    apply(&mut plain, both());
    assert_eq!(apply(&mut plain, removed(&[11])).len(), 1);
}

#[test]
fn a_run_with_known_blocks_in_it_is_told_in_parts() {
    let mut mirror = mirror(true);
    let due = names(&[1, 2, 3, 4, 5, 6]);
    apply(&mut mirror, Event::Stored(stored(&[10, 11, 12], None, &[1, 2, 3, 4, 5, 6])));
    apply(&mut mirror, removed(&[10]));
    apply(&mut mirror, removed(&[12]));
    let told = apply(&mut mirror, Event::Stored(stored(&[10, 11, 12], None, &[1, 2, 3, 4, 5, 6])));
    assert_eq!(told, [told_stored(NAMESPACE, &due[..1]), told_stored(due[1], &due[2..])]);
}

#[test]
fn what_is_not_ours_or_not_whole_is_not_told() {
    let mut mirror = mirror(true);
    let whole = stored(&[10, 11], None, &[1, 2, 3, 4]);
    let of = |change: fn(&mut Stored)| {
        let mut stored = whole.clone();
        change(&mut stored);
        Event::Stored(stored)
    };
    for event in [
        of(|s| s.salt = Salt::Text("tenantA".into())),
        of(|s| s.salt = Salt::None),
        of(|s| s.salt = Salt::Foreign),
        of(|s| s.salt = Salt::Untold),
        of(|s| s.parent = Some(Native::Number(77))),
        of(|s| s.block_tokens = 4),
        of(|s| s.tokens.truncate(3)),
        of(|s| s.blocks.clear()),
        of(|s| s.foreign_from = Some(0)),
        of(|s| s.group.is_partial = true),
    ] {
        assert_eq!(apply(&mut mirror, event.clone()), [], "{event:?}");
    }
    assert_eq!(mirror.blocks_held(), 0);
    let told = apply(&mut mirror, of(|s| s.foreign_from = Some(1)));
    assert_eq!(told, [told_stored(NAMESPACE, &names(&[1, 2]))]);
}

#[test]
fn without_a_salt_the_only_asker_is_the_owner() {
    let mut mirror = mirror(true);
    let mut salts = salts();
    let untold = Stored { salt: Salt::Untold, ..stored(&[10], None, &[1, 2]) };
    salts.asked(NAMESPACE, &[1, 2, 3]);
    let mut told = Vec::new();
    mirror.apply(Event::Stored(untold.clone()), &salts, |change| told.push(change));
    assert_eq!(told, [told_stored(NAMESPACE, &names(&[1, 2]))]);
    salts.asked(NAMESPACE + 1, &[1, 2]);
    // Who holds it does not hold it under another name, too.
    let second = Stored { salt: Salt::Untold, ..stored(&[11], None, &[1, 2]) };
    let mut told = Vec::new();
    mirror.apply(Event::Stored(second), &salts, |change| told.push(change));
    let [Change::Event(KvEvent::Stored { namespace, .. })] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*namespace, NAMESPACE + 1);
    mirror.clear();
    mirror.apply(Event::Stored(untold), &salts, |change| panic!("{change:?}"));
}

#[test]
fn a_block_that_moves_is_never_nowhere_and_leaves_from_where_it_is() {
    let mut mirror = mirror(false);
    let due = names(&[1, 2, 3, 4]);
    apply(&mut mirror, Event::Stored(stored(&[10, 11], None, &[1, 2, 3, 4])));
    let block = Native::Number(11);
    let moved = |from, to| Event::Moved { block, from, to };
    let told = apply(&mut mirror, moved(Medium::Device, Medium::Host));
    let [Change::Event(KvEvent::Stored { tier, blocks, parent, .. }), left] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((*tier, &blocks[..], *parent), (TIER_HOST, &due[1..], due[0]));
    assert_eq!(*left, told_removed(&due[1..]));
    assert_eq!(apply(&mut mirror, moved(Medium::Device, Medium::Host)), []);
    assert_eq!(mirror.passed().strangers, 1);
    let told = apply(&mut mirror, Event::Dropped(vec![block, Native::Number(9)]));
    let blocks = due[1..].to_vec();
    let gone = KvEvent::Removed { blocks, tier: TIER_HOST, cause: Cause::Capacity };
    assert_eq!((told, mirror.blocks_held()), (vec![Change::Event(gone)], 1));
    assert_eq!(mirror.held_tokens(NAMESPACE, &[1, 2, 3, 4, 5]), 2);
}

#[test]
fn a_server_that_claims_too_much_is_not_believed() {
    let mut mirror = Mirror::new(HashKey([3; 16]), BLOCK, true, 3);
    apply(&mut mirror, Event::Stored(stored(&[10, 11], None, &[1, 2, 3, 4])));
    let told = apply(&mut mirror, Event::Stored(stored(&[20, 21], None, &[5, 6, 7, 8])));
    assert_eq!((told[0].clone(), told.len(), mirror.blocks_held()), (Change::Cleared, 2, 2));
}

/// Replays what was told, as a worker would.
fn replay(told: &[Change]) -> HashSet<u128> {
    let mut held = HashSet::new();
    for change in told {
        match change {
            Change::Cleared => held.clear(),
            Change::Event(KvEvent::Stored { namespace, parent, blocks, .. }) => {
                assert!(parent == namespace || held.contains(parent), "an orphan was told");
                held.extend(blocks);
            }
            Change::Event(KvEvent::Removed { blocks, .. }) => {
                for block in blocks {
                    assert!(held.remove(block), "removed where it was not");
                }
            }
            Change::Event(other) => panic!("{other:?}"),
        }
    }
    held
}

proptest::proptest! {
    /// A server with copies: prompts over few tokens, so that prefixes meet; removals of any copy.
    #[test]
    fn what_is_told_is_what_is_held(
        steps in proptest::collection::vec((0..4_u8, proptest::collection::vec(0..2_u32, 6)), 1..60),
    ) {
        let mut mirror = mirror(true);
        let mut told = Vec::new();
        // Copies of each block, by its whole prefix.
        let mut server: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        let mut natives: HashMap<Vec<u32>, u64> = HashMap::new();
        for (kind, prompt) in steps {
            let prefixes: Vec<Vec<u32>> =
                (1..=3).map(|blocks| prompt[..blocks * BLOCK as usize].to_vec()).collect();
            for prefix in &prefixes {
                let fresh = natives.len() as u64;
                natives.entry(prefix.clone()).or_insert(fresh);
            }
            if kind > 0 {
                // As vLLM: blocks that are held are shared, those behind them are new, or doubled.
                let from = if kind == 1 { 0 } else {
                    prefixes.iter().take_while(|prefix| server.contains_key(*prefix)).count()
                };
                if from == prefixes.len() { continue; }
                let ids: Vec<u64> = prefixes[from..].iter().map(|p| natives[p]).collect();
                let parent = from.checked_sub(1).map(|before| natives[&prefixes[before]]);
                let event = stored(&ids, parent, &prompt[from * BLOCK as usize..]);
                for prefix in &prefixes[from..] {
                    *server.entry(prefix.clone()).or_default() += 1;
                }
                mirror.apply(Event::Stored(event), &salts(), |change| told.push(change));
            } else if let Some(prefix) = prefixes.iter().rev().find(|p| server.contains_key(*p)) {
                let event = removed(&[natives[prefix]]);
                let copies = server.get_mut(prefix).unwrap();
                *copies -= 1;
                if *copies == 0 { server.remove(prefix); }
                mirror.apply(event, &salts(), |change| told.push(change));
            }
        }
        let due: HashSet<u128> =
            server.keys().map(|prefix| *names(prefix).last().unwrap()).collect();
        proptest::prop_assert_eq!(replay(&told), due.clone());
        let mut again = Vec::new();
        let count = mirror.snapshot(|event| match event {
            KvEvent::Stored { blocks, snapshot: true, .. } => again.extend(blocks),
            other => panic!("{other:?}"),
        });
        proptest::prop_assert_eq!(count as usize, due.len());
        proptest::prop_assert_eq!(again.into_iter().collect::<HashSet<_>>(), due);
    }
}
