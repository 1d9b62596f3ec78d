//! Vectors of sixteen numbers with AVX-512 F, BW, DQ and VL.
//!
//! Nothing but intrinsics; the contract is the trait's.

use std::arch::x86_64::*;

use super::Simd;

/// AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

#[expect(unsafe_op_in_unsafe_fn, reason = "each body is intrinsics under the trait's contract")]
impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        _mm512_storeu_ps(to, v);
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m512 {
        _mm512_maskz_loadu_ps(first(count), from)
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: __m512, count: usize) {
        _mm512_mask_storeu_ps(to, first(count), v);
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const f32) -> (__m512, __m512) {
        let pairs = _mm512_loadu_si512(from.cast());
        let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second))
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
    }
    #[inline(always)]
    unsafe fn exp2_int(n: __m512) -> __m512 {
        let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        _mm512_reduce_add_ps(v)
    }
    #[inline(always)]
    unsafe fn maximum(v: __m512) -> f32 {
        _mm512_reduce_max_ps(v)
    }
    #[inline(always)]
    unsafe fn transpose(rows: *const *const f32, offset: usize, to: *mut f32, stride: usize) {
        // groups[g][c] holds, in its 128-bit lane l, column 4l + c of rows 4g to 4g + 3.
        let mut groups = [[_mm512_setzero_ps(); 4]; 4];
        for (g, columns) in groups.iter_mut().enumerate() {
            let row = |i: usize| _mm512_loadu_ps((*rows.add(4 * g + i)).add(offset));
            let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
            let low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));
            let high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
            let low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
            let high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
            columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
            columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
            columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
            columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
        }
        let [first, second, third, fourth] = groups;
        let low = first.into_iter().zip(second);
        let high = third.into_iter().zip(fourth);
        for (c, ((g0, g1), (g2, g3))) in low.zip(high).enumerate() {
            let even01 = _mm512_shuffle_f32x4::<0x88>(g0, g1);
            let even23 = _mm512_shuffle_f32x4::<0x88>(g2, g3);
            let odd01 = _mm512_shuffle_f32x4::<0xdd>(g0, g1);
            let odd23 = _mm512_shuffle_f32x4::<0xdd>(g2, g3);
            let to = to.add(c * stride);
            _mm512_storeu_ps(to, _mm512_shuffle_f32x4::<0x88>(even01, even23));
            _mm512_storeu_ps(to.add(4 * stride), _mm512_shuffle_f32x4::<0x88>(odd01, odd23));
            _mm512_storeu_ps(to.add(8 * stride), _mm512_shuffle_f32x4::<0xdd>(even01, even23));
            _mm512_storeu_ps(to.add(12 * stride), _mm512_shuffle_f32x4::<0xdd>(odd01, odd23));
        }
    }
}
