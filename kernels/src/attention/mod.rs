//! Causal attention over a paged pool of keys and values.
//!
//! Sequences share blocks, so keys and values are found through block tables. Every output row
//! depends only on its query and on the keys up to its position, added in an order fixed by
//! absolute positions: which rows share a call, how a prompt is cut into chunks, where blocks lie
//! and how large they are never changes a bit. Slots past a row's position are never read into its
//! result, whatever they hold.

mod gather;
pub(crate) mod kv;
mod tile;

use std::cell::RefCell;

use crate::isa::Isa;
use crate::matmul::Shared;
use crate::pool::Pool;
use kv::{KvPool, KvShape};
use tile::{Scratch, Tile};

/// Rows (queries times heads that share keys) of a tile: enough to hide what it costs to bring a
/// chunk of keys into shape, few enough for all of a tile's numbers to stay in the second cache.
const TILE_ROWS: usize = 64;
/// Calls with fewer products of query and key than this are not worth waking a thread.
const PARALLEL_KEYS: usize = 512;

/// Consecutive query rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// Blocks of the sequence in the order of positions.
    pub block_table: &'a [u32],
    /// Absolute position of the first query row.
    pub start: usize,
    /// How many query rows.
    pub rows: usize,
    /// Where the first of them lies in `q` and `out`.
    pub row_offset: usize,
}

/// Attention of every row of every span over the keys of `layer` up to and including its own
/// position; `q` and `out` are `[rows, heads * head_dim]`. The keys and values of the rows
/// themselves must have been written before. Rows outside all spans are left as they are.
///
/// # Panics
/// When a span reaches past `q`, `out`, its block table or the pool, when two spans share a row, or
/// when `heads` is not a multiple of the pool's heads.
#[expect(clippy::too_many_arguments, reason = "each is a different kind of thing")]
pub fn attention(
    q: &[f32],
    heads: usize,
    spans: &[Span<'_>],
    layer: usize,
    kv: &KvPool,
    scale: f32,
    out: &mut [f32],
    pool: &Pool,
) {
    attention_on(Isa::best(), q, heads, spans, layer, kv, scale, out, pool);
}

/// [`attention`] on a chosen instruction set.
///
/// # Panics
/// As [`attention`].
#[expect(clippy::too_many_arguments, reason = "each is a different kind of thing")]
pub fn attention_on(
    isa: Isa,
    q: &[f32],
    heads: usize,
    spans: &[Span<'_>],
    layer: usize,
    kv: &KvPool,
    scale: f32,
    out: &mut [f32],
    pool: &Pool,
) {
    check(q.len().min(out.len()), heads, spans, layer, kv);
    let shape = kv.shape();
    let group = heads / shape.kv_heads;
    let pieces = cut(spans, group, &shape);
    let target = Shared(out.as_mut_ptr());
    let task = |index: usize| {
        let Piece { span, first, rows, head } = pieces[index];
        let span = &spans[span];
        let at = ((span.row_offset + first) * heads + head * group) * shape.head_dim;
        let tile = Tile {
            // SAFETY: `check` found all rows of the span inside `q` and `out`.
            q: unsafe { q.as_ptr().add(at) },
            // SAFETY: as above.
            out: unsafe { target.get().add(at) },
            row_step: heads * shape.head_dim,
            rows,
            group,
            position: span.start + first,
            table: span.block_table,
            layer,
            head,
            scale,
        };
        let mut scratch = SCRATCH.take();
        // SAFETY: `check` found the table to cover every position with blocks of the pool, and
        // pieces are disjoint in rows or heads, so no other task writes these outputs.
        unsafe { tile::attend(isa, &tile, kv, &mut scratch) };
        SCRATCH.set(scratch);
    };
    let keys: usize = pieces.iter().map(|piece| piece.rows * piece.last(spans)).sum();
    if keys * group < PARALLEL_KEYS {
        (0..pieces.len()).for_each(task);
    } else {
        pool.run(pieces.len(), &task);
    }
}

thread_local! {
    /// Working memory of the tiles of this thread.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Some rows of a span and one head of keys: the work of one task.
struct Piece {
    span: usize,
    first: usize,
    rows: usize,
    head: usize,
}

impl Piece {
    /// Keys that the last row sees.
    fn last(&self, spans: &[Span<'_>]) -> usize {
        spans[self.span].start + self.first + self.rows
    }
}

/// Cuts spans into pieces, those with most keys first so that threads end together.
fn cut(spans: &[Span<'_>], group: usize, shape: &KvShape) -> Vec<Piece> {
    // A power of two divides a chunk of keys, so that a tile's diagonal lies in one chunk.
    let limit = (TILE_ROWS / group).max(1);
    let tile_rows = 1 << limit.ilog2();
    let mut pieces = Vec::new();
    for (index, span) in spans.iter().enumerate() {
        let mut first = 0;
        while first < span.rows {
            let rows = (tile_rows - (span.start + first) % tile_rows).min(span.rows - first);
            pieces.extend((0..shape.kv_heads).map(|head| Piece { span: index, first, rows, head }));
            first += rows;
        }
    }
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.last(spans)));
    pieces
}

/// Panics unless every position of every span is backed by numbers, rows and blocks.
fn check(numbers: usize, heads: usize, spans: &[Span<'_>], layer: usize, kv: &KvPool) {
    let shape = kv.shape();
    assert!(
        heads > 0 && heads.is_multiple_of(shape.kv_heads),
        "heads must be a multiple of kv_heads"
    );
    assert!(layer < shape.layers, "no such layer");
    let rows = numbers / (heads * shape.head_dim);
    let mut taken = Vec::with_capacity(spans.len());
    for span in spans.iter().filter(|span| span.rows > 0) {
        let end = span.row_offset.checked_add(span.rows).filter(|end| *end <= rows);
        taken.push((span.row_offset, end.expect("a span's rows must lie inside q and out")));
        let keys = span.start.checked_add(span.rows).expect("a position must fit");
        let blocks = span.block_table.get(..keys.div_ceil(shape.block_tokens));
        let blocks = blocks.expect("a block table must reach the span's last position");
        let known = blocks.iter().all(|block| (*block as usize) < kv.blocks());
        assert!(known, "a block table must name blocks of the pool");
    }
    taken.sort_unstable();
    let apart = taken.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    assert!(apart, "two spans must not share a row");
}

#[cfg(test)]
mod tests;
