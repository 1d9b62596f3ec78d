//! The names of blocks against their definition, and what the definition promises.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

mod definition;

const KEY: HashKey = HashKey([7; 16]);

/// A generator with a fixed start, so that every run sees the same numbers.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.next() as u32).collect()
    }
}

fn forms() -> [BlockHashKey; 2] {
    [BlockHashKey::new(KEY), BlockHashKey::portable(KEY)]
}

#[test]
fn hex_round_trips_and_refuses_other_lengths() {
    assert_eq!(HashKey::from_hex(&KEY.to_hex()), Some(KEY));
    assert_eq!(HashKey::from_hex("07"), None);
    assert_eq!(HashKey::from_hex("+0000000000000000000000000000000"), None);
    let hash = SequenceHash(u128::MAX - 5);
    assert_eq!(SequenceHash::from_hex(&hash.to_string()), Some(hash));
}

#[test]
fn the_key_is_never_shown() {
    assert_eq!(format!("{KEY:?}"), "HashKey(secret)");
    assert_eq!(format!("{:?}", BlockHashKey::new(KEY)), "BlockHashKey(secret)");
    let hasher = BlockHasher::new(KEY, NamespaceId(1), 4);
    let shown = format!("{hasher:?}");
    assert!(shown.contains("BlockHashKey(secret)") && shown.contains("State(secret)"), "{shown}");
}

#[test]
fn every_part_of_a_namespace_counts() {
    let base = NamespaceId::derive(KEY, "a", "m", "", 16);
    for other in [
        NamespaceId::derive(HashKey([8; 16]), "a", "m", "", 16),
        NamespaceId::derive(KEY, "b", "m", "", 16),
        NamespaceId::derive(KEY, "am", "", "", 16),
        NamespaceId::derive(KEY, "a", "m\0", "", 16),
        NamespaceId::derive(KEY, "a", "", "m", 16),
        NamespaceId::derive(KEY, "a", "m", "x", 16),
        NamespaceId::derive(KEY, "a", "m", "", 32),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn a_namespace_is_defined_too() {
    let long = "t".repeat(1_000);
    for tenant in ["", "abc", "abcd", "abcde", &long] {
        let mut words = vec![16];
        for part in [tenant, "model@1", ""] {
            words.extend([part.len() as u32, 0]);
            let mut bytes = part.as_bytes().to_vec();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            words.extend(bytes.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())));
        }
        let expected = definition::namespace(KEY, &words);
        assert_eq!(NamespaceId::derive(KEY, tenant, "model@1", "", 16), expected);
        for form in forms() {
            assert_eq!(form.namespace(tenant, "model@1", "", 16), expected);
        }
    }
}

#[test]
fn products_in_the_field_are_right() {
    // x^127 * x = x^128, which is x^7 + x^2 + x + 1.
    assert_eq!(field::multiply(1 << 127, 2), 0x87);
    assert_eq!(field::multiply(1 << 64, 1 << 64), 0x87);
    // The inverse of x: x^127 + x^6 + x + 1.
    assert_eq!(field::multiply(1 << 127 | 0x43, 2), 1);
    assert_eq!(field::multiply(u128::MAX, 1), u128::MAX);
    let mut numbers = Numbers(1);
    let mut operands: Vec<u128> = (0..60).map(|_| numbers.wide()).collect();
    operands.extend([0, 1, u128::MAX, u128::MAX >> 64, u128::MAX << 64, 0x8421 << 100]);
    for a in &operands {
        for b in &operands {
            assert_eq!(field::multiply(*a, *b), definition::multiply(*a, *b), "{a:x} {b:x}");
        }
    }
}

