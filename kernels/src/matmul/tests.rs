//! Tests of products: each instruction set against double precision, and rows that never depend
//! on the rows around them.

use half::bf16;
use proptest::prelude::*;

use crate::isa::Isa;
use crate::pack::{PackedMatrix, Precision};
use crate::pool::Pool;

/// Numbers in [-1, 1) from a fixed generator.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn rounded(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|x| bf16::from_f32(*x)).collect()
}

fn widened(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// The product in double precision and, beside it, the sum of magnitudes that bounds its error.
fn reference(x: &[f32], w: &[f32], m: usize, n: usize, k: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|s| f64::from(x[i * k + s]) * f64::from(w[j * k + s]));
            out.push(terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs())));
        }
    }
    out
}

fn close(y: &[f32], want: &[(f64, f64)], tolerance: f64, what: &str) {
    assert_eq!(y.len(), want.len());
    for (at, (y, (want, size))) in y.iter().zip(want).enumerate() {
        let error = (f64::from(*y) - want).abs();
        assert!(error <= tolerance * size, "{what} at {at}: {y} instead of {want}");
    }
}

/// The three ways of storing and multiplying one set of bf16-representable weights.
fn matrices(w: &[bf16], n: usize, k: usize) -> [(&'static str, PackedMatrix); 3] {
    [
        ("f32", PackedMatrix::from_f32(&widened(w), n, k)),
        ("bf16, f32 math", PackedMatrix::from_bf16(w, n, k, Precision::F32Math)),
        ("bf16, bf16 math", PackedMatrix::from_bf16(w, n, k, Precision::Bf16Math)),
    ]
}

fn check(m: usize, n: usize, k: usize, threads: usize) {
    let pool = Pool::new(threads);
    let w = rounded(&numbers(n * k, 1 + n as u64));
    let x = numbers(m * k, 2 + k as u64);
    let exact = reference(&x, &widened(&w), m, n, k);
    let x_rounded = widened(&rounded(&x));
    let coarse = reference(&x_rounded, &widened(&w), m, n, k);
    for isa in Isa::available() {
        for (name, matrix) in matrices(&w, n, k) {
            let matrix = matrix.with_isa(isa);
            let what = format!("{isa:?} {name} {m}x{n}x{k}");
            let mut y = vec![f32::NAN; m * n];
            matrix.matmul(&x, m, &mut y, &pool);
            let bf16_math = name == "bf16, bf16 math" && isa == Isa::Avx512Bf16;
            // A chain of k additions may lose k half units, in the mean far less.
            let tolerance = 1e-7 * (4.0 + (k as f64).sqrt());
            close(&y, if bf16_math { &coarse } else { &exact }, tolerance, &what);
        }
    }
}

#[test]
fn every_instruction_set_matches_double_precision() {
    for (m, n, k) in [
        (1, 1, 1),
        (1, 32, 2),
        (2, 33, 3),
        (12, 32, 64),
        (13, 64, 65),
        (25, 100, 257),
        (7, 31, 1025),
        (40, 161, 515),
        (1, 4096, 64),
        (300, 70, 33),
        (200, 40, 1100),
    ] {
        check(m, n, k, 2);
    }
}

#[test]
fn nothing_is_touched_where_nothing_is_asked() {
    let pool = Pool::new(2);
    for isa in Isa::available() {
        for (name, matrix) in matrices(&[], 0, 5) {
            matrix.with_isa(isa).matmul(&numbers(15, 1), 3, &mut [], &pool);
            assert!(!name.is_empty());
        }
        for (_, matrix) in matrices(&rounded(&numbers(35, 1)), 7, 5) {
            matrix.with_isa(isa).matmul(&[], 0, &mut [], &pool);
        }
        for (_, matrix) in matrices(&[], 70, 0) {
            let mut y = vec![f32::NAN; 140];
            matrix.with_isa(isa).matmul(&[], 2, &mut y, &pool);
            assert!(y.iter().all(|y| *y == 0.0), "an empty sum is zero");
        }
    }
}

/// Every row alone, in batches of every size and on any number of threads: the same bits.
#[test]
fn rows_do_not_depend_on_their_batch() {
    for (n, k) in [(100, 301), (257, 1030), (64, 64), (40, 5000)] {
        let w = rounded(&numbers(n * k, 7));
        let m = 61;
        let x = numbers(m * k, 9);
        for isa in Isa::available() {
            for (name, matrix) in matrices(&w, n, k) {
                let matrix = matrix.with_isa(isa);
                let mut whole = vec![0.0; m * n];
                matrix.matmul(&x, m, &mut whole, &Pool::new(1));
                for (size, threads) in (1..=26).chain([61]).zip([2, 1, 3].into_iter().cycle()) {
                    let pool = Pool::new(threads);
                    let mut y = vec![f32::NAN; m * n];
                    for (x, y) in x.chunks(size * k).zip(y.chunks_mut(size * n)) {
                        matrix.matmul(x, x.len() / k, y, &pool);
                    }
                    assert!(y == whole, "{isa:?} {name} {n}x{k} in batches of {size}");
                }
            }
        }
    }
}

#[test]
fn rows_can_be_read_back() {
    for (n, k) in [(1, 1), (33, 7), (64, 10), (100, 301)] {
        let w = rounded(&numbers(n * k, 7));
        for (name, matrix) in matrices(&w, n, k) {
            for row in 0..n {
                let mut out = vec![f32::NAN; k];
                matrix.unpack_row(row, &mut out);
                assert_eq!(out, widened(&w[row * k..][..k]), "{name} {row}");
            }
        }
    }
}

#[test]
fn rounding_agrees_with_the_half_crate() {
    let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-42, f32::INFINITY];
    for x in special.into_iter().chain(numbers(10_000, 3)) {
        assert_eq!(super::round(x), u32::from(bf16::from_f32(x).to_bits()), "{x}");
    }
    assert!(bf16::from_bits(super::round(f32::NAN) as u16).is_nan());
    assert!(bf16::from_bits(super::round(f32::from_bits(0x7f80_0001)) as u16).is_nan());
}

#[test]
fn tiles_cover_all_rows_once() {
    for m in 1..200 {
        for rows in [4, 6, 12] {
            let tiles = super::Tiles::new(m, rows);
            let all: Vec<usize> = (0..tiles.count).flat_map(|tile| tiles.rows(tile)).collect();
            assert_eq!(all, (0..m).collect::<Vec<_>>());
            assert!((0..tiles.count).all(|tile| tiles.rows(tile).len() <= rows));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_shape_matches_double_precision(
        m in 1usize..30, n in 1usize..150, k in 1usize..600, threads in 1usize..4,
    ) {
        check(m, n, k, threads);
    }
}
