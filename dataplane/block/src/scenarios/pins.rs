//! What single sequences of events promise of pins: who finds room, and what the look for it costs.

use mainstay_types::hash::SequenceHash;
use mainstay_types::id::PinId;

use super::super::tests::namespace;
use super::super::*;
use super::namespaced_run;

#[test]
fn no_tenant_leaves_others_without_pins() {
    let mut pool = BlockManager::new(Limits::new(16));
    let mut taken = 0;
    while pool.pin(PinId(taken), TenantSlot(0), &[SequenceHash(taken)], 10, 0).is_ok() {
        taken += 1;
    }
    assert_eq!(taken as usize, PINS_MAX * 15 / 16 / 2);
    assert_eq!(pool.pin(PinId(taken), TenantSlot(2), &[SequenceHash(1)], 10, 0), Ok(0));
    // A renewal takes no room; and a pin sees by itself that others are over.
    assert_eq!(pool.pin(PinId(0), TenantSlot(0), &[SequenceHash(0)], 20, 0), Ok(0));
    assert_eq!(pool.pin(PinId(taken + 1), TenantSlot(0), &[SequenceHash(1)], 20, 10), Ok(0));
}

/// Thousands of pins end at one time while as many blocks wait for their room.
#[test]
fn pins_that_end_at_once_look_once_at_those_that_wait() {
    const WAITING: usize = 2_000;
    let mut pool = BlockManager::new(Limits { pinned_blocks: 1_000, ..Limits::new(8_192) });
    let held = namespaced_run(&mut pool, 0, 1_000);
    let name = |tenant: u128, at: usize| SequenceHash((tenant + 1) << 64 | at as u128);
    for at in 0..held.len() {
        let pin = PinId(at as u128);
        assert_eq!(pool.pin(pin, TenantSlot(0), &[name(0, at)], 100, 0), Ok(1));
    }
    namespaced_run(&mut pool, 2, WAITING);
    for at in 0..WAITING {
        let pin = PinId(10_000 + at as u128);
        assert_eq!(pool.pin(pin, TenantSlot(2), &[name(2, at)], 1_000, 0), Ok(0));
    }
    let before = pool.counts().pin_steps;
    pool.expire(100);
    assert_eq!(pool.counts().pinned, 1_000, "those that waited have the room");
    let steps = pool.counts().pin_steps - before;
    assert!(steps <= 4 * WAITING as u64, "{steps} steps");
}

/// The same within one pin whose deepest hash comes first.
#[test]
fn a_pin_of_a_long_chain_looks_at_each_block_a_few_times() {
    let mut pool = BlockManager::new(Limits { pinned_blocks: 4_000, ..Limits::new(8_192) });
    namespaced_run(&mut pool, 0, 8_000);
    let mut wanted: Vec<SequenceHash> =
        (4_500..8_000).map(|at| SequenceHash(1 << 64 | at as u128)).collect();
    wanted.reverse();
    assert_eq!(
        pool.pin(PinId(1), TenantSlot(0), &wanted, 9, 0),
        Ok(0),
        "4,501 are needed at least"
    );
    let steps = pool.counts().pin_steps;
    assert!(steps < 20_000, "{steps}");
    wanted.truncate(10);
    wanted.push(SequenceHash(1 << 64 | 3_999));
    assert_eq!(pool.pin(PinId(2), TenantSlot(0), &wanted, 9, 0), Ok(1));
}