/// FIPS 197, appendix C.1, with the other keys chosen so that what goes into the cipher is the standard's plain text.
#[test]
fn a_name_is_the_standards_aes() {
    let number = |bytes: [u8; 16]| u128::from_le_bytes(bytes);
    let key = number(core::array::from_fn(|i| i as u8));
    let plain = number(core::array::from_fn(|i| (i * 0x11) as u8));
    let cipher = number([
        0x69, 0xc4, 0xe0, 0xd8, 0x6a, 0x7b, 0x04, 0x30, 0xd8, 0xcd, 0xb7, 0x80, 0x70, 0xb4, 0xc5,
        0x5a,
    ]);
    let words = |number: u128| [0, 32, 64, 96].map(|shift| (number >> shift) as u32);
    let none = [[0; 2]; 16];
    // Nothing is kept of the state: the sum of a piece times one is the state.
    let block = [&words(plain)[..], &[1]].concat();
    for form in BlockHashKey::by_hand(key, 0, 0, none) {
        assert_eq!(form.block_hash(5, &block), cipher);
        assert_eq!(form.block_hash(6, &block), cipher);
    }
    // The state is kept, and nothing is added.
    for form in BlockHashKey::by_hand(key, 0, 1, none) {
        assert_eq!(form.block_hash(cipher, &[]), cipher);
        assert_eq!(form.block_hash(cipher, &[0; 24]), cipher);
        assert_eq!(form.hash_prompt(NamespaceId(cipher), 3, &[0; 9]), [SequenceHash(cipher); 3]);
    }
    // The state is multiplied by x, which carries out of the highest bit, and the block puts it right.
    let right = plain ^ plain << 1 ^ 0x87;
    let block = [&words(right)[..], &[1]].concat();
    for form in BlockHashKey::by_hand(key, 0, 2, none) {
        assert_eq!(form.block_hash(cipher, &block), cipher);
        assert_eq!(
            form.hash_prompt(NamespaceId(cipher), 5, &block.repeat(3)),
            [SequenceHash(cipher); 3]
        );
    }
    // One half of the piece comes from its key, the other factor from a key too.
    let mut pairs = none;
    pairs[1] = [plain & u128::MAX << 64, 1];
    let block = [&[0; 8], &words(plain)[..2]].concat();
    for form in BlockHashKey::by_hand(key, 0, 0, pairs) {
        assert_eq!(form.block_hash(0, &block), cipher);
    }
    // The kind and the count of tokens come in by the header's key, here one.
    let mut pairs = none;
    pairs[1] = [plain & u128::MAX << 64 ^ (1 << 32 | 10), 1];
    for form in BlockHashKey::by_hand(key, 1, 0, pairs) {
        assert_eq!(form.block_hash(0, &block), cipher);
        assert_eq!(form.hash_prompt(NamespaceId(0), 10, &block), [SequenceHash(cipher)]);
    }
}

#[test]
fn names_do_not_change() {
    let key = HashKey::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
    let namespace = NamespaceId::derive(key, "tenant", "model@1", "adapter", 16);
    let tokens: Vec<u32> = (0..1024_u32).map(|i| i.wrapping_mul(0x9e37_79b1) >> 12).collect();
    let names = [
        namespace.0,
        block_hash(key, 0, &[]),
        block_hash(key, 1, &[2]),
        block_hash(key, namespace.0, &tokens[..16]),
        block_hash(key, namespace.0, &tokens[..33]),
        block_hash(key, namespace.0, &tokens),
        BlockHasher::hash_prompt(key, namespace, 16, &tokens)[63].0,
    ];
    let shown = names.map(|name| SequenceHash(name).to_string());
    assert_eq!(shown, VECTORS);
    let end = definition::block;
    assert_eq!(names[1], end(key, 0, &[]));
    assert_eq!(names[2], end(key, 1, &[2]));
    assert_eq!(names[3], end(key, namespace.0, &tokens[..16]));
    assert_eq!(names[4], end(key, namespace.0, &tokens[..33]));
    assert_eq!(names[5], end(key, namespace.0, &tokens));
    let last = tokens.chunks(16).fold(namespace.0, |parent, block| end(key, parent, block));
    assert_eq!(names[6], last);
}

/// Computed by another program, from the construction in the module's description.
const VECTORS: [&str; 7] = [
    "a68b0123aea20d614a07731692c1fd9e",
    "99bd63a53da96dda7d6d77f0fa86354f",
    "936457dcb29c4a18d0cdd34476d6113f",
    "34b755a62be584fc6f297d7c976253cd",
    "2f88b15cd0ed295bf2e487a5ff93acaf",
    "9e6be4f0eb28f1a28d06d21bef872577",
    "744dd149cc465ad31ed62a9be68984e6",
];

