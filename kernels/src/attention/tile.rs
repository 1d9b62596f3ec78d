//! Attention of one tile: some query rows, all heads that share one head of keys.
//!
//! Keys pass in chunks of fixed absolute positions. Per chunk: scores of all rows, a softmax that
//! goes on from the chunks before, and the weighted sum of values. A row that ends inside a chunk
//! masks its scores and stops its sums there, which is the same arithmetic as if the later keys did
//! not exist; so a row's bits don't depend on its tile.

use crate::attention::gather::{CHUNK, Chunk, gather};
use crate::attention::kv::KvPool;
use crate::isa::Isa;
use crate::matmul::tile::{PANEL, TileArgs};
use crate::matmul::{Family, Kind, Tiles, family};
use crate::simd::{Simd, exp, vectorised};

/// Tiles of more rows compute long enough for the hardware to keep up.
const PREFETCH_ROWS: usize = 16;
/// Smaller pools may well be in the last cache, where asking ahead only costs.
const PREFETCH_POOL_BYTES: usize = 24 << 20;

/// What a tile computes.
pub(super) struct Tile<'a> {
    /// First query row, at the first head of the group.
    pub(super) q: *const f32,
    /// Where its result goes.
    pub(super) out: *mut f32,
    /// Numbers from one row of `q` and `out` to the next.
    pub(super) row_step: usize,
    /// Query rows.
    pub(super) rows: usize,
    /// Heads that share the keys.
    pub(super) group: usize,
    /// Absolute position of the first row.
    pub(super) position: usize,
    pub(super) table: &'a [u32],
    pub(super) layer: usize,
    pub(super) head: usize,
    pub(super) scale: f32,
}

/// Working memory, kept from tile to tile.
pub(super) struct Scratch {
    numbers: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Scratch {
    pub(super) const fn new() -> Scratch {
        Scratch { numbers: Vec::new() }
    }

    /// Splits off pieces that each begin at a cache line.
    fn cut<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        const LINE: usize = 16;
        let lengths = lengths.map(|length| length.next_multiple_of(LINE));
        let total = lengths.iter().sum::<usize>() + LINE;
        if self.numbers.len() < total {
            self.numbers.resize(total, 0.0);
        }
        let skip = self.numbers.as_ptr().align_offset(LINE * 4);
        let mut rest = &mut self.numbers[skip.min(LINE)..];
        lengths.map(|length| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            piece
        })
    }
}

/// The pieces of [`Scratch`] that one tile works on; a row is a query row and a head.
struct State<'a> {
    /// Queries times the scale, `[head_dim, rows of the tile]` per product tile.
    queries: &'a mut [f32],
    /// `[rows, CHUNK]`
    scores: &'a mut [f32],
    /// `[rows, width]`
    sums: &'a mut [f32],
    /// Largest score so far, per row.
    peaks: &'a mut [f32],
    /// Sum of exponentials so far, per row.
    weights: &'a mut [f32],
    tiles: Tiles,
    width: usize,
}

/// Computes a tile.
///
/// # Safety
/// `tile.q` and `tile.out` must reach over all rows and heads, `tile.table` must name blocks of the
/// pool for all positions, and nobody else may use these outputs meanwhile.
pub(super) unsafe fn attend(isa: Isa, tile: &Tile<'_>, kv: &KvPool, scratch: &mut Scratch) {
    let products = [family(isa, Kind::Whole), family(isa, Kind::Rows)];
    attend_on(isa, tile, kv, scratch, products);
}

vectorised!(
    fn attend_on(
        tile: &Tile<'_>,
        kv: &KvPool,
        scratch: &mut Scratch,
        products: [&Family; 2],
    ) = attend_tile
);

