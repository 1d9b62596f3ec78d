//! Vectors of eight numbers with AVX2 and FMA.
//!
//! Nothing but intrinsics; the contract is the trait's.

use std::arch::x86_64::*;

use super::Simd;

/// AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// A window of eight lanes into this has its first `n` lanes set when it begins at `8 - n`.
static MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    // SAFETY: the window lies inside the table for every count up to 8, and the caller has AVX2.
    unsafe { _mm256_loadu_si256(MASK.as_ptr().add(8 - count).cast()) }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "each body is intrinsics under the trait's contract")]
impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        _mm256_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        _mm256_storeu_ps(to, v);
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m256 {
        _mm256_maskload_ps(from, first(count))
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: __m256, count: usize) {
        _mm256_maskstore_ps(to, first(count), v);
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const f32) -> (__m256, __m256) {
        let pairs = _mm256_loadu_si256(from.cast());
        let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second))
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
    }
    #[inline(always)]
    unsafe fn exp2_int(n: __m256) -> __m256 {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
    }
    #[inline(always)]
    unsafe fn maximum(v: __m256) -> f32 {
        let half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
    }
    #[inline(always)]
    unsafe fn transpose(rows: *const *const f32, offset: usize, to: *mut f32, stride: usize) {
        // groups[g][c] holds, in its 128-bit lane l, column 4l + c of rows 4g to 4g + 3.
        let mut groups = [[_mm256_setzero_ps(); 4]; 2];
        for (g, columns) in groups.iter_mut().enumerate() {
            let row = |i: usize| _mm256_loadu_ps((*rows.add(4 * g + i)).add(offset));
            let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
            let low01 = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1));
            let high01 = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1));
            let low23 = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
            let high23 = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
            columns[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
            columns[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
            columns[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
            columns[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
        }
        let [first, second] = groups;
        for (c, (g0, g1)) in first.into_iter().zip(second).enumerate() {
            let to = to.add(c * stride);
            _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(g0, g1));
            _mm256_storeu_ps(to.add(4 * stride), _mm256_permute2f128_ps::<0x31>(g0, g1));
        }
    }
}
