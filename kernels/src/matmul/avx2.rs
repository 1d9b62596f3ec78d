//! Tiles for AVX2 with FMA: up to 6 rows of 16 columns, which fills 12 of 16 registers with sums.

use super::Family;
use super::tile::{Form, TileArgs, Whole, Widened, pick_tile, tile};
use crate::simd::{Avx2, Simd};

const LANES: usize = Avx2::LANES;

/// Activations packed by tile: the rows of one step side by side.
#[target_feature(enable = "avx2,fma")]
unsafe fn packed<W: Form<Avx2>, const ROWS: usize, const VECTORS: usize, const PANELS: usize>(
    args: &TileArgs,
) {
    // SAFETY: the caller's contract.
    unsafe { tile::<Avx2, W, ROWS, VECTORS, PANELS, 1, ROWS>(args) }
}

/// Activations in rows of `PROBABILITY_ROW` numbers.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<W: Form<Avx2>, const ROWS: usize, const VECTORS: usize, const PANELS: usize>(
    args: &TileArgs,
) {
    // SAFETY: the caller's contract.
    unsafe { tile::<Avx2, W, ROWS, VECTORS, PANELS, { super::PROBABILITY_ROW }, 1>(args) }
}

pick_tile!(
    pick_whole,
    packed::<Whole>,
    [(1, 4, 2), (2, 4, 1), (3, 2, 1), (4, 2, 1), (5, 2, 1), (6, 2, 1),]
);
pick_tile!(
    pick_widened,
    packed::<Widened>,
    [(1, 4, 1), (2, 2, 1), (3, 2, 1), (4, 2, 1), (5, 2, 1), (6, 2, 1),]
);
pick_tile!(
    pick_rows,
    rows::<Whole>,
    [(1, 4, 1), (2, 4, 1), (3, 2, 1), (4, 2, 1), (5, 2, 1), (6, 2, 1),]
);

pub(super) static WHOLE: Family = Family { rows: 6, x_words: 1, x_pairs: false, pick: pick_whole };
pub(super) static WIDENED: Family =
    Family { rows: 6, x_words: 2, x_pairs: false, pick: pick_widened };
pub(super) static ROWS: Family = Family { rows: 6, x_words: 1, x_pairs: false, pick: pick_rows };
