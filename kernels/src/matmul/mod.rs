//! Products with packed weights: how a product is cut into tiles and spread over threads.
//!
//! Activations are rearranged once per call, rows of a tile side by side, because rows at a large
//! power-of-two distance would fight for the same cache set. With few rows a product is then a
//! plain stream over the weights. With many it is cut so that each part meets its partners in a
//! cache: see `block`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
mod portable;
pub(crate) mod tile;

use std::cell::RefCell;
use std::ops::Range;

use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{Simd, vectorised};
use tile::Choice;

/// Row length of the activations that `Form::Rows` reads: attention's probabilities.
pub(crate) const PROBABILITY_ROW: usize = 64;

/// Products with fewer multiplications than this are not worth waking a thread.
const PARALLEL_WORK: usize = 1 << 17;

/// Words of a row that are rearranged together.
const PACK_WORDS: usize = 256;

/// The tiles of one instruction set and one form of weights.
pub(crate) struct Family {
    /// Rows of the largest tile.
    pub(crate) rows: usize,
    /// Words of activations per row and step.
    pub(crate) x_words: usize,
    /// A word of activations is a pair of bf16.
    pub(crate) x_pairs: bool,
    /// The tile for a number of rows when so many panels lie ahead.
    pub(crate) pick: fn(usize, usize) -> Choice,
}

/// What weights are multiplied with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// f32 weights, packed activations.
    Whole,
    /// Pairs of bf16 weights, f32 math.
    Widened,
    /// Pairs of bf16 weights, bf16 activations where the machine can.
    Pairs,
    /// f32 weights, activations in rows of [`PROBABILITY_ROW`].
    Rows,
}

/// The tiles for a kind of product on an instruction set.
pub(crate) fn family(isa: Isa, kind: Kind) -> &'static Family {
    match (isa.usable(), kind) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, Kind::Pairs) => &avx512::PAIRS,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16, kind) => match kind {
            Kind::Whole => &avx512::WHOLE,
            Kind::Widened | Kind::Pairs => &avx512::WIDENED,
            Kind::Rows => &avx512::ROWS,
        },
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, kind) => match kind {
            Kind::Whole => &avx2::WHOLE,
            Kind::Widened | Kind::Pairs => &avx2::WIDENED,
            Kind::Rows => &avx2::ROWS,
        },
        (_, Kind::Whole) => &portable::WHOLE,
        (_, Kind::Widened | Kind::Pairs) => &portable::WIDENED,
        (_, Kind::Rows) => &portable::ROWS,
    }
}

/// Packed weights as the kernels see them.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    /// `[n / PANEL, steps, PANEL]`.
    pub(crate) words: &'a [u32],
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) steps: usize,
}

/// A pointer that tasks share; what they do with it is argued where they do it.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);
// SAFETY: sending a pointer is harmless; every dereference carries its own argument.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer; a method, so that closures capture the wrapper.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

/// How `m` rows are cut into tiles of nearly equal height.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) count: usize,
    short: usize,
    longer: usize,
}

impl Tiles {
    pub(crate) fn new(m: usize, rows: usize) -> Tiles {
        let count = m.div_ceil(rows);
        Tiles { count, short: m / count.max(1), longer: m % count.max(1) }
    }

    /// The rows of tile `index`.
    pub(crate) fn rows(&self, index: usize) -> Range<usize> {
        let start = index * self.short + index.min(self.longer);
        start..start + self.short + usize::from(index < self.longer)
    }
}

thread_local! {
    /// Packed activations of the calls of this thread.
    static PACKED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// `y[m, n] = x[m, k] * W^T`; the slices have been checked.
pub(crate) fn product(
    family: &Family,
    panels: Panels<'_>,
    x: &[f32],
    m: usize,
    y: &mut [f32],
    pool: &Pool,
) {
    if m == 0 || panels.n == 0 {
        return;
    }
    let tiles = Tiles::new(m, family.rows);
    let row_words = panels.steps * family.x_words;
    let mut packed = PACKED.take();
    if packed.len() < m * row_words {
        packed.resize(m * row_words, 0);
    }
    let target = Shared(packed.as_mut_ptr());
    let pack = |index: usize| {
        let rows = tiles.rows(index);
        // SAFETY: tiles are disjoint ranges of rows inside `packed`.
        let out = unsafe {
            let start = target.get().add(rows.start * row_words);
            std::slice::from_raw_parts_mut(start, rows.len() * row_words)
        };
        pack_tile(family, &x[rows.start * panels.k..rows.end * panels.k], panels.k, out);
    };
    if m * panels.k < PARALLEL_WORK / 4 {
        (0..tiles.count).for_each(pack);
    } else {
        pool.run(tiles.count, &pack);
    }
    block::multiply(&block::Product { family, panels, packed: &packed, tiles, m }, y, pool);
    PACKED.set(packed);
}

/// Rearranges the rows of one tile: `[k, rows]`, or `[k / 2, rows]` pairs of bf16; what a word holds
/// past k is zero. A block of each row at a time, so that lines are written whole.
fn pack_tile(family: &Family, x: &[f32], k: usize, out: &mut [u32]) {
    if k == 0 {
        return;
    }
    let rows = x.len() / k;
    let mut words = [0; PACK_WORDS];
    for (block, out) in out.chunks_mut(PACK_WORDS * rows).enumerate() {
        let words = &mut words[..out.len() / rows];
        for (row, x) in x.chunks_exact(k).enumerate() {
            let numbers = PACK_WORDS * if family.x_pairs { 2 } else { 1 };
            let x = x.chunks(numbers).nth(block).unwrap_or_default();
            // Rounding gives the same bits on every instruction set.
            to_words_on(Isa::best(), x, family.x_pairs, words);
            for (cells, word) in out.chunks_exact_mut(rows).zip(&*words) {
                cells[row] = *word;
            }
        }
    }
}

vectorised!(fn to_words_on(x: &[f32], pairs: bool, words: &mut [u32]) = to_words);

/// Bits of numbers, or of pairs rounded to bf16, then zeros.
///
/// # Safety
/// None; the instruction set only tells the compiler what it may use.
#[inline(always)]
unsafe fn to_words<S: Simd>(x: &[f32], pairs: bool, words: &mut [u32]) {
    let count = if pairs {
        let (whole, rest) = x.as_chunks::<2>();
        for (word, [a, b]) in words.iter_mut().zip(whole) {
            *word = round(*a) | round(*b) << 16;
        }
        if let ([a], Some(word)) = (rest, words.get_mut(whole.len())) {
            *word = round(*a);
        }
        x.len().div_ceil(2)
    } else {
        words.iter_mut().zip(x).for_each(|(word, x)| *word = x.to_bits());
        x.len()
    };
    if let Some(rest) = words.get_mut(count..) {
        rest.fill(0);
    }
}

/// bf16 bits, rounded to the nearest even; NaN stays NaN.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

#[cfg(test)]
pub(crate) mod tests;
