//! Tiles in plain Rust: up to 4 rows of 8 columns, so that the sums fit the 16 registers of four
//! numbers that every target of ours has.

use super::Family;
use super::tile::{Form, TileArgs, Whole, Widened, pick_tile, tile};
use crate::simd::{Portable, Simd};

const LANES: usize = Portable::LANES;

/// Activations packed by tile: the rows of one step side by side.
unsafe fn packed<
    W: Form<Portable>,
    const ROWS: usize,
    const VECTORS: usize,
    const PANELS: usize,
>(
    args: &TileArgs,
) {
    // SAFETY: the caller's contract.
    unsafe { tile::<Portable, W, ROWS, VECTORS, PANELS, 1, ROWS>(args) }
}

/// Activations in rows of `PROBABILITY_ROW` numbers.
unsafe fn rows<W: Form<Portable>, const ROWS: usize, const VECTORS: usize, const PANELS: usize>(
    args: &TileArgs,
) {
    // SAFETY: the caller's contract.
    unsafe { tile::<Portable, W, ROWS, VECTORS, PANELS, { super::PROBABILITY_ROW }, 1>(args) }
}

pick_tile!(pick_whole, packed::<Whole>, [(1, 4, 1), (2, 2, 1), (3, 1, 1), (4, 1, 1)]);
pick_tile!(pick_widened, packed::<Widened>, [(1, 4, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1)]);
pick_tile!(pick_rows, rows::<Whole>, [(1, 4, 1), (2, 2, 1), (3, 1, 1), (4, 1, 1)]);

pub(super) static WHOLE: Family = Family { rows: 4, x_words: 1, x_pairs: false, pick: pick_whole };
pub(super) static WIDENED: Family =
    Family { rows: 4, x_words: 2, x_pairs: false, pick: pick_widened };
pub(super) static ROWS: Family = Family { rows: 4, x_words: 1, x_pairs: false, pick: pick_rows };
