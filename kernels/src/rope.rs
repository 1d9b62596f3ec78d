//! Rotary position embedding in the half-rotation style of Llama and Qwen.
//!
//! Element `i` of a head's first half is rotated with element `i` of its second half. Angles follow
//! the reference implementation: position times inverse frequency, rounded to f32, then sine and
//! cosine. Tables are made in pages when a position is first seen, so that a long context limit
//! costs nothing until it is used.

use std::sync::OnceLock;

/// Positions per page of the table.
const PAGE_POSITIONS: usize = 256;
/// Pages a table may have; positions past them are computed on each call.
const MAX_PAGES: usize = 1 << 16;

/// Tables of cosines and sines.
pub struct Rope {
    inv_freq: Vec<f32>,
    attention_scale: f32,
    /// Per page `[position][cos of every frequency, then sin of every frequency]`.
    pages: Vec<OnceLock<Box<[f32]>>>,
}

impl Rope {
    /// Tables for rotations by `position * inv_freq[i]`; cosines and sines are multiplied by
    /// `attention_scale` (1 except for YaRN). Positions from `max_positions` on work too, slower.
    pub fn new(inv_freq: &[f32], attention_scale: f32, max_positions: usize) -> Rope {
        let pages = max_positions.div_ceil(PAGE_POSITIONS).min(MAX_PAGES);
        Rope {
            inv_freq: inv_freq.to_vec(),
            attention_scale,
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Rotates the heads of one token, `x` being a whole number of heads of `head_dim` numbers.
    /// With fewer frequencies than half a head only the first `2 * frequencies` numbers turn.
    ///
    /// # Panics
    /// When `x` is not a whole number of heads or a head is shorter than twice the frequencies.
    pub fn apply(&self, x: &mut [f32], head_dim: usize, position: usize) {
        let half = self.inv_freq.len();
        assert!(head_dim >= 2 * half && head_dim > 0, "a head must hold every frequency twice");
        assert_eq!(x.len() % head_dim, 0, "x must be a whole number of heads");
        let Some(page) = self.pages.get(position / PAGE_POSITIONS) else {
            let row = self.rows(position, 1);
            return rotate(x, head_dim, &row);
        };
        let first = position - position % PAGE_POSITIONS;
        let page = page.get_or_init(|| self.rows(first, PAGE_POSITIONS));
        rotate(x, head_dim, &page[(position - first) * 2 * half..][..2 * half]);
    }

    /// For each of the first positions the cosines of every frequency, then their sines.
    pub fn table(&self, positions: usize) -> Box<[f32]> {
        self.rows(0, positions)
    }

    fn rows(&self, first: usize, count: usize) -> Box<[f32]> {
        let half = self.inv_freq.len();
        let mut rows = vec![0.0; count * 2 * half];
        for (index, row) in rows.chunks_exact_mut((2 * half).max(1)).enumerate() {
            let position = (first + index) as f32;
            let (cos, sin) = row.split_at_mut(half);
            for ((cos, sin), inv_freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
                let angle = f64::from(position * inv_freq);
                *cos = angle.cos() as f32 * self.attention_scale;
                *sin = angle.sin() as f32 * self.attention_scale;
            }
        }
        rows.into_boxed_slice()
    }
}

fn rotate(x: &mut [f32], head_dim: usize, row: &[f32]) {
    let (cos, sin) = row.split_at(row.len() / 2);
    for head in x.chunks_exact_mut(head_dim) {
        let (low, rest) = head.split_at_mut(cos.len());
        for (((low, high), cos), sin) in low.iter_mut().zip(rest).zip(cos).zip(sin) {
            let (a, b) = (*low, *high);
            *low = a * cos - b * sin;
            *high = b * cos + a * sin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(x: &[f32], head_dim: usize, position: usize, inv_freq: &[f32]) -> Vec<f32> {
        let half = inv_freq.len();
        let mut out = x.to_vec();
        for (head, out) in x.chunks(head_dim).zip(out.chunks_mut(head_dim)) {
            for i in 0..half {
                let (sin, cos) = f64::from(position as f32 * inv_freq[i]).sin_cos();
                let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                out[i] = (a * cos - b * sin) as f32;
                out[i + half] = (b * cos + a * sin) as f32;
            }
        }
        out
    }

    #[test]
    fn rotation_matches_the_definition_inside_and_past_the_table() {
        let inv_freq: Vec<f32> = (0..24).map(|i| 10_000f32.powf(-(i as f32) / 24.0)).collect();
        let rope = Rope::new(&inv_freq, 1.0, 300);
        for (head_dim, heads) in [(48, 4), (64, 1), (48, 0)] {
            let x: Vec<f32> = (0..head_dim * heads).map(|i| (i as f32 * 0.37).sin()).collect();
            for position in [0, 1, 255, 256, 299, 511, 512, 100_000] {
                let mut y = x.clone();
                rope.apply(&mut y, head_dim, position);
                for (y, want) in y.iter().zip(naive(&x, head_dim, position, &inv_freq)) {
                    assert!((y - want).abs() < 1e-6, "{y} {want}");
                }
            }
        }
    }

    #[test]
    fn the_scale_multiplies_and_position_zero_is_the_identity() {
        let mut x = vec![1.0, 2.0, 3.0, 4.0];
        Rope::new(&[1.0, 0.5], 1.0, 4).apply(&mut x, 4, 0);
        assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
        Rope::new(&[1.0, 0.5], 2.0, 4).apply(&mut x, 4, 0);
        assert_eq!(x, [2.0, 4.0, 6.0, 8.0]);
    }
}
