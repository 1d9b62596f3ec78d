//! Weights in the order in which the kernels read them.
//!
//! Weights never change after load, so they are laid out once in panels of 32 output columns; a
//! product then reads memory strictly forward. Ragged edges are filled with zeros here so that no
//! kernel has to look at them.

use half::bf16;

use crate::isa::Isa;
use crate::matmul::tile::PANEL;
use crate::matmul::{Kind, Panels, family, product};
use crate::memory::Memory;
use crate::pool::Pool;

/// Steps that are packed together.
const PACK_STEPS: usize = 16;

/// How bf16 weights are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Weights are widened and everything is computed in f32.
    F32Math,
    /// Where the machine has a bf16 dot product, activations are rounded to bf16 once per call and
    /// products of pairs are summed in f32; elsewhere the same as [`Precision::F32Math`].
    Bf16Math,
}

/// A weight matrix `W[n, k]`, packed.
pub struct PackedMatrix {
    /// `[n / 32, steps, 32]` words: an f32, or a pair of bf16 of which the first is the lower half.
    panels: Memory,
    n: usize,
    k: usize,
    kind: Kind,
    isa: Isa,
}

impl PackedMatrix {
    /// Packs row-major `w[n, k]` as f32.
    ///
    /// # Panics
    /// When `w` does not hold `n * k` numbers.
    pub fn from_f32(w: &[f32], n: usize, k: usize) -> PackedMatrix {
        PackedMatrix::pack(w, n, k, Kind::Whole, |row, step| row[step].to_bits())
    }

    /// Packs row-major `w[n, k]` as bf16.
    ///
    /// # Panics
    /// When `w` does not hold `n * k` numbers.
    pub fn from_bf16(w: &[bf16], n: usize, k: usize, precision: Precision) -> PackedMatrix {
        let kind = match precision {
            Precision::F32Math => Kind::Widened,
            Precision::Bf16Math => Kind::Pairs,
        };
        PackedMatrix::pack(w, n, k, kind, |row, step| {
            let second = row.get(2 * step + 1).map_or(0, |x| u32::from(x.to_bits()));
            u32::from(row[2 * step].to_bits()) | second << 16
        })
    }

    fn pack<T>(
        w: &[T],
        n: usize,
        k: usize,
        kind: Kind,
        word: impl Fn(&[T], usize) -> u32,
    ) -> PackedMatrix {
        assert_eq!(Some(w.len()), n.checked_mul(k), "weights must hold n * k numbers");
        let steps = steps(kind, k);
        let bytes = n.div_ceil(PANEL).checked_mul(steps * PANEL * 4);
        let Some(mut panels) = bytes.and_then(Memory::zeroed) else {
            panic!("no memory for packed weights of {n} by {k}");
        };
        if steps > 0 {
            let panels = panels.words_mut().chunks_exact_mut(steps * PANEL);
            for (panel, w) in panels.zip(w.chunks(PANEL * k)) {
                // A few steps at a time, so that rows are read and lines are written whole.
                for (block, words) in panel.chunks_mut(PACK_STEPS * PANEL).enumerate() {
                    for (column, row) in w.chunks_exact(k).enumerate() {
                        let cells = words[column..].iter_mut().step_by(PANEL);
                        let steps = block * PACK_STEPS..;
                        cells.zip(steps).for_each(|(cell, step)| *cell = word(row, step));
                    }
                }
            }
        }
        let isa = if kind == Kind::Pairs { Isa::best_for_bf16() } else { Isa::best() };
        PackedMatrix { panels, n, k, kind, isa }
    }

    /// The same matrix, multiplied on `isa` or on the widest set below it that the machine has.
    pub fn with_isa(mut self, isa: Isa) -> PackedMatrix {
        self.isa = isa.usable();
        self
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Output columns: rows of `W`.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input columns: columns of `W`.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of memory in use.
    pub fn bytes(&self) -> usize {
        self.panels.len()
    }

    /// Writes row `row` of `W` to `out`: the embedding of a token where both share one table.
    ///
    /// # Panics
    /// When `row >= n` or `out` does not hold `k` numbers.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "no such row");
        assert_eq!(out.len(), self.k, "out must hold k numbers");
        let steps = steps(self.kind, self.k);
        let panel = &self.panels.words()[row / PANEL * steps * PANEL..][..steps * PANEL];
        let words = panel.iter().skip(row % PANEL).step_by(PANEL);
        if self.kind == Kind::Whole {
            words.zip(out).for_each(|(word, out)| *out = f32::from_bits(*word));
        } else {
            for (word, out) in words.zip(out.chunks_mut(2)) {
                let pair = [word << 16, word & 0xffff_0000];
                out.iter_mut().zip(pair).for_each(|(out, bits)| *out = f32::from_bits(bits));
            }
        }
    }

    /// `y[m, n] = x[m, k] * W^T`, all row-major. Each row of `y` depends on its row of `x` alone,
    /// to the bit.
    ///
    /// # Panics
    /// When `x` does not hold `m * k` or `y` not `m * n` numbers.
    pub fn matmul(&self, x: &[f32], m: usize, y: &mut [f32], pool: &Pool) {
        assert_eq!(Some(x.len()), m.checked_mul(self.k), "x must hold m * k numbers");
        assert_eq!(Some(y.len()), m.checked_mul(self.n), "y must hold m * n numbers");
        let panels = Panels {
            words: self.panels.words(),
            n: self.n,
            k: self.k,
            steps: steps(self.kind, self.k),
        };
        product(family(self.isa, self.kind), panels, x, m, y, pool);
    }
}

/// Steps of a panel: one k each, or two where words are pairs.
fn steps(kind: Kind, k: usize) -> usize {
    if kind == Kind::Whole { k } else { k.div_ceil(2) }
}
