//! The innermost product: a few rows of activations times a few columns of weights, all partial
//! sums in registers.
//!
//! Each output is one chain of additions over k in ascending order. The chain may be cut at any k
//! and go on from the stored sum, and which rows and columns share a tile does not enter it: that
//! is why results don't depend on batch size.

use crate::simd::Simd;

/// Columns per panel of packed weights.
pub(crate) const PANEL: usize = 32;

/// Operands of one tile. Weights and activations are counted in words of four bytes: an f32 or a
/// pair of bf16.
pub(crate) struct TileArgs {
    /// Activations of the first step.
    pub(crate) x: *const f32,
    /// Weights of the first step and column.
    pub(crate) w: *const f32,
    /// Words from one step of `w` to the next.
    pub(crate) w_step: usize,
    /// Words from one panel to the next, where a tile covers several.
    pub(crate) panel_words: usize,
    /// How many words ahead of use to ask for weights; 0 leaves it to the hardware.
    pub(crate) ahead_words: usize,
    /// Steps to take: a step is one k, or two where words are pairs.
    pub(crate) steps: usize,
    /// Sums to go on from, a whole tile's width in every row; null to begin at zero.
    pub(crate) from: *const f32,
    /// Numbers from one row of `from` to the next.
    pub(crate) from_row: usize,
    /// First output.
    pub(crate) y: *mut f32,
    /// Numbers from one row of `y` to the next.
    pub(crate) y_row: usize,
    /// Columns of `y` that exist, at most those of the tile.
    pub(crate) columns: usize,
}

/// A compiled tile.
///
/// # Safety
/// The instruction set must exist. For every row and step `x` must be readable, for every step and
/// panel `w` for a whole tile's width, `from` readable unless null, and `y` writable for `columns`
/// numbers in every row.
pub(crate) type Tile = unsafe fn(&TileArgs);

/// Which tile to use and what it covers.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) tile: Tile,
    /// Panels side by side.
    pub(crate) panels: usize,
    /// Columns of each panel.
    pub(crate) columns: usize,
}

/// What a word of weights is and how it is multiplied.
pub(crate) trait Form<S: Simd> {
    /// Words of activations per row and step.
    const X_WORDS: usize;

    /// One step of a tile: `ROWS` rows, `PANELS` panels of `VECTORS` vectors. Word `i` of row `r`
    /// lies at `x[i * x_step + r * X_ROW]`.
    ///
    /// # Safety
    /// As for [`Tile`].
    unsafe fn step<
        const ROWS: usize,
        const VECTORS: usize,
        const PANELS: usize,
        const X_ROW: usize,
    >(
        x: *const f32,
        x_step: usize,
        w: *const f32,
        panel_words: usize,
        sums: &mut [[[S::F; VECTORS]; PANELS]; ROWS],
    );
}

/// f32 weights.
pub(crate) struct Whole;
/// Pairs of bf16 weights, widened and multiplied in f32.
pub(crate) struct Widened;

#[expect(unsafe_op_in_unsafe_fn, reason = "the trait's contract covers every access")]
impl<S: Simd> Form<S> for Whole {
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
        sums: &mut [[[S::F; VECTORS]; PANELS]; ROWS],
    ) {
        let mut weights = [[S::splat(0.0); VECTORS]; PANELS];
        for (panel, weights) in weights.iter_mut().enumerate() {
            for (vector, weights) in weights.iter_mut().enumerate() {
                *weights = S::load(w.add(panel * panel_words + vector * S::LANES));
            }
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = S::splat(*x.add(row * X_ROW));
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::fma(x, *weights, *sum);
                }
            }
        }
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "the trait's contract covers every access")]
impl<S: Simd> Form<S> for Widened {
    const X_WORDS: usize = 2;

