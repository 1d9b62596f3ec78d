//! How the tiles of a product follow each other.
//!
//! A task is some rows times some panels. Its activations are cut along k into parts that stay in
//! the second cache while all its panels pass; a panel is cut further into parts that stay in the
//! first cache while all tiles of rows pass. Sums travel between the parts through a small buffer of
//! whole lines, so that `y`, whose rows lie far apart, is written once and never read. A lone tile
//! of rows has nothing to share and streams each panel in one go.

use std::cell::RefCell;
use std::ops::Range;

use super::tile::{PANEL, TileArgs};
use super::{Family, PARALLEL_WORK, Panels, Shared, Tiles};
use crate::pool::Pool;

/// Steps of a panel that stay in the first cache: 32 KiB.
const PART_STEPS: usize = 256;
/// Rows of a task.
const TASK_ROWS: usize = 192;
/// Activations of a task that stay in the second cache.
const PART_BYTES: usize = 384 << 10;
/// Panels whose sums are kept at once, where there are several parts.
const GROUP_PANELS: usize = 8;
/// Tasks per thread, so that a thread that is held up does not hold up all.
const TASKS_PER_THREAD: usize = 6;
/// Rows from which a stream of weights is too slow for the hardware to see it coming.
const AHEAD_ROWS: usize = 4;
/// How far ahead weights are then asked for: 8 KiB.
const AHEAD_WORDS: usize = 2048;

/// Operands of a product.
pub(super) struct Product<'a> {
    pub(super) family: &'a Family,
    pub(super) panels: Panels<'a>,
    pub(super) packed: &'a [u32],
    pub(super) tiles: Tiles,
    pub(super) m: usize,
}

/// Some tiles of rows and some panels.
struct Task {
    tiles: Range<usize>,
    panels: Range<usize>,
}

