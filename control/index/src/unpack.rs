//! From a word of worker bits to a list of workers, which is most of a lookup where many workers hold a prefix.
//!
//! With AVX-512 eight candidates at a time are compressed to those whose bits are set; elsewhere bit by bit. The
//! vector form pays from a few workers on: one by one they cost about a nanosecond each.

use mainstay_types::WorkerId;

use crate::reader::Overlap;

/// From here on vectors are worth their call.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const VECTOR_FROM: u32 = 6;

/// Appends workers `base` and the set `bits`, at equal depth.
#[inline(always)]
pub(crate) fn unpack(base: u32, bits: u64, depth: u32, out: &mut Vec<Overlap>) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if has(bits, VECTOR_FROM) && std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F, and the layout that it writes is that of `Overlap` by `repr(C)`.
        return unsafe { unpack_vector(base, bits, depth, out) };
    }
    unpack_bits(base, bits, depth, out);
}

/// Whether at least so many bits are set; cheaper than to count them where that is no instruction.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn has(bits: u64, count: u32) -> bool {
    (1..count).fold(bits, |rest, _| rest & rest.wrapping_sub(1)) != 0
}

#[inline(always)]
fn unpack_bits(base: u32, bits: u64, depth: u32, out: &mut Vec<Overlap>) {
    let mut rest = bits;
    while rest != 0 {
        out.push(Overlap { worker: WorkerId(base + rest.trailing_zeros()), blocks: depth });
        rest &= rest - 1;
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx512f")]
fn unpack_vector(base: u32, bits: u64, depth: u32, out: &mut Vec<Overlap>) {
    use core::arch::x86_64::{
        _mm512_add_epi64, _mm512_maskz_compress_epi64, _mm512_set_epi64, _mm512_set1_epi64,
        _mm512_storeu_si512,
    };
    // Eight more than there can be, because each step writes a whole vector.
    out.reserve(64 + 8);
    let step = _mm512_set1_epi64(8);
    let first = i64::from(base) | i64::from(depth) << 32;
    let mut overlaps =
        _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    let mut length = out.len();
    for byte in bits.to_le_bytes() {
        if byte != 0 {
            let chosen = _mm512_maskz_compress_epi64(byte, overlaps);
            // SAFETY: `length` grew by at most 64 since room for 72 more was reserved, so 8 still fit.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(length).cast(), chosen) };
            length += byte.count_ones() as usize;
        }
        overlaps = _mm512_add_epi64(overlaps, step);
    }
    // SAFETY: everything up to `length` was written just now or was there before.
    unsafe { out.set_len(length) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_and_bits_agree() {
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..2_000_u32 {
            bits = bits.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ bits >> 31;
            let bits = match round % 5 {
                0 => bits,
                1 => bits & bits.rotate_left(7),
                2 => 0,
                3 => u64::MAX,
                _ => 1 << (round % 64),
            };
            let (mut one, mut other) = (Vec::new(), Vec::new());
            for depth in [1, u32::from(u16::MAX), 1 << 20] {
                unpack(round * 64, bits, depth, &mut one);
                unpack_bits(round * 64, bits, depth, &mut other);
            }
            assert_eq!(one, other);
        }
    }
}
