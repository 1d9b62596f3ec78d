//! SiLU gating and softmax.
//!
//! Both go through one polynomial for the exponential. Numbers that are not finite spread as
//! arithmetic says; an empty row stays empty.

use crate::isa::Isa;
use crate::simd::{Simd, exp, vectorised};

/// `out = gate / (1 + exp(-gate)) * up`.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    silu_mul_on(Isa::best(), gate, up, out);
}

/// [`silu_mul`] on a chosen instruction set.
///
/// # Panics
/// As [`silu_mul`].
pub fn silu_mul_on(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up must have one length");
    assert_eq!(gate.len(), out.len(), "out must be as long as gate");
    silu_row_on(isa, gate, up, out);
}

/// Softmax of one row in place; an empty row stays empty.
pub fn softmax(x: &mut [f32]) {
    softmax_on(Isa::best(), x);
}

/// [`softmax`] on a chosen instruction set.
pub fn softmax_on(isa: Isa, x: &mut [f32]) {
    if !x.is_empty() {
        softmax_row_on(isa, x);
    }
}

vectorised!(fn silu_row_on(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_row);
vectorised!(fn softmax_row_on(x: &mut [f32]) = softmax_row);

/// # Safety
/// As for every method of [`Simd`].
#[inline(always)]
unsafe fn silu<S: Simd>(gate: S::F, up: S::F) -> S::F {
    // SAFETY: the caller runs on this instruction set, and nothing here touches memory.
    unsafe {
        let below = S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), gate)));
        S::mul(S::div(gate, below), up)
    }
}

/// # Safety
/// As for every method of [`Simd`]; the three slices must have one length.
#[inline(always)]
unsafe fn silu_row<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (count, whole) = (gate.len(), gate.len() - gate.len() % S::LANES);
    let (gate, up, out) = (gate.as_ptr(), up.as_ptr(), out.as_mut_ptr());
    // SAFETY: whole vectors end at `whole`, the part after it at the end of the slices.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            S::store(out.add(at), silu::<S>(S::load(gate.add(at)), S::load(up.add(at))));
        }
        let rest = count - whole;
        let gate = S::load_part(gate.add(whole), rest);
        S::store_part(out.add(whole), silu::<S>(gate, S::load_part(up.add(whole), rest)), rest);
    }
}

/// # Safety
/// As for every method of [`Simd`].
#[inline(always)]
unsafe fn softmax_row<S: Simd>(x: &mut [f32]) {
    let (count, whole) = (x.len(), x.len() - x.len() % S::LANES);
    let (whole_part, tail) = x.split_at_mut(whole);
    // SAFETY: every access is a whole vector inside `whole_part` or `rest` numbers of `tail`.
    unsafe {
        let rest = count - whole;
        let mut max = S::splat(f32::NEG_INFINITY);
        for at in (0..whole).step_by(S::LANES) {
            max = S::max(S::load(whole_part.as_ptr().add(at)), max);
        }
        let max = tail.iter().fold(S::maximum(max), |max, x| if *x > max { *x } else { max });
        // Without a finite maximum there is no shift that helps, and inf - inf would hide why.
        let shift = S::splat(if max.is_finite() { max } else { 0.0 });
        let mut sum = S::splat(0.0);
        for at in (0..whole).step_by(S::LANES) {
            let to = whole_part.as_mut_ptr().add(at);
            let e = exp::<S>(S::sub(S::load(to), shift));
            S::store(to, e);
            sum = S::add(sum, e);
        }
        let e = exp::<S>(S::sub(S::load_part(tail.as_ptr(), rest), shift));
        S::store_part(tail.as_mut_ptr(), e, rest);
        sum = S::add(sum, S::load_part(tail.as_ptr(), rest));
        let scale = S::splat(1.0 / S::sum(sum));
        for at in (0..whole).step_by(S::LANES) {
            let to = whole_part.as_mut_ptr().add(at);
            S::store(to, S::mul(S::load(to), scale));
        }
        let e = S::mul(S::load_part(tail.as_ptr(), rest), scale);
        S::store_part(tail.as_mut_ptr(), e, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_matches_a_double_precision_reference() {
        for isa in Isa::available() {
            for count in [0, 1, 7, 8, 16, 33, 1000] {
                let gate: Vec<f32> = (0..count).map(|i| (i as f32 - 300.0) * 0.31).collect();
                let up: Vec<f32> = (0..count).map(|i| (i as f32 * 0.9).cos()).collect();
                let mut out = vec![f32::NAN; count];
                silu_mul_on(isa, &gate, &up, &mut out);
                for i in 0..count {
                    let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
                    let want = g / (1.0 + (-g).exp()) * u;
                    let error = (f64::from(out[i]) - want).abs();
                    assert!(error <= 4e-7 * want.abs() + 1e-30, "{isa:?} {g} {want}");
                }
            }
        }
    }

    #[test]
    fn softmax_sums_to_one_and_matches_a_double_precision_reference() {
        for isa in Isa::available() {
            softmax_on(isa, &mut []);
            for count in [1, 2, 8, 15, 16, 17, 100, 5000] {
                let x: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7).sin() * 20.0).collect();
                let mut y = x.clone();
                softmax_on(isa, &mut y);
                let max = x.iter().copied().fold(f32::MIN, f32::max);
                let e = |x: f32| f64::from(x - max).exp();
                let sum: f64 = x.iter().map(|x| e(*x)).sum();
                for (x, y) in x.iter().zip(&y) {
                    assert!((f64::from(*y) - e(*x) / sum).abs() < 1e-6, "{isa:?} {count}");
                }
            }
            let mut masked = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
            softmax_on(isa, &mut masked);
            assert_eq!(masked, [0.0, 1.0, 0.0]);
        }
    }
}