    #[inline(always)]
    unsafe fn step<
        const ROWS: usize,
        const VECTORS: usize,
        const PANELS: usize,
        const X_ROW: usize,
    >(
        x: *const f32,
        x_step: usize,
        w: *const f32,
        panel_words: usize,
        sums: &mut [[[S::F; VECTORS]; PANELS]; ROWS],
    ) {
        let mut weights = [[(S::splat(0.0), S::splat(0.0)); VECTORS]; PANELS];
        for (panel, weights) in weights.iter_mut().enumerate() {
            for (vector, weights) in weights.iter_mut().enumerate() {
                *weights = S::load_pairs(w.add(panel * panel_words + vector * S::LANES));
            }
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let first = S::splat(*x.add(row * X_ROW));
            let second = S::splat(*x.add(x_step + row * X_ROW));
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::fma(second, weights.1, S::fma(first, weights.0, *sum));
                }
            }
        }
    }
}

/// The body of a tile. Activations lie at `x[step * X_STEP * X_WORDS + word * X_STEP + row * X_ROW]`.
///
/// # Safety
/// As for [`Tile`].
#[inline(always)]
pub(crate) unsafe fn tile<
    S: Simd,
    W: Form<S>,
    const ROWS: usize,
    const VECTORS: usize,
    const PANELS: usize,
    const X_ROW: usize,
    const X_STEP: usize,
>(
    args: &TileArgs,
) {
    let full = args.columns >= (PANELS - 1) * PANEL + VECTORS * S::LANES;
    // SAFETY: the caller's contract covers all of `x`, `w`, `from` and `y`; partial vectors end at
    // `columns`, past which nothing of `y` is touched. Asking ahead may be done of any address.
    unsafe {
        let mut sums = [[[S::splat(0.0); VECTORS]; PANELS]; ROWS];
        if !args.from.is_null() {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (panel, sums) in sums.iter_mut().enumerate() {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        let column = panel * PANEL + vector * S::LANES;
                        *sum = S::load(args.from.add(row * args.from_row + column));
                    }
                }
            }
        }
        let (mut x, mut w) = (args.x, args.w);
        if args.ahead_words == 0 {
            for _ in 0..args.steps {
                W::step::<ROWS, VECTORS, PANELS, X_ROW>(x, X_STEP, w, args.panel_words, &mut sums);
                x = x.wrapping_add(X_STEP * W::X_WORDS);
                w = w.wrapping_add(args.w_step);
            }
        } else {
            for _ in 0..args.steps {
                for panel in 0..PANELS {
                    let line = w.wrapping_add(panel * args.panel_words + args.ahead_words);
                    S::prefetch(line);
                    S::prefetch(line.wrapping_add(PANEL / 2));
                }
                W::step::<ROWS, VECTORS, PANELS, X_ROW>(x, X_STEP, w, args.panel_words, &mut sums);
                x = x.wrapping_add(X_STEP * W::X_WORDS);
                w = w.wrapping_add(args.w_step);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (panel, sums) in sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    let column = panel * PANEL + vector * S::LANES;
                    let to = args.y.wrapping_add(row * args.y_row + column);
                    if full || column + S::LANES <= args.columns {
                        S::store(to, *sum);
                    } else {
                        S::store_part(to, *sum, args.columns.saturating_sub(column));
                    }
                }
            }
        }
    }
}

/// Makes a function that picks a compiled tile by its number of rows.
macro_rules! pick_tile {
    ($name:ident, $compiled:ident::<$form:ty>, [$(($rows:literal, $vectors:literal, $panels:literal)),* $(,)?]) => {
        /// The tile for `rows` rows; `panels` says how many lie ahead.
        pub(super) fn $name(rows: usize, panels: usize) -> super::tile::Choice {
            match rows {
                $($rows if panels >= $panels => super::tile::Choice {
                    tile: $compiled::<$form, $rows, $vectors, $panels>,
                    panels: $panels,
                    columns: $vectors * LANES,
                },
                $rows => super::tile::Choice {
                    tile: $compiled::<$form, $rows, $vectors, 1>,
                    panels: 1,
                    columns: $vectors * LANES,
                },)*
                _ => unreachable!("tiles are cut to the rows of their family"),
            }
        }
    };
}
pub(crate) use pick_tile;