/// Leaves under one long chain that nothing holds, and for which there is no room.
fn leaves_under_a_chain(held_first: usize) -> u64 {
    const CHAIN: usize = 2_000;
    const LEAVES: u128 = 2_000;
    let mut pool = BlockManager::new(Limits { pinned_blocks: 1_500, ..Limits::new(8_192) });
    let table = namespaced_run(&mut pool, 0, CHAIN);
    let leaf = |at: u128| SequenceHash(9 << 64 | at);
    for at in 0..LEAVES {
        let id = pool.allocate(TenantSlot(0), 0).unwrap();
        pool.register(id, leaf(at), table.last().copied(), namespace(0)).unwrap();
        let pin = PinId(100 + at);
        assert_eq!(pool.pin(pin, TenantSlot(0), &[leaf(at)], 1_000, 0), Ok(0));
    }
    let name = |at: usize| SequenceHash(1 << 64 | at as u128);
    // What ends wakes those that wait, and what is woken first takes a part of the chain.
    let first: Vec<SequenceHash> = (0..held_first).map(name).collect();
    assert_eq!(pool.pin(PinId(1), TenantSlot(0), &[name(0)], 100, 0), Ok(1));
    assert_eq!(pool.pin(PinId(2), TenantSlot(0), &first, 1_000, 0).unwrap(), held_first as u32);
    let before = pool.counts().pin_steps;
    pool.expire(100);
    pool.set_budget(TenantSlot(0), 8_192, 1_400).unwrap();
    assert_eq!(pool.counts().pinned, held_first as u32);
    pool.counts().pin_steps - before
}

#[test]
fn leaves_that_wait_do_not_walk_their_chain_each() {
    for held_first in [0, 1, 400] {
        let steps = leaves_under_a_chain(held_first);
        assert!(steps > 2_000, "{steps} steps: all are looked at");
        assert!(steps <= 10_000, "{steps} steps");
    }
}

/// A round in which some find room and others do not: those that come later see what the former have taken.
#[test]
fn leaves_find_the_room_that_is_left_when_others_have_taken_theirs() {
    let mut pool = BlockManager::new(Limits { pinned_blocks: 60, ..Limits::new(256) });
    let table = namespaced_run(&mut pool, 0, 50);
    let leaf = |at: u128| SequenceHash(9 << 64 | at);
    let wanted: Vec<SequenceHash> = (0..40).map(leaf).collect();
    for hash in &wanted {
        let id = pool.allocate(TenantSlot(0), 0).unwrap();
        pool.register(id, *hash, table.last().copied(), namespace(0)).unwrap();
    }
    // The first needs the whole chain, the next nine only themselves.
    assert_eq!(pool.pin(PinId(1), TenantSlot(0), &wanted, 10, 0), Ok(10));
    assert_eq!(pool.counts().pinned, 60);
}

/// The same where a chain that is held in part is looked at again for each of thousands: a logarithm for each.
#[test]
fn leaves_under_a_chain_that_is_held_within_the_round_cost_little() {
    let mut pool = BlockManager::new(Limits { pinned_blocks: 1_500, ..Limits::new(8_192) });
    let table = namespaced_run(&mut pool, 0, 2_000);
    let leaf = |at: u128| SequenceHash(9 << 64 | at);
    let mut wanted = vec![SequenceHash(1 << 64)];
    for at in 0..1_400 {
        let id = pool.allocate(TenantSlot(0), 0).unwrap();
        pool.register(id, leaf(at), table.last().copied(), namespace(0)).unwrap();
        wanted.push(leaf(at));
    }
    assert_eq!(pool.pin(PinId(1), TenantSlot(0), &wanted, 10, 0), Ok(1), "the chain's first");
    let steps = pool.counts().pin_steps;
    assert!((1_400..40_000).contains(&steps), "{steps} steps");
}

#[test]
fn no_tenant_leaves_others_without_hashes_in_pins() {
    let mut pool = BlockManager::new(Limits { pinned_blocks: 1 << 14, ..Limits::new(1 << 15) });
    let limit = CLAIMS_PER_BLOCK_MAX << 15;
    let wanted: Vec<SequenceHash> = (0..1 << 14).map(SequenceHash).collect();
    let mut taken = 0;
    let refused = loop {
        match pool.pin(PinId(taken), TenantSlot(0), &wanted, 10, 0) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, BlockError::Many { what: "hashes in pins", limit });
    assert_eq!(taken as usize, limit * 15 / 16 / 2 / wanted.len());
    // What is renewed needs no more, and another tenant has room.
    assert!(pool.pin(PinId(0), TenantSlot(0), &wanted, 20, 0).is_ok());
    assert!(pool.pin(PinId(taken), TenantSlot(2), &wanted, 10, 0).is_ok());
    assert!(pool.unpin(PinId(1)).is_some());
    assert!(pool.pin(PinId(1), TenantSlot(0), &wanted[1..], 10, 0).is_ok());
}