#[test]
fn all_forms_follow_the_definition_at_every_length() {
    let mut numbers = Numbers(2);
    for length in (0..=140).chain([255, 256, 257, 384, 1_000, 1_024, 1_025]) {
        let (parent, tokens) = (numbers.wide(), numbers.tokens(length));
        let expected = definition::block(KEY, parent, &tokens);
        for form in forms() {
            assert_eq!(form.block_hash(parent, &tokens), expected, "{length} tokens");
        }
        assert_eq!(block_hash(KEY, parent, &tokens), expected);
    }
}

#[test]
fn chains_of_every_block_size_are_their_blocks() {
    let mut numbers = Numbers(3);
    for size in (1..=40).chain([63, 64, 65, 127, 128, 129, 200, 256, 1_024]) {
        let (parent, tokens) = (numbers.wide(), numbers.tokens(5 * size + size / 2));
        let mut at = parent;
        let expected: Vec<SequenceHash> = tokens
            .chunks_exact(size)
            .map(|block| {
                at = definition::block(KEY, at, block);
                SequenceHash(at)
            })
            .collect();
        for form in forms() {
            let (size, namespace) = (size as u32, NamespaceId(parent));
            assert_eq!(form.hash_prompt(namespace, size, &tokens), expected, "blocks of {size}");
            let mut out = vec![SequenceHash(1)];
            form.chain(parent, size, &tokens, &mut out);
            assert_eq!(out[0], SequenceHash(1));
            assert_eq!(out[1..], expected);
        }
    }
}

#[test]
fn edges_are_harmless() {
    for form in forms() {
        let namespace = NamespaceId(5);
        assert!(form.hash_prompt(namespace, 16, &[]).is_empty());
        assert!(form.hash_prompt(namespace, 16, &[1; 15]).is_empty());
        assert!(form.hash_prompt(namespace, u32::MAX, &[1; 500]).is_empty());
        assert_eq!(
            form.hash_prompt(namespace, 0, &[1; 5]),
            form.hash_prompt(namespace, 1, &[1; 5])
        );
        let mut hasher = BlockHasher::with_key(Arc::new(form), namespace, 0);
        let mut out = Vec::new();
        hasher.extend(&[1; 5], &mut out);
        assert_eq!(out.len(), 5);
    }
}

#[test]
fn this_machine_uses_what_it_has() {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    assert_eq!(BlockHashKey::new(KEY).is_hardware(), has);
    assert!(!BlockHashKey::portable(KEY).is_hardware());
}

/// Changes one bit at a time of a block's key, parent and tokens. Each of the name's bits must flip about half of
/// the time, over all trials, and no change may flip few of them: for 128 fair coins, fewer than 24 heads has a
/// chance of 10^-13.
#[test]
fn every_bit_of_the_input_changes_half_of_the_name() {
    let mut numbers = Numbers(4);
    let mut flips = [0_u32; 128];
    let mut trials = 0;
    for length in [1, 4, 16, 19, 130] {
        for _ in 0..4 {
            let (key, parent) = (numbers.wide(), numbers.wide());
            let tokens = numbers.tokens(length);
            let name = |key: u128, parent, tokens: &[u32]| {
                block_hash(HashKey(key.to_le_bytes()), parent, tokens)
            };
            let base = name(key, parent, &tokens);
            let mut count = |other: u128| {
                let changed = base ^ other;
                assert!((24..=104).contains(&changed.count_ones()), "{:032x}", changed);
                for (bit, flips) in flips.iter_mut().enumerate() {
                    *flips += (changed >> bit & 1) as u32;
                }
                trials += 1;
            };
            for bit in 0..128 {
                count(name(key ^ 1 << bit, parent, &tokens));
                count(name(key, parent ^ 1 << bit, &tokens));
            }
            for bit in 0..32 * length {
                let mut tokens = tokens.clone();
                tokens[bit / 32] ^= 1 << (bit % 32);
                count(name(key, parent, &tokens));
            }
        }
    }
    // Six standard deviations of a fair coin.
    let half = f64::from(trials) / 2.0;
    let allowed = 6.0 * (f64::from(trials) / 4.0).sqrt();
    for (bit, flips) in flips.iter().enumerate() {
        let off = (f64::from(*flips) - half).abs();
        assert!(off < allowed, "bit {bit} flipped {flips} times in {trials} trials");
    }
}

