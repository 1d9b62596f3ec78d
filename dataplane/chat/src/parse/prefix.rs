//! What two bodies have in common from their start, and short names for the starts of one.
//!
//! A name is a hash: it finds a body that is worth a look, and the bytes decide. It is keyed, since all tenants' names
//! are in one map and the later of two equal ones stays: who does not know the key cannot aim at another's. Names are
//! further apart the further they are from the start, so that a body of any size has few.

/// Bytes between the first names; the rest are multiples of it.
const STEP_BYTES: usize = 64;
/// Names for each doubling of the length.
const STEPS_A_DOUBLING: usize = 8;
/// Bytes that are compared at once.
const COMPARED_BYTES: usize = 4 << 10;
const FACTORS: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x27d4_eb2f_1656_67c5];

/// Where the next name after the one at `at` ends.
fn next_end(at: usize) -> usize {
    let doubling = at.checked_ilog2().map_or(0, |power| 1 << power);
    at + STEP_BYTES.max(doubling / STEPS_A_DOUBLING)
}

/// How many names the first `length` bytes of a body have.
pub(super) fn names_within(length: usize) -> usize {
    let ends = std::iter::successors(Some(next_end(0)), |at| Some(next_end(*at)));
    ends.take_while(|end| *end <= length).count()
}

/// The names of the starts of a body, the shortest first. Bodies with different seeds share none, nor do those of
/// different keys.
pub(super) fn names(bytes: &[u8], seed: u64, key: u64) -> Vec<u64> {
    let mut names = Vec::with_capacity(names_within(bytes.len()));
    // Both sides of a product have a part of the key: who knew one could make it zero, and with it all that came before.
    let keys = FACTORS.map(|factor| mix(factor ^ key, factor.rotate_left(32)));
    let mut lanes = keys.map(|key| mix(key ^ seed, FACTORS[3]));
    let (mut at, mut rest) = (0, bytes);
    while let Some((part, after)) = rest.split_at_checked(next_end(at) - at) {
        for stripe in part.as_chunks::<STEP_BYTES>().0 {
            let words = stripe.as_chunks::<8>().0;
            for (lane, pair) in words.as_chunks::<2>().0.iter().enumerate() {
                let [a, b] = pair.map(u64::from_le_bytes);
                lanes[lane] = mix(lanes[lane] ^ a, keys[lane] ^ b);
            }
        }
        let folded = lanes.iter().fold(0, |name, lane| mix(name ^ lane, keys[0]));
        names.push(folded);
        (at, rest) = (at + part.len(), after);
    }
    names
}

/// A seed of something short.
pub(super) fn seed(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FACTORS[1], |seed, byte| mix(seed ^ u64::from(*byte), FACTORS[2]))
}

fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// How many bytes two texts have in common from their start.
pub(super) fn shared_bytes(a: &[u8], b: &[u8]) -> usize {
    let chunks = a.chunks(COMPARED_BYTES).zip(b.chunks(COMPARED_BYTES));
    let same = COMPARED_BYTES * chunks.take_while(|(a, b)| a == b).count();
    let (rest_a, rest_b) = (a.get(same..), b.get(same..));
    let Some((rest_a, rest_b)) = rest_a.zip(rest_b) else { return a.len().min(b.len()) };
    same + rest_a.iter().zip(rest_b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_common_are_counted_to_the_last() {
        let text: Vec<u8> = (0..20_000_u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
        for length in [0, 1, 4_095, 4_096, 4_097, 8_192, 12_000, 20_000] {
            let mut other = text[..length].to_vec();
            assert_eq!(shared_bytes(&text, &other), length);
            assert_eq!(shared_bytes(&other, &text), length);
            other.extend([255; 9_000]);
            assert_eq!(shared_bytes(&text, &other), length, "{length}");
        }
    }

    #[test]
    fn names_are_those_of_the_start_and_of_the_seed() {
        let mut text: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
        let before = names(&text, 1, 7);
        assert_eq!(before.len(), names_within(text.len()));
        assert!((60..100).contains(&before.len()), "{}", before.len());
        assert_eq!(names(&text[..100_000], 1, 7), before[..names_within(100_000)]);
        for other in [names(&text, 2, 7), names(&text, 1, 8)] {
            assert!(other.iter().all(|name| !before.contains(name)));
        }
        text[50_000] ^= 1;
        let same = names(&text, 1, 7).iter().zip(&before).take_while(|(a, b)| a == b).count();
        assert_eq!(same, names_within(50_000));
        // Who knows all but the key cannot make a product zero.
        let zeros: Vec<u8> =
            FACTORS.iter().flat_map(|f| [0, *f].map(u64::to_le_bytes)).flatten().collect();
        let one = |start: u8| names(&[&[start; STEP_BYTES], &*zeros].concat(), 1, 7)[1];
        assert_ne!(one(1), one(2));
        assert_eq!((names(&text[..63], 1, 7).len(), names(&text[..64], 1, 7).len()), (0, 1));
    }
}
