//! Brings a chunk of keys and values out of their blocks into the shape the products want.
//!
//! Keys are turned so that the positions of a chunk lie side by side, values stay rows; both become
//! f32. This makes the products independent of block size and number type, and costs little: the
//! numbers of a chunk come from memory once and are used by all rows of a tile.

use crate::attention::kv::{KvPool, KvType};
use crate::matmul::PROBABILITY_ROW;
use crate::simd::Simd;

/// Positions per chunk.
pub(super) const CHUNK: usize = PROBABILITY_ROW;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Where a chunk goes.
pub(super) struct Chunk {
    /// `[head_dim, CHUNK]`, rounded up to whole vectors of rows.
    pub(super) keys: *mut f32,
    /// `[CHUNK, width]`.
    pub(super) values: *mut f32,
    /// `[CHUNK, width]` for keys that can't be turned in place.
    pub(super) rows: *mut f32,
    /// `width` zeros.
    pub(super) zeros: *const f32,
    /// Numbers per row: `head_dim` rounded up.
    pub(super) width: usize,
    /// Ask for the chunk after while this one is read.
    pub(super) prefetch: bool,
}

/// Reads `count` positions from `first` on.
///
/// # Safety
/// As for every method of [`Simd`]. `to` must point to memory of the sizes it names, and `table`
/// must name blocks of the pool for all positions.
#[inline(always)]
pub(super) unsafe fn gather<S: Simd>(
    kv: &KvPool,
    layer: usize,
    head: usize,
    table: &[u32],
    first: usize,
    count: usize,
    to: &Chunk,
) {
    let shape = kv.shape();
    let head_dim = shape.head_dim;
    let in_place = kv.kv_type() == KvType::F32 && head_dim.is_multiple_of(S::LANES);
    let mut rows = [to.zeros; CHUNK];
    let mut at = 0;
    while at < count {
        let position = first + at;
        let slot = position % shape.block_tokens;
        let run = (shape.block_tokens - slot).min(count - at);
        let [keys, values] = kv.head_run(layer, table[position / shape.block_tokens], head);
        let row_bytes = head_dim * kv.kv_type().bytes();
        let start = slot * row_bytes;
        let ahead = ahead(kv, layer, head, table, position + CHUNK);
        for (i, row) in rows[at..at + run].iter_mut().enumerate() {
            // SAFETY: the run has `block_tokens` rows behind both pointers, and row `at + i` of
            // the targets exists since `at + run <= count <= CHUNK`.
            unsafe {
                let from = start + i * row_bytes;
                for line in (0..if to.prefetch { row_bytes } else { 0 }).step_by(LINE_BYTES) {
                    S::prefetch(ahead[0].wrapping_add(i * row_bytes + line).cast());
                    S::prefetch(ahead[1].wrapping_add(i * row_bytes + line).cast());
                }
                widen::<S>(kv, values.add(from), to.values.add((at + i) * to.width));
                if in_place {
                    *row = keys.add(from).cast();
                } else {
                    let target = to.rows.add((at + i) * to.width);
                    widen::<S>(kv, keys.add(from), target);
                    *row = target;
                }
            }
        }
        at += run;
    }
    for position in (0..count).step_by(S::LANES) {
        for d in (0..head_dim).step_by(S::LANES) {
            // SAFETY: every row holds whole vectors up to `head_dim`: in place it is a multiple,
            // else the row is one of `width`. The target has as many rows and CHUNK columns.
            unsafe {
                let target = to.keys.add(d * CHUNK + position);
                S::transpose(rows.as_ptr().add(position), d, target, CHUNK);
            }
        }
    }
}

/// Where the keys and values of `position` lie, if the table reaches that far: memory to ask for
/// while the chunk before is worked on, since no hardware foresees a jump to another block.
fn ahead(kv: &KvPool, layer: usize, head: usize, table: &[u32], position: usize) -> [*const u8; 2] {
    let shape = kv.shape();
    let Some(block) = table.get(position / shape.block_tokens) else {
        return [std::ptr::null(); 2];
    };
    if *block as usize >= kv.blocks() {
        return [std::ptr::null(); 2];
    }
    let row_bytes = shape.head_dim * kv.kv_type().bytes();
    let start = position % shape.block_tokens * row_bytes;
    kv.head_run(layer, *block, head).map(|run| run.wrapping_add(start))
}

/// Copies one row of `head_dim` numbers of the pool's type.
///
/// # Safety
/// As for every method of [`Simd`]; `from` must hold `head_dim` numbers of the pool's type and `to`
/// have room for as many f32.
#[inline(always)]
unsafe fn widen<S: Simd>(kv: &KvPool, from: *const u8, to: *mut f32) {
    let head_dim = kv.shape().head_dim;
    let whole = head_dim - head_dim % S::LANES;
    // SAFETY: whole vectors end at `whole`, the rest at `head_dim`. A pool's numbers are aligned
    // for their type, since it begins at a cache line.
    unsafe {
        match kv.kv_type() {
            KvType::F32 => {
                let from = from.cast::<f32>();
                for d in (0..whole).step_by(S::LANES) {
                    S::store(to.add(d), S::load(from.add(d)));
                }
                let rest = head_dim - whole;
                S::store_part(to.add(whole), S::load_part(from.add(whole), rest), rest);
            }
            KvType::Bf16 => {
                let from = from.cast::<u16>();
                for d in (0..whole).step_by(S::LANES) {
                    S::store(to.add(d), S::load_bf16(from.add(d)));
                }
                for d in whole..head_dim {
                    *to.add(d) = f32::from_bits(u32::from(*from.add(d)) << 16);
                }
            }
        }
    }
}