/// Few distinct tokens, blocks that differ in one place, order, length or parent: names differ in each half of
/// their bits, which for a random function has a chance of 10^-7 to fail.
#[test]
fn a_million_inputs_of_a_pattern_have_names_of_their_own() {
    let key = BlockHashKey::new(KEY);
    let mut names = Vec::new();
    // All blocks of 1 to 18 tokens out of {0, 1}.
    for length in 1..=18_u32 {
        for bits in 0..1_u32 << length {
            let tokens: Vec<u32> = (0..length).map(|at| bits >> at & 1).collect();
            names.push(key.block_hash(0, &tokens));
        }
    }
    // One token of a block of zeros counts up; so does the parent.
    for at in 0..16 {
        for value in 2..18_000_u32 {
            let mut tokens = [0; 16];
            tokens[at] = value;
            names.push(key.block_hash(0, &tokens));
        }
    }
    names.extend((1..200_000).map(|parent| key.block_hash(parent, &[0; 16])));
    // Zeros and ones of growing number, and chains of them.
    for token in [0, 1] {
        names.extend((19..1_000).map(|length| key.block_hash(0, &vec![token; length])));
    }
    names.extend(key.hash_prompt(NamespaceId(0), 16, &vec![2; 16 * 10_000]).iter().map(|n| n.0));
    assert!(names.len() > 1_000_000, "{}", names.len());
    let low: HashSet<u64> = names.iter().map(|name| *name as u64).collect();
    let high: HashSet<u64> = names.iter().map(|name| (name >> 64) as u64).collect();
    assert_eq!((low.len(), high.len()), (names.len(), names.len()));
}

#[test]
fn the_place_of_a_token_counts() {
    let mut numbers = Numbers(5);
    for length in [2, 8, 16, 17, 200] {
        let tokens = numbers.tokens(length);
        for form in forms() {
            let base = form.block_hash(9, &tokens);
            let mut seen = HashSet::from([base]);
            for a in 0..length.min(40) {
                for b in 0..a {
                    let mut swapped = tokens.clone();
                    swapped.swap(a, b);
                    assert!(seen.insert(form.block_hash(9, &swapped)), "{a} and {b} of {length}");
                }
            }
            if length == 16 {
                // Whole pieces and whole pairs, which share their way of being multiplied.
                for (a, b) in [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)] {
                    let mut pieces: Vec<&[u32]> = tokens.chunks(4).collect();
                    pieces.swap(a, b);
                    assert!(seen.insert(form.block_hash(9, &pieces.concat())), "pieces {a}, {b}");
                }
                assert!(seen.insert(form.block_hash(9, &[&tokens[8..], &tokens[..8]].concat())));
            }
        }
    }
}

/// Patterns of two blocks in which a multiplication by a known factor, say x, would cancel out: one that marks the
/// bits of the field's own polynomial, and the factors of x^n + 1.
#[test]
fn the_order_of_blocks_counts() {
    let mut numbers = Numbers(7);
    let (a, b) = (numbers.tokens(16), numbers.tokens(16));
    let prompt = |marked: &[usize], length: usize| -> Vec<u32> {
        (0..length).flat_map(|at| if marked.contains(&at) { &b } else { &a }.clone()).collect()
    };
    for form in forms() {
        let last = |marked: &[usize], length| {
            *form.hash_prompt(NamespaceId(1), 16, &prompt(marked, length)).last().unwrap()
        };
        let mut seen = HashSet::new();
        for length in [1, 2, 3, 129, 256] {
            assert!(seen.insert(last(&[], length)));
            for at in [0, 1, 2, 3, 7, 64, 126, 127, 128, 255].into_iter().filter(|at| *at < length)
            {
                assert!(seen.insert(last(&[at], length)), "block {at} of {length}");
            }
        }
        for marked in [&[128, 127, 126, 121, 0][..], &[0, 1, 2, 7, 128], &[0, 128], &[0, 64]] {
            assert!(seen.insert(last(marked, 129)), "{marked:?}");
        }
    }
}

