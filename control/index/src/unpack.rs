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
    #[cfg(target_arch = "x86_64")]
    if bits < 1 << 8 {
        return unpack_byte(base, bits as u8, depth, out);
    }
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

/// Where the set bits of a byte lie, lowest first, a byte each.
#[cfg(target_arch = "x86_64")]
static PLACES: [u64; 256] = {
    let mut places = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut count) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                places[byte] |= bit << (8 * count);
                count += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    places
};

/// A small fleet's word: no branch depends on who holds the prefix.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn unpack_byte(base: u32, byte: u8, depth: u32, out: &mut Vec<Overlap>) {
    use core::arch::x86_64::{
        _mm_add_epi32, _mm_cvtsi64_si128, _mm_set1_epi32, _mm_setzero_si128, _mm_storeu_si128,
        _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpacklo_epi8, _mm_unpacklo_epi16,
        _mm_unpacklo_epi32,
    };
    out.reserve(8);
    let length = out.len();
    // SAFETY: SSE2 is part of the architecture; four stores of two overlaps each stay within the eight reserved, in
    // the layout of `Overlap` by `repr(C)`, and the new length counts written ones only.
    unsafe {
        let zero = _mm_setzero_si128();
        let places = _mm_cvtsi64_si128(PLACES[usize::from(byte)] as i64);
        let places = _mm_unpacklo_epi8(places, zero);
        let first = _mm_set1_epi32(base as i32);
        let low = _mm_add_epi32(_mm_unpacklo_epi16(places, zero), first);
        let high = _mm_add_epi32(_mm_unpackhi_epi16(places, zero), first);
        let depth = _mm_set1_epi32(depth as i32);
        let to = out.as_mut_ptr().add(length).cast();
        _mm_storeu_si128(to, _mm_unpacklo_epi32(low, depth));
        _mm_storeu_si128(to.add(1), _mm_unpackhi_epi32(low, depth));
        _mm_storeu_si128(to.add(2), _mm_unpacklo_epi32(high, depth));
        _mm_storeu_si128(to.add(3), _mm_unpackhi_epi32(high, depth));
        out.set_len(length + byte.count_ones() as usize);
    }
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
            let bits = match round % 6 {
                0 => bits,
                1 => bits & bits.rotate_left(7),
                2 => 0,
                3 => u64::MAX,
                4 => bits & 0xff,
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
