//! Segments against one byte of tiers per block, and their packing.

use proptest::prelude::*;

use super::*;

fn tiers(bits: u8) -> TierSet {
    TierSet::from_bits(bits).expect("known tiers")
}

#[test]
fn a_segment_packs_and_sorts() {
    let stretch = Stretch { from: 3, to: 32_768, tiers: tiers(0b1010) };
    let segment = Segment::new(4_095, stretch);
    assert_eq!((segment.slot(), segment.stretch()), (4_095, stretch));
    assert!(Segment::new(4_094, stretch) < segment);
}

#[test]
fn leading_blocks_stop_at_a_hole_or_a_tier() {
    let list = |parts: &[(u32, u32, u8)]| {
        parts
            .iter()
            .map(|&(from, to, bits)| Segment::new(1, Stretch { from, to, tiers: tiers(bits) }))
            .collect::<Vec<_>>()
            .into_iter()
    };
    assert_eq!(leading(list(&[(0, 4, 1), (4, 9, 2)]), false, 20, 0xf), 9);
    assert_eq!(leading(list(&[(0, 4, 1), (4, 9, 2)]), false, 20, 1), 4);
    assert_eq!(leading(list(&[(0, 4, 1), (5, 9, 2)]), false, 20, 0xf), 4);
    assert_eq!(leading(list(&[(1, 4, 1)]), false, 20, 0xf), 0);
    assert_eq!(leading(list(&[(5, 9, 2)]), true, 20, 1), 5);
    assert_eq!(leading(list(&[(5, 9, 3)]), true, 20, 1), 20);
    assert_eq!(leading(list(&[]), true, 20, 1), 20);
}

proptest! {
    /// Against one byte of tiers per block.
    #[test]
    fn edits_equal_a_byte_per_block(
        ops in proptest::collection::vec((0_u32..40, 0_u32..40, 0_usize..4, any::<bool>()), 1..40),
    ) {
        let (length, slot) = (40_u32, 7);
        let mut plain = [0_u8; 40];
        let (mut list, mut full) = (Vec::new(), false);
        list.push(Segment::new(3, Stretch { from: 0, to: 2, tiers: tiers(1) }));
        list.push(Segment::new(9, Stretch { from: 1, to: 2, tiers: tiers(1) }));
        let (mut before, mut edit) = (Vec::new(), Edit::default());
        for (a, b, tier, add) in ops {
            let (from, to, tier) = (a.min(b), a.max(b) + 1, Tier::ALL[tier]);
            stretches_of(&list, slot, full, length, &mut before);
            edit.apply(&before, from, to, tier, add);
            full = put_stretches(&mut list, slot, &edit.after, length);
            let mut changed = 0;
            let mut flipped = 0;
            for block in &mut plain[from as usize..to as usize] {
                let was = *block;
                let bit = 1 << tier.number();
                *block = if add { was | bit } else { was & !bit };
                flipped += u32::from(was != *block);
                changed += u32::from((was == 0) != (*block == 0));
            }
            prop_assert_eq!(edit.blocks, changed);
            prop_assert_eq!(edit.flips.iter().map(|(x, y)| y - x).sum::<u32>(), flipped);
            prop_assert_eq!(full, plain.iter().all(|b| *b != 0));
            stretches_of(&list, slot, full, length, &mut before);
            let mut seen = [0_u8; 40];
            for stretch in &before {
                seen[stretch.from as usize..stretch.to as usize].fill(stretch.tiers.bits());
            }
            prop_assert_eq!(seen, plain);
            prop_assert!(list.is_sorted());
            for accept in [1_u8, 3, 7, 15] {
                let want = plain.iter().take_while(|b| **b & accept != 0).count() as u32;
                let own = list[of_slot(&list, slot)].iter().copied();
                prop_assert_eq!(leading(own, full, length, accept), want);
            }
        }
        prop_assert_eq!(list[0].slot(), 3);
        prop_assert_eq!(list[list.len() - 1].slot(), 9);
    }
}