/// # Safety
/// As for [`attend`] and every method of [`Simd`].
#[inline(always)]
unsafe fn attend_tile<S: Simd>(
    tile: &Tile<'_>,
    kv: &KvPool,
    scratch: &mut Scratch,
    [whole, by_rows]: [&Family; 2],
) {
    let head_dim = kv.shape().head_dim;
    let width = head_dim.next_multiple_of(PANEL);
    let rows = tile.rows * tile.group;
    let [queries, scores, sums, peaks, weights, keys, values, raw, zeros] = scratch.cut([
        rows * head_dim,
        rows * CHUNK,
        rows * width,
        rows,
        rows,
        width * CHUNK,
        CHUNK * width,
        CHUNK * width,
        width,
    ]);
    zeros.fill(0.0);
    sums.fill(0.0);
    peaks.fill(f32::NEG_INFINITY);
    weights.fill(0.0);
    let chunk = Chunk {
        keys: keys.as_mut_ptr(),
        values: values.as_mut_ptr(),
        rows: raw.as_mut_ptr(),
        zeros: zeros.as_ptr(),
        width,
        prefetch: rows <= PREFETCH_ROWS && kv.bytes() > PREFETCH_POOL_BYTES,
    };
    let tiles = Tiles::new(rows, whole.rows);
    let mut state = State { queries, scores, sums, peaks, weights, tiles, width };
    let end = tile.position + tile.rows;
    // SAFETY: the caller's contract covers queries, outputs and blocks; all pieces of the scratch
    // have the sizes that the steps name.
    unsafe {
        pack_queries(tile, head_dim, &mut state);
        for first in (0..end).step_by(CHUNK) {
            let count = (end - first).min(CHUNK);
            gather::<S>(kv, tile.layer, tile.head, tile.table, first, count, &chunk);
            score(whole, head_dim, count, chunk.keys, &mut state);
            for row in 0..tile.rows {
                let seen = (tile.position + row + 1).saturating_sub(first).min(CHUNK);
                for r in row * tile.group..(row + 1) * tile.group {
                    weigh::<S>(r, seen, &mut state);
                }
            }
            collect(by_rows, tile, first, chunk.values, &mut state);
        }
        finish::<S>(tile, head_dim, &state);
    }
}

/// # Safety
/// `tile.q` must reach over all rows and heads.
unsafe fn pack_queries(tile: &Tile<'_>, head_dim: usize, state: &mut State<'_>) {
    for index in 0..state.tiles.count {
        let rows = state.tiles.rows(index);
        let packed = &mut state.queries[rows.start * head_dim..rows.end * head_dim];
        for (column, row) in rows.clone().enumerate() {
            let at = row / tile.group * tile.row_step + row % tile.group * head_dim;
            // SAFETY: the caller's contract; `row` is below rows times group.
            let query = unsafe { std::slice::from_raw_parts(tile.q.add(at), head_dim) };
            let cells = packed[column..].iter_mut().step_by(rows.len());
            cells.zip(query).for_each(|(cell, x)| *cell = x * tile.scale);
        }
    }
}

/// Scores of all rows with the first `count` keys of a chunk; columns after them hold anything.
///
/// # Safety
/// `keys` must hold `[head_dim, CHUNK]`; the family must be usable.
unsafe fn score(
    family: &Family,
    head_dim: usize,
    count: usize,
    keys: *const f32,
    state: &mut State<'_>,
) {
    for index in 0..state.tiles.count {
        let rows = state.tiles.rows(index);
        let choice = (family.pick)(rows.len(), 1);
        for column in (0..count).step_by(choice.columns) {
            let args = TileArgs {
                x: state.queries[rows.start * head_dim..].as_ptr(),
                w: keys.wrapping_add(column),
                w_step: CHUNK,
                panel_words: 0,
                ahead_words: 0,
                steps: head_dim,
                y: state.scores[rows.start * CHUNK + column..].as_mut_ptr(),
                from: std::ptr::null(),
                from_row: 0,
                y_row: CHUNK,
                columns: choice.columns,
            };
            // SAFETY: `queries` holds `head_dim` numbers for each row of the tile, `keys` and
            // `scores` have whole tiles of columns since CHUNK is a multiple of every width.
            unsafe { (choice.tile)(&args) };
        }
    }
}

