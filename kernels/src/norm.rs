//! Root-mean-square normalisation of rows.
//!
//! The sum of squares is taken per vector lane and then across lanes, in an order fixed by the
//! row's length, so a row's result never depends on the rows around it.

use crate::isa::Isa;
use crate::simd::{Simd, vectorised};

/// `out = x / sqrt(mean(x^2) + eps) * weight` for every row of `weight.len()` numbers.
///
/// # Panics
/// When `weight` is empty, `x` is not a whole number of rows or `out` has another length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_on(Isa::best(), x, weight, eps, out);
}

/// [`rms_norm`] on a chosen instruction set.
///
/// # Panics
/// As [`rms_norm`].
pub fn rms_norm_on(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    check(x, weight, out);
    norm_rows_on(isa, x, weight, eps, out);
}

/// Adds `delta` to the residual `x` in place and normalises the sum into `out`.
///
/// # Panics
/// As [`rms_norm`], or when `delta` has another length than `x`.
pub fn add_rms_norm(x: &mut [f32], delta: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    add_rms_norm_on(Isa::best(), x, delta, weight, eps, out);
}

/// [`add_rms_norm`] on a chosen instruction set.
///
/// # Panics
/// As [`add_rms_norm`].
pub fn add_rms_norm_on(
    isa: Isa,
    x: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    check(x, weight, out);
    let width = weight.len();
    // Row by row, so that the second step finds the row in the first cache.
    for ((x, delta), out) in
        x.chunks_exact_mut(width).zip(delta.chunks_exact(width)).zip(out.chunks_exact_mut(width))
    {
        crate::vector::add_assign(x, delta);
        norm_rows_on(isa, x, weight, eps, out);
    }
    assert_eq!(x.len(), delta.len(), "both sides of a sum must have one length");
}

fn check(x: &[f32], weight: &[f32], out: &[f32]) {
    assert!(!weight.is_empty(), "a row must hold a number");
    assert_eq!(x.len() % weight.len(), 0, "x must be a whole number of rows");
    assert_eq!(x.len(), out.len(), "out must be as long as x");
}

vectorised!(fn norm_rows_on(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_rows);

/// # Safety
/// As for every method of [`Simd`].
#[inline(always)]
unsafe fn norm_rows<S: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let whole = width - width % S::LANES;
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (x, w, out) = (x.as_ptr(), weight.as_ptr(), out.as_mut_ptr());
        // SAFETY: all three rows hold `width` numbers; whole vectors end at `whole`, the part
        // after it at `width`.
        unsafe {
            let mut sums = [S::splat(0.0); 4];
            let mut at = 0;
            while at + 4 * S::LANES <= whole {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let v = S::load(x.add(at + lane * S::LANES));
                    *sum = S::fma(v, v, *sum);
                }
                at += 4 * S::LANES;
            }
            while at < whole {
                let v = S::load(x.add(at));
                sums[0] = S::fma(v, v, sums[0]);
                at += S::LANES;
            }
            let tail = S::load_part(x.add(whole), width - whole);
            sums[1] = S::fma(tail, tail, sums[1]);
            let sum = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
            let scale = S::splat(1.0 / (sum / width as f32 + eps).sqrt());
            for at in (0..whole).step_by(S::LANES) {
                let v = S::mul(S::load(x.add(at)), scale);
                S::store(out.add(at), S::mul(v, S::load(w.add(at))));
            }
            let v = S::mul(S::mul(tail, scale), S::load_part(w.add(whole), width - whole));
            S::store_part(out.add(whole), v, width - whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * step).sin() * 3.0).collect()
    }

    #[test]
    fn norm_matches_a_double_precision_reference() {
        for isa in Isa::available() {
            for width in [1, 3, 8, 15, 16, 17, 48, 64, 192, 1000] {
                for rows in [0, 1, 5] {
                    let (x, w) = (wave(rows * width, 0.7), wave(width, 0.3));
                    let mut out = vec![f32::NAN; rows * width];
                    rms_norm_on(isa, &x, &w, 1e-5, &mut out);
                    for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                        let scale = 1.0 / (mean / width as f64 + 1e-5f32 as f64).sqrt();
                        for i in 0..width {
                            let want = f64::from(x[i]) * scale * f64::from(w[i]);
                            assert!((f64::from(out[i]) - want).abs() < 2e-6, "{isa:?} {width}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_with_an_addition_before() {
        for isa in Isa::available() {
            let width = 100;
            let (mut x, delta, w) = (wave(300, 0.7), wave(300, 0.11), wave(width, 0.3));
            let mut fused = vec![0.0; 300];
            let sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
            add_rms_norm_on(isa, &mut x, &delta, &w, 1e-6, &mut fused);
            assert_eq!(x, sum);
            for row in 0..3 {
                let mut alone = vec![0.0; width];
                rms_norm_on(isa, &sum[row * width..][..width], &w, 1e-6, &mut alone);
                assert_eq!(alone, fused[row * width..][..width]);
            }
        }
    }
}
