//! Tiles for AVX-512: up to 12 rows of 32 columns, which fills 24 of 32 registers with sums.
//!
//! Few rows take several panels at once: a chain of multiply-adds has a latency of four cycles or
//! more, and only independent chains hide it.

use std::arch::x86_64::*;

use super::Family;
use super::tile::{Form, PANEL, TileArgs, Whole, Widened, pick_tile, tile};
use crate::simd::{Avx512, Simd};

const LANES: usize = Avx512::LANES;

/// Pairs of bf16 weights and of activations rounded to bf16, summed by the dot product.
struct Pairs;

#[expect(unsafe_op_in_unsafe_fn, reason = "the trait's contract covers every access")]
impl Form<Avx512> for Pairs {
    const X_WORDS: usize = 1;

    #[inline(always)]
    unsafe fn step<
        const ROWS: usize,
        const VECTORS: usize,
        const PANELS: usize,
        const X_ROW: usize,
    >(
        x: *const f32,
        _x_step: usize,
        w: *const f32,
        panel_words: usize,
        sums: &mut [[[__m512; VECTORS]; PANELS]; ROWS],
    ) {
        let mut weights = [[_mm512_setzero_si512(); VECTORS]; PANELS];
        for (panel, weights) in weights.iter_mut().enumerate() {
            for (vector, weights) in weights.iter_mut().enumerate() {
                let from = w.add(panel * panel_words + vector * LANES);
                *weights = _mm512_loadu_si512(from.cast());
            }
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = _mm512_set1_epi32(*x.cast::<i32>().add(row * X_ROW));
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    // SAFETY: both are sixteen words of two bf16.
                    let (x, weights) = (
                        std::mem::transmute::<__m512i, __m512bh>(x),
                        std::mem::transmute::<__m512i, __m512bh>(*weights),
                    );
                    *sum = _mm512_dpbf16_ps(*sum, x, weights);
                }
            }
        }
    }
}

/// Activations packed by tile: the rows of one step side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn packed<W: Form<Avx512>, const ROWS: usize, const VECTORS: usize, const PANELS: usize>(
    args: &TileArgs,
) {
    // SAFETY: the caller's contract.
    unsafe { tile::<Avx512, W, ROWS, VECTORS, PANELS, 1, ROWS>(args) }
}

/// As `packed`, with the bf16 dot product.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pairs<W: Form<Avx512>, const ROWS: usize, const VECTORS: usize, const PANELS: usize>(
    args: &TileArgs,
) {
    // SAFETY: the caller's contract.
    unsafe { tile::<Avx512, W, ROWS, VECTORS, PANELS, 1, ROWS>(args) }
}

/// Activations in rows of `PROBABILITY_ROW` numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn rows<W: Form<Avx512>, const ROWS: usize, const VECTORS: usize, const PANELS: usize>(
    args: &TileArgs,
) {
    // SAFETY: the caller's contract.
    unsafe {
        tile::<Avx512, W, ROWS, VECTORS, PANELS, { super::PROBABILITY_ROW }, 1>(args);
    }
}

pick_tile!(
    pick_whole,
    packed::<Whole>,
    [
        (1, 2, 4),
        (2, 2, 4),
        (3, 2, 4),
        (4, 2, 2),
        (5, 2, 2),
        (6, 2, 2),
        (7, 2, 1),
        (8, 2, 1),
        (9, 2, 1),
        (10, 2, 1),
        (11, 2, 1),
        (12, 2, 1),
    ]
);
pick_tile!(
    pick_widened,
    packed::<Widened>,
    [
        (1, 2, 4),
        (2, 2, 4),
        (3, 2, 2),
        (4, 2, 2),
        (5, 2, 2),
        (6, 2, 1),
        (7, 2, 1),
        (8, 2, 1),
        (9, 2, 1),
        (10, 2, 1),
        (11, 2, 1),
        (12, 2, 1),
    ]
);
pick_tile!(
    pick_pairs,
    pairs::<Pairs>,
    [
        (1, 2, 4),
        (2, 2, 4),
        (3, 2, 4),
        (4, 2, 2),
        (5, 2, 2),
        (6, 2, 2),
        (7, 2, 1),
        (8, 2, 1),
        (9, 2, 1),
        (10, 2, 1),
        (11, 2, 1),
        (12, 2, 1),
    ]
);
pick_tile!(
    pick_rows,
    rows::<Whole>,
    [
        (1, 2, 1),
        (2, 2, 1),
        (3, 2, 1),
        (4, 2, 1),
        (5, 2, 1),
        (6, 2, 1),
        (7, 2, 1),
        (8, 2, 1),
        (9, 2, 1),
        (10, 2, 1),
        (11, 2, 1),
        (12, 2, 1),
    ]
);

const _: () = assert!(2 * LANES == PANEL);

pub(super) static WHOLE: Family = Family { rows: 12, x_words: 1, x_pairs: false, pick: pick_whole };
pub(super) static WIDENED: Family =
    Family { rows: 12, x_words: 2, x_pairs: false, pick: pick_widened };
pub(super) static PAIRS: Family = Family { rows: 12, x_words: 1, x_pairs: true, pick: pick_pairs };
pub(super) static ROWS: Family = Family { rows: 12, x_words: 1, x_pairs: false, pick: pick_rows };