/// Turns the scores of row `row` into exponentials over the first `seen` keys of the chunk, and
/// moves what the row has summed so far to the new peak.
///
/// # Safety
/// As for every method of [`Simd`].
#[inline(always)]
unsafe fn weigh<S: Simd>(row: usize, seen: usize, state: &mut State<'_>) {
    if seen == 0 {
        return;
    }
    let scores = &mut state.scores[row * CHUNK..(row + 1) * CHUNK];
    scores[seen..].fill(f32::NEG_INFINITY);
    let scores = scores.as_mut_ptr();
    // SAFETY: a row of scores is CHUNK numbers, a multiple of every vector; a row of sums `width`.
    unsafe {
        let mut largest = S::load(scores);
        for at in (S::LANES..CHUNK).step_by(S::LANES) {
            largest = S::max(S::load(scores.add(at)), largest);
        }
        let before = state.peaks[row];
        let largest = S::maximum(largest);
        let peak = if before > largest { before } else { largest };
        // Scores of minus infinity alone would make the shift undefined.
        let shift = S::splat(if peak == f32::NEG_INFINITY { 0.0 } else { peak });
        let mut sum = S::splat(0.0);
        for at in (0..CHUNK).step_by(S::LANES) {
            let e = exp::<S>(S::sub(S::load(scores.add(at)), shift));
            S::store(scores.add(at), e);
            sum = S::add(sum, e);
        }
        if before != peak {
            let fade = exp::<S>(S::sub(S::splat(before), shift));
            let sums = state.sums[row * state.width..(row + 1) * state.width].as_mut_ptr();
            for at in (0..state.width).step_by(S::LANES) {
                S::store(sums.add(at), S::mul(S::load(sums.add(at)), fade));
            }
            let mut lanes = [0.0; 16];
            S::store(lanes.as_mut_ptr(), fade);
            state.weights[row] *= lanes[0];
            state.peaks[row] = peak;
        }
        state.weights[row] += S::sum(sum);
    }
}

/// Adds the values of a chunk, weighed by its exponentials. Keys that all rows see go through
/// tiles of many rows, the rest row by row.
///
/// # Safety
/// `values` must hold `[CHUNK, width]`; the family must be usable.
unsafe fn collect(
    family: &Family,
    tile: &Tile<'_>,
    first: usize,
    values: *const f32,
    state: &mut State<'_>,
) {
    let seen = |row: usize| (tile.position + row + 1).saturating_sub(first).min(CHUNK);
    let common = seen(0);
    let mut add = |from: usize, rows: usize, key: usize, keys: usize| {
        let choice = (family.pick)(rows, 1);
        for column in (0..state.width).step_by(choice.columns) {
            let sums = state.sums[from * state.width + column..].as_mut_ptr();
            let args = TileArgs {
                x: state.scores[from * CHUNK + key..].as_ptr(),
                w: values.wrapping_add(key * state.width + column),
                w_step: state.width,
                panel_words: 0,
                ahead_words: 0,
                steps: keys,
                from: sums,
                from_row: state.width,
                y: sums,
                y_row: state.width,
                columns: choice.columns,
            };
            // SAFETY: `scores` holds CHUNK numbers a row, and `key + keys` is at most CHUNK;
            // `width` is a multiple of every tile's columns.
            unsafe { (choice.tile)(&args) };
        }
    };
    if common > 0 {
        for index in 0..state.tiles.count {
            let rows = state.tiles.rows(index);
            add(rows.start, rows.len(), 0, common);
        }
    }
    for row in (0..tile.rows).filter(|row| seen(*row) > common) {
        let tiles = Tiles::new(tile.group, family.rows);
        for heads in (0..tiles.count).map(|index| tiles.rows(index)) {
            let from = row * tile.group + heads.start;
            add(from, heads.len(), common, seen(row) - common);
        }
    }
}

/// Divides by the sum of exponentials and writes the rows out.
///
/// # Safety
/// As for every method of [`Simd`]; `tile.out` must reach over all rows and heads.
#[inline(always)]
unsafe fn finish<S: Simd>(tile: &Tile<'_>, head_dim: usize, state: &State<'_>) {
    let whole = head_dim - head_dim % S::LANES;
    for row in 0..tile.rows * tile.group {
        let at = row / tile.group * tile.row_step + row % tile.group * head_dim;
        let sums = state.sums[row * state.width..(row + 1) * state.width].as_ptr();
        let weight = state.weights[row];
        // SAFETY: whole vectors end at `whole`, the rest at `head_dim`, in `sums` and in `out`.
        unsafe {
            let out = tile.out.add(at);
            // All scores minus infinity: nothing was weighed, and zero is the only sane answer.
            let scale = S::splat(if weight == 0.0 { 0.0 } else { 1.0 / weight });
            for d in (0..whole).step_by(S::LANES) {
                S::store(out.add(d), S::mul(S::load(sums.add(d)), scale));
            }
            let rest = S::mul(S::load_part(sums.add(whole), head_dim - whole), scale);
            S::store_part(out.add(whole), rest, head_dim - whole);
        }
    }
}
