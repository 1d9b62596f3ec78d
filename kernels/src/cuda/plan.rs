//! What the kernels must know of a step: where each row stands, and how attention is dealt to blocks of threads.
//!
//! Attention's work is a unit for each tile of rows and head of keys. Where that gives too few to fill a GPU, or some far
//! longer than others, a tile's splits of keys are dealt to several units, whose parts `merge` puts together. The bits of
//! a result do not depend on how.

use std::sync::Arc;

use super::driver::{Buffer, Context, CudaError};
use super::matrix::DeviceCache;
use crate::attention::Span;
use crate::attention::kv::KvShape;

/// Keys of a split, as in `attend.cu`.
const SPLIT_KEYS: usize = 256;
/// Rows of the two tiles: queries times the heads that share keys.
pub(super) const TILE_ROWS: [usize; 2] = [16, 64];
/// The most splits that one unit takes, for either tile, so that a long sequence does not hold up a step.
const SPLITS_MAX: [usize; 2] = [8, 64];
/// `Unit.part` where a unit has all splits.
const WHOLE: u32 = u32::MAX;

/// As in `attend.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) row: u32,
    pub(super) rows: u32,
    pub(super) position: u32,
    pub(super) sequence: u32,
    pub(super) split: u32,
    pub(super) splits: u32,
    pub(super) part: u32,
}

const UNIT_WORDS: usize = 7;

impl Unit {
    fn words(self) -> [u32; UNIT_WORDS] {
        [self.row, self.rows, self.position, self.sequence, self.split, self.splits, self.part]
    }
}

/// The numbers of a model that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanShape {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys.
    pub kv_heads: usize,
    /// Rows of the table of tokens: a token must be less.
    pub vocab: usize,
    /// Processors that want work.
    pub multiprocessors: usize,
}

/// Units of one tile, and those of its rows that have parts.
#[derive(Debug, Default)]
pub(super) struct Units {
    pub(super) units: Vec<Unit>,
    pub(super) merges: Vec<Unit>,
}

/// Where a piece of the plan lies in its buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: usize,
    pub(super) count: usize,
}

/// A step's plan, on the GPU.
pub struct Plan {
    pub(super) buffer: Buffer,
    pub(super) rows: usize,
    pub(super) tokens: Piece,
    pub(super) positions: Piece,
    pub(super) places: Piece,
    pub(super) logits_rows: Piece,
    pub(super) tables: Piece,
    pub(super) table_stride: usize,
    /// By tile.
    pub(super) units: [Piece; 2],
    pub(super) merges: [Piece; 2],
    /// Lines of parts.
    pub(super) lines: usize,
    /// The most positions that a row sees.
    pub(super) positions_max: usize,
    /// What it was checked against: launches with anything else would reach outside.
    of: Option<(PlanShape, KvShape, usize)>,
    words: Vec<u32>,
}

