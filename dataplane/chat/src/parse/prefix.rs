//! What two bodies have in common from their start, and short names for the starts of one.
//!
//! A name is a hash that anybody can compute and a hostile client can make collide: it finds a body that is worth a
//! look, and the bytes decide. Names are further apart the further they are from the start, so that a body of any size
//! has few.

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

/// The names of the starts of a body, the shortest first. Bodies with different seeds share none.
pub(super) fn names(bytes: &[u8], seed: u64) -> Vec<u64> {
    let mut names = Vec::with_capacity(names_within(bytes.len()));
    let mut lanes = FACTORS.map(|factor| factor ^ seed);
    let (mut at, mut rest) = (0, bytes);
    while let Some((part, after)) = rest.split_at_checked(next_end(at) - at) {
        for stripe in part.as_chunks::<STEP_BYTES>().0 {
            let words = stripe.as_chunks::<8>().0;
            for (lane, pair) in words.as_chunks::<2>().0.iter().enumerate() {
                let [a, b] = pair.map(u64::from_le_bytes);
                lanes[lane] = mix(lanes[lane] ^ a, FACTORS[lane] ^ b);
            }
        }
        let folded = lanes.iter().fold(0, |name, lane| mix(name ^ lane, FACTORS[0]));
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
        let before = names(&text, 1);
        assert_eq!(before.len(), names_within(text.len()));
        assert!((60..100).contains(&before.len()), "{}", before.len());
        assert_eq!(names(&text[..100_000], 1), before[..names_within(100_000)]);
        assert!(names(&text, 2).iter().all(|name| !before.contains(name)));
        text[50_000] ^= 1;
        let same = names(&text, 1).iter().zip(&before).take_while(|(a, b)| a == b).count();
        assert_eq!(same, names_within(50_000));
        assert_eq!((names(&text[..63], 1).len(), names(&text[..64], 1).len()), (0, 1));
    }
}
