//! Tests of the vector primitives on every instruction set of the machine.

use super::*;
use crate::isa::Isa;

unsafe fn exp_row<S: Simd>(x: &mut [f32]) {
    assert_eq!(x.len() % 16, 0);
    for chunk in x.chunks_exact_mut(S::LANES) {
        // SAFETY: each chunk holds a whole vector.
        unsafe { S::store(chunk.as_mut_ptr(), exp::<S>(S::load(chunk.as_ptr()))) };
    }
}
vectorised!(fn exp_row_on(x: &mut [f32]) = exp_row);

unsafe fn transposed<S: Simd>(from: &[f32], width: usize, to: &mut [f32]) -> usize {
    let rows: Vec<*const f32> = from.chunks_exact(width).map(<[f32]>::as_ptr).collect();
    assert!(rows.len() >= S::LANES && width >= 3 + S::LANES && to.len() >= 16 * 20);
    // SAFETY: there are rows, columns and room for a whole block.
    unsafe { S::transpose(rows.as_ptr(), 3, to.as_mut_ptr(), 20) };
    S::LANES
}
vectorised!(fn transposed_on(from: &[f32], width: usize, to: &mut [f32]) -> usize = transposed);

unsafe fn parts<S: Simd>(from: &[f32], count: usize, to: &mut [f32]) -> (f32, f32) {
    let count = count.min(S::LANES - 1);
    assert!(from.len() >= 16 && to.len() >= 16);
    // SAFETY: both slices hold a whole vector.
    unsafe {
        let v = S::load_part(from.as_ptr(), count);
        S::store_part(to.as_mut_ptr(), v, count);
        (S::sum(v), S::maximum(v))
    }
}
vectorised!(fn parts_on(from: &[f32], count: usize, to: &mut [f32]) -> (f32, f32) = parts);

#[test]
fn exp_is_close_and_exact_at_its_edges() {
    let grid: Vec<f32> = (0..160_000).map(|i| (i as f32 - 80_000.0) * 0.00109).collect();
    for isa in Isa::available() {
        let mut y = grid.clone();
        exp_row_on(isa, &mut y);
        for (x, y) in grid.iter().zip(&y) {
            let want = f64::from(*x).exp();
            assert!((f64::from(*y) - want).abs() <= 2.5e-7 * want, "{isa:?} {x} {y} {want}");
        }
        let mut edges =
            [0.0, -0.0, -87.8, -100.0, f32::NEG_INFINITY, f32::NAN, 200.0, 1.0].repeat(2);
        exp_row_on(isa, &mut edges);
        assert_eq!(edges[..5], [1.0, 1.0, 0.0, 0.0, 0.0], "{isa:?}");
        assert!(edges[5].is_nan() && edges[6] > 1e38 && edges[6].is_finite(), "{isa:?}");
    }
}

#[test]
fn transpose_turns_rows_into_columns() {
    let width = 21;
    let from: Vec<f32> = (0..16 * width).map(|i| i as f32).collect();
    for isa in Isa::available() {
        let mut to = vec![-1.0; 16 * 20];
        let lanes = transposed_on(isa, &from, width, &mut to);
        for row in 0..lanes {
            for column in 0..lanes {
                assert_eq!(to[column * 20 + row], from[row * width + 3 + column], "{isa:?}");
            }
        }
    }
}

#[test]
fn partial_vectors_touch_only_their_part() {
    let from: Vec<f32> = (1..=16).map(|i| i as f32).collect();
    for isa in Isa::available() {
        for count in 0..8 {
            let mut to = vec![-1.0; 16];
            let (sum, maximum) = parts_on(isa, &from, count, &mut to);
            assert_eq!(to[..count], from[..count]);
            assert!(to[count..].iter().all(|x| *x == -1.0));
            assert_eq!(sum, (count * (count + 1) / 2) as f32);
            assert_eq!(maximum, count as f32);
        }
    }
}