thread_local! {
    /// Sums on their way from one part to the next: `[panel, row, PANEL]`.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Computes a product, spread over the pool.
pub(super) fn multiply(product: &Product<'_>, y: &mut [f32], pool: &Pool) {
    let Product { family, panels, tiles, m, .. } = *product;
    let panel_count = panels.n.div_ceil(PANEL);
    let wanted = pool.threads() * TASKS_PER_THREAD;
    let most = tiles.count.div_ceil(wanted.div_ceil(panel_count));
    let row_blocks = tiles.count.div_ceil(most.min(TASK_ROWS / family.rows));
    let blocks = Tiles::new(tiles.count, tiles.count.div_ceil(row_blocks));
    let mut chunk = (panel_count * blocks.count / wanted).clamp(1, panel_count);
    if tiles.count == 1 {
        // Tiles of few rows take up to four panels at a time.
        chunk = chunk.next_multiple_of(4);
    }
    let chunks = panel_count.div_ceil(chunk);
    let out = Shared(y.as_mut_ptr());
    let run = |index: usize| {
        let first = index % chunks * chunk;
        let panels = first..(first + chunk).min(panel_count);
        let task = Task { tiles: blocks.rows(index / chunks), panels };
        if tiles.count == 1 {
            stream(product, task.panels, out);
        } else {
            multiply_task(product, &task, out);
        }
    };
    if m * panels.n * panels.k < PARALLEL_WORK {
        (0..blocks.count * chunks).for_each(run);
    } else {
        pool.run(blocks.count * chunks, &run);
    }
}

/// A lone tile of rows times some panels.
fn stream(product: &Product<'_>, range: Range<usize>, y: Shared<f32>) {
    let Product { family, panels, packed, m, .. } = *product;
    let Panels { words, n, steps, .. } = panels;
    let mut panel = range.start;
    while panel < range.end {
        // A ragged last panel goes alone: a tile of several panels stores them whole.
        let whole = range.end.min(n / PANEL).saturating_sub(panel).max(1);
        let choice = (family.pick)(m, whole);
        for column in (0..PANEL).step_by(choice.columns) {
            let Some(left) = n.checked_sub(panel * PANEL + column).filter(|left| *left > 0) else {
                break;
            };
            let args = TileArgs {
                x: packed.as_ptr().cast(),
                w: words[panel * steps * PANEL..].as_ptr().wrapping_add(column).cast(),
                w_step: PANEL,
                panel_words: steps * PANEL,
                ahead_words: if m >= AHEAD_ROWS { AHEAD_WORDS } else { 0 },
                steps,
                from: std::ptr::null(),
                from_row: 0,
                y: y.get().wrapping_add(panel * PANEL + column),
                y_row: n,
                columns: left.min((choice.panels - 1) * PANEL + choice.columns),
            };
            // SAFETY: the family belongs to a usable instruction set. `packed` holds `steps` for
            // every row, `words` whole panels, and `y` all rows and the columns that exist; no
            // other task has these panels.
            unsafe { (choice.tile)(&args) };
        }
        panel += choice.panels;
    }
}

/// Several tiles of rows times some panels.
fn multiply_task(product: &Product<'_>, task: &Task, y: Shared<f32>) {
    let steps = product.panels.steps;
    let rows = task.tiles.clone().map(|tile| product.tiles.rows(tile).len()).sum::<usize>();
    let part_steps = (PART_BYTES / (rows * product.family.x_words * 4)).max(PART_STEPS);
    let part_steps = part_steps - part_steps % PART_STEPS;
    let mut sums = SUMS.take();
    sums.resize(sums.len().max(GROUP_PANELS * rows * PANEL), 0.0);
    for first in task.panels.clone().step_by(GROUP_PANELS) {
        let group = first..(first + GROUP_PANELS).min(task.panels.end);
        // One round even without steps: an empty sum is zero and must be written.
        for part in (0..steps.max(1)).step_by(part_steps) {
            for (panel, sums) in group.clone().zip(sums.chunks_exact_mut(rows * PANEL)) {
                let end = (part + part_steps).min(steps);
                for step in (part..end.max(part + 1)).step_by(PART_STEPS) {
                    let range = step..(step + PART_STEPS).min(end);
                    multiply_part(product, &task.tiles, panel, range, sums, y);
                }
            }
        }
    }
    SUMS.set(sums);
}

/// All tiles of a task times a part of one panel.
fn multiply_part(
    product: &Product<'_>,
    tiles: &Range<usize>,
    panel: usize,
    range: Range<usize>,
    sums: &mut [f32],
    y: Shared<f32>,
) {
    let Product { family, panels, packed, .. } = *product;
    let Panels { words, n, steps, .. } = panels;
    let first_row = product.tiles.rows(tiles.start).start;
    let w = words[(panel * steps + range.start) * PANEL..].as_ptr();
    let last = range.end == steps;
    for tile in tiles.clone() {
        let rows = product.tiles.rows(tile);
        let choice = (family.pick)(rows.len(), 1);
        let x_at = (rows.start * steps + range.start * rows.len()) * family.x_words;
        let kept = &mut sums[(rows.start - first_row) * PANEL..][..rows.len() * PANEL];
        for column in (0..PANEL).step_by(choice.columns) {
            let Some(left) = n.checked_sub(panel * PANEL + column).filter(|left| *left > 0) else {
                break;
            };
            let kept = kept.as_mut_ptr().wrapping_add(column);
            let out = y.get().wrapping_add(rows.start * n + panel * PANEL + column);
            let args = TileArgs {
                x: packed[x_at..].as_ptr().cast(),
                w: w.wrapping_add(column).cast(),
                w_step: PANEL,
                panel_words: 0,
                ahead_words: 0,
                steps: range.len(),
                from: if range.start == 0 { std::ptr::null() } else { kept },
                from_row: PANEL,
                y: if last { out } else { kept },
                y_row: if last { n } else { PANEL },
                columns: if last { left.min(choice.columns) } else { choice.columns },
            };
            // SAFETY: the family belongs to a usable instruction set. `packed` holds `steps` for
            // every row of the tile, `words` whole panels, `kept` a panel's width for every row,
            // and `y` the rows and the columns that exist; no other task has this tile and panel.
            unsafe { (choice.tile)(&args) };
        }
    }
}