/// Zeros are what blocks are filled up with, and the ends of segments are where a block could be cut in two.
#[test]
fn a_prefix_and_its_extensions_differ() {
    let mut numbers = Numbers(6);
    let random = numbers.tokens(300);
    for tokens in [vec![0; 300], random] {
        for form in forms() {
            let names: HashSet<u128> =
                (0..=tokens.len()).map(|length| form.block_hash(3, &tokens[..length])).collect();
            assert_eq!(names.len(), tokens.len() + 1);
            // One block of 256 is neither two of 128 nor a block of 128 after the name of the first.
            let whole = form.block_hash(3, &tokens[..256]);
            let first = form.block_hash(3, &tokens[..128]);
            assert_ne!(whole, form.block_hash(first, &tokens[128..256]));
            // A namespace of the same words is no block.
            assert_ne!(form.namespace("", "", "", 0).0, form.block_hash(0, &[0; 7]));
        }
    }
}

proptest! {
    #[test]
    fn growing_and_whole_hashing_agree(
        tokens in proptest::collection::vec(any::<u32>(), 0..900),
        size in prop_oneof![1_u32..41, 120_u32..300],
        cuts in proptest::collection::vec(0_usize..200, 1..8),
    ) {
        let namespace = NamespaceId(9);
        let whole = BlockHasher::hash_prompt(KEY, namespace, size, &tokens);
        prop_assert_eq!(whole.len(), tokens.len() / size as usize);

        let mut hasher = BlockHasher::new(KEY, namespace, size);
        let grown: Vec<_> = tokens.iter().filter_map(|&t| hasher.push(t)).collect();
        prop_assert_eq!(&grown, &whole);

        let mut hasher = BlockHasher::with_key(Arc::new(BlockHashKey::new(KEY)), namespace, size);
        let (mut in_chunks, mut rest) = (Vec::new(), &tokens[..]);
        for cut in cuts {
            let (chunk, after) = rest.split_at(cut.min(rest.len()));
            hasher.extend(chunk, &mut in_chunks);
            rest = after;
        }
        for token in rest {
            in_chunks.extend(hasher.push(*token));
        }
        prop_assert_eq!(&in_chunks, &whole);
    }

    #[test]
    fn all_forms_agree(
        key in any::<[u8; 16]>(),
        parent in any::<u128>(),
        tokens in proptest::collection::vec(any::<u32>(), 0..1_100),
        size in 1_u32..41,
    ) {
        let (fast, slow) = (BlockHashKey::new(HashKey(key)), BlockHashKey::portable(HashKey(key)));
        prop_assert_eq!(fast.block_hash(parent, &tokens), slow.block_hash(parent, &tokens));
        let namespace = NamespaceId(parent);
        prop_assert_eq!(
            fast.hash_prompt(namespace, size, &tokens),
            slow.hash_prompt(namespace, size, &tokens)
        );
    }

    #[test]
    fn a_change_in_any_token_changes_every_hash_from_there(
        tokens in proptest::collection::vec(any::<u32>(), 32..96),
        at in any::<prop::sample::Index>(),
    ) {
        let at = at.index(tokens.len());
        let mut other = tokens.clone();
        other[at] ^= 1;
        let a = BlockHasher::hash_prompt(KEY, NamespaceId(1), 16, &tokens);
        let b = BlockHasher::hash_prompt(KEY, NamespaceId(1), 16, &other);
        for (i, (x, y)) in a.iter().zip(&b).enumerate() {
            prop_assert_eq!(x == y, i < at / 16);
        }
    }
}