impl Plan {
    /// A plan of no rows.
    ///
    /// # Errors
    /// That there is no memory.
    pub fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        Ok(Self {
            buffer: Buffer::new(context, 1 << 16)?,
            rows: 0,
            tokens: Piece::default(),
            positions: Piece::default(),
            places: Piece::default(),
            logits_rows: Piece::default(),
            tables: Piece::default(),
            table_stride: 0,
            units: [Piece::default(); 2],
            merges: [Piece::default(); 2],
            lines: 0,
            positions_max: 0,
            of: None,
            words: Vec::new(),
        })
    }

    /// Plans a step and copies the plan to the GPU.
    ///
    /// # Errors
    /// That there is no memory, or what the driver says.
    ///
    /// # Panics
    /// When spans do not cover the rows in order and without a gap, a block table does not reach its last row or names
    /// what the cache has not, a token is none of the vocabulary, or a wanted row is not there.
    pub fn set(
        &mut self,
        tokens: &[u32],
        spans: &[Span<'_>],
        logits_rows: &[u32],
        shape: PlanShape,
        cache: &DeviceCache,
    ) -> Result<(), CudaError> {
        check(tokens, spans, logits_rows, shape, cache);
        self.of = Some((shape, cache.shape(), cache.blocks()));
        let block_tokens = cache.shape().block_tokens;
        self.rows = tokens.len();
        self.words.clear();
        self.tokens = self.put(tokens.iter().copied());
        let positions = spans.iter().flat_map(|span| span.start..span.start + span.rows);
        self.positions = self.put(positions.map(|position| position as u32));
        let places = spans.iter().flat_map(|span| {
            (span.start..span.start + span.rows).map(|position| {
                let block = span.block_table[position / block_tokens] as usize;
                (block * block_tokens + position % block_tokens) as u32
            })
        });
        self.places = self.put(places);
        self.logits_rows = self.put(logits_rows.iter().copied());
        let blocks_of = |span: &Span<'_>| (span.start + span.rows).div_ceil(block_tokens);
        self.table_stride = spans.iter().map(blocks_of).max().unwrap_or(0);
        self.positions_max = spans.iter().map(|span| span.start + span.rows).max().unwrap_or(0);
        let stride = self.table_stride;
        self.tables = self.put(spans.iter().flat_map(|span| {
            let own = &span.block_table[..blocks_of(span)];
            own.iter().copied().chain(std::iter::repeat_n(0, stride - own.len()))
        }));
        let (tiles, lines) = deal(spans, shape);
        self.lines = lines;
        for (tile, units) in tiles.iter().enumerate() {
            self.units[tile] = self.put_units(&units.units);
            self.merges[tile] = self.put_units(&units.merges);
        }
        if self.buffer.bytes() < self.words.len() * 4 {
            let context = Arc::clone(self.buffer.context());
            self.buffer = Buffer::new(&context, (self.words.len() * 4).next_power_of_two())?;
        }
        self.buffer.upload(0, &self.words)
    }

    /// How many rows it has.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Panics unless the plan was made for this cache and so many heads.
    pub(super) fn check_cache(&self, cache: &DeviceCache, heads: usize) {
        let fits = self.of.is_some_and(|(shape, kv, blocks)| {
            shape.heads == heads && kv == cache.shape() && blocks <= cache.blocks()
        });
        assert!(fits || self.rows == 0, "the plan must be of this cache and these heads");
    }

    /// Panics unless its tokens are rows of a table of so many.
    pub(super) fn check_table(&self, rows: usize) {
        let fits = self.of.is_some_and(|(shape, ..)| shape.vocab <= rows);
        assert!(fits || self.rows == 0, "the plan's tokens must be rows of the table");
    }

    fn put(&mut self, numbers: impl Iterator<Item = u32>) -> Piece {
        // Pieces begin at sixteen bytes.
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let offset = self.words.len();
        self.words.extend(numbers);
        Piece { offset: offset * 4, count: self.words.len() - offset }
    }

    fn put_units(&mut self, units: &[Unit]) -> Piece {
        let piece = self.put(units.iter().flat_map(|unit| unit.words()));
        Piece { count: units.len(), ..piece }
    }
}

fn check(
    tokens: &[u32],
    spans: &[Span<'_>],
    logits_rows: &[u32],
    shape: PlanShape,
    cache: &DeviceCache,
) {
    let kv = cache.shape();
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "heads share keys");
    assert_eq!(shape.kv_heads, kv.kv_heads, "the cache must have the model's heads");
    assert!(shape.heads / shape.kv_heads <= TILE_ROWS[1], "a tile must hold a query's heads");
    let places = cache.blocks().checked_mul(kv.block_tokens);
    assert!(places.is_some_and(|places| u32::try_from(places).is_ok()), "a place has 32 bits");
    let mut rows = 0;
    for span in spans {
        assert_eq!(span.row_offset, rows, "spans must cover the rows in order");
        rows += span.rows;
        let keys = span.start.checked_add(span.rows).filter(|keys| u32::try_from(*keys).is_ok());
        let keys = keys.expect("a position has 32 bits");
        let blocks = span.block_table.get(..keys.div_ceil(kv.block_tokens));
        let blocks = blocks.expect("a block table must reach the span's last position");
        let known = blocks.iter().all(|block| (*block as usize) < cache.blocks());
        assert!(known, "a block table must name blocks of the cache");
    }
    assert_eq!(tokens.len(), rows, "spans must cover all rows");
    assert!(tokens.iter().all(|token| (*token as usize) < shape.vocab), "no such token");
    assert!(logits_rows.iter().all(|row| (*row as usize) < rows), "no such row");
}

/// Deals the rows of all spans to units of the two tiles, and says how many lines of parts there are.
pub(super) fn deal(spans: &[Span<'_>], shape: PlanShape) -> ([Units; 2], usize) {
    let group = shape.heads / shape.kv_heads;
    let mut tiles: [Vec<Unit>; 2] = Default::default();
    for (sequence, span) in spans.iter().enumerate().filter(|(_, span)| span.rows > 0) {
        let tile = usize::from(span.rows * group > TILE_ROWS[0]);
        let rows_max = TILE_ROWS[tile] / group;
        for first in (0..span.rows).step_by(rows_max) {
            let rows = rows_max.min(span.rows - first);
            let position = span.start + first;
            tiles[tile].push(Unit {
                row: (span.row_offset + first) as u32,
                rows: rows as u32,
                position: position as u32,
                sequence: sequence as u32,
                split: 0,
                splits: (position + rows).div_ceil(SPLIT_KEYS) as u32,
                part: WHOLE,
            });
        }
    }
    let mut lines = 0;
    let dealt = [0, 1].map(|tile| {
        let whole = &tiles[tile];
        // Two for each processor hide each other's waits.
        let wanted = (2 * shape.multiprocessors).div_ceil((whole.len() * shape.kv_heads).max(1));
        let mut units = Units::default();
        for unit in whole {
            let parts = wanted.max((unit.splits as usize).div_ceil(SPLITS_MAX[tile]));
            split(*unit, parts, group, shape.kv_heads, &mut lines, &mut units);
        }
        // Those with most keys first, so that blocks end together.
        units.units.sort_by_key(|unit| std::cmp::Reverse(unit.splits));
        units
    });
    (dealt, lines)
}

/// One unit as up to `parts` of them.
fn split(
    unit: Unit,
    parts: usize,
    group: usize,
    kv_heads: usize,
    lines: &mut usize,
    to: &mut Units,
) {
    let each = (unit.splits as usize).div_ceil(parts.max(1)).max(1);
    if each >= unit.splits as usize {
        to.units.push(unit);
        return;
    }
    let begin = *lines;
    let lines_of_split = kv_heads * unit.rows as usize * group;
    *lines += unit.splits as usize * lines_of_split;
    for first in (0..unit.splits as usize).step_by(each) {
        let splits = each.min(unit.splits as usize - first);
        let part = (begin + first * lines_of_split) as u32;
        to.units.push(Unit { split: first as u32, splits: splits as u32, part, ..unit });
    }
    to.merges.push(Unit { part: begin as u32, ..unit });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: PlanShape = PlanShape { heads: 8, kv_heads: 2, vocab: 10, multiprocessors: 4 };

    fn span(start: usize, rows: usize, row_offset: usize) -> Span<'static> {
        Span { block_table: &[], start, rows, row_offset }
    }

    /// Every row meets every split up to its position once, in units or in parts that are merged.
    fn covers(spans: &[Span<'_>], shape: PlanShape) -> usize {
        let (tiles, lines) = deal(spans, shape);
        let group = shape.heads / shape.kv_heads;
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        let mut met: Vec<Vec<u32>> = vec![Vec::new(); rows];
        let mut written = vec![false; lines];
        for (tile, units) in tiles.iter().enumerate() {
            for unit in &units.units {
                assert!(unit.rows as usize * group <= TILE_ROWS[tile]);
                for row in unit.row..unit.row + unit.rows {
                    met[row as usize].extend(unit.split..unit.split + unit.splits);
                }
                if unit.part != WHOLE {
                    let count = unit.splits as usize * shape.kv_heads * unit.rows as usize * group;
                    for line in &mut written[unit.part as usize..][..count] {
                        assert!(!std::mem::replace(line, true), "two units have one line");
                    }
                }
            }
        }
        assert!(written.iter().all(|line| *line), "lines that nobody writes");
        for span in spans {
            for row in 0..span.rows {
                let met = &mut met[span.row_offset + row];
                met.sort_unstable();
                let needed = (span.start + row + 1).div_ceil(SPLIT_KEYS) as u32;
                let all: Vec<u32> = (0..met.len() as u32).collect();
                assert!(*met == all && met.len() as u32 >= needed, "{met:?} of {needed}");
            }
        }
        tiles.iter().map(|units| units.merges.len()).sum()
    }

    #[test]
    fn every_row_meets_every_split_once() {
        assert_eq!(covers(&[span(0, 1, 0)], SHAPE), 0, "one split needs no parts");
        assert_eq!(covers(&[span(5_000, 1, 0)], SHAPE), 1, "one long row is for several blocks");
        assert_eq!(covers(&[span(3_000, 40, 0)], SHAPE), 3, "three tiles of sixteen queries");
        let many: Vec<_> = (0..64).map(|i| span(i * 97, 1, i)).collect();
        assert!(covers(&many, SHAPE) > 0, "the longest are dealt out, whatever their number");
        let mixed = [span(0, 700, 0), span(20_000, 1, 700), span(511, 2, 701), span(0, 1, 703)];
        covers(&mixed, SHAPE);
        covers(&mixed, PlanShape { multiprocessors: 132, ..SHAPE });
        covers(&mixed, PlanShape { heads: 2, ..SHAPE });
    }
}
