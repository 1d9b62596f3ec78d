//! Sums, choices and look-ups over plain rows.

use half::bf16;

use crate::error::KernelError;

/// Numbers that are compared as one in a search.
const PART: usize = 512;
/// Numbers side by side in a search; a few vectors, since one alone would wait for itself.
const LANES: usize = 32;

/// `x += y`.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "both sides of a sum must have one length");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// The index of the largest number, the first of equals; NaN counts as smallest, and an empty
/// slice yields 0.
pub fn argmax(x: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, part) in x.chunks(PART).enumerate() {
        // The largest of a part takes a few vector operations; where it lies matters only in the
        // few parts that raise the maximum.
        let (lanes, rest) = part.as_chunks::<LANES>();
        let mut tops = [f32::NEG_INFINITY; LANES];
        for lane in lanes {
            for (top, x) in tops.iter_mut().zip(lane) {
                *top = if x > top { *x } else { *top };
            }
        }
        let top = tops.iter().chain(rest).fold(best.1, |top, x| if *x > top { *x } else { top });
        if top > best.1 {
            let at = part.iter().position(|x| *x == top).expect("the largest is one of them");
            best = (index * PART + at, top);
        }
    }
    best.0
}

/// Copies row `ids[i]` of `table[rows, width]` to row `i` of `out`.
///
/// # Panics
/// When `width` is 0 or `out` does not hold a row for each id.
pub fn gather_f32(
    table: &[f32],
    width: usize,
    ids: &[u32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    gather(table, width, ids, out, |row, out| out.copy_from_slice(row))
}

/// [`gather_f32`] from a table of bf16.
///
/// # Panics
/// As [`gather_f32`].
pub fn gather_bf16(
    table: &[bf16],
    width: usize,
    ids: &[u32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    gather(table, width, ids, out, |row, out| {
        out.iter_mut()
            .zip(row)
            .for_each(|(out, x)| *out = f32::from_bits(u32::from(x.to_bits()) << 16));
    })
}

fn gather<T>(
    table: &[T],
    width: usize,
    ids: &[u32],
    out: &mut [f32],
    copy: impl Fn(&[T], &mut [f32]),
) -> Result<(), KernelError> {
    assert!(width > 0, "a row must hold a number");
    assert_eq!(out.len(), ids.len() * width, "out must hold a row for each id");
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
        let row = table
            .chunks_exact(width)
            .nth(*id as usize)
            .ok_or(KernelError::TokenOutOfRange { token: *id, rows: table.len() / width })?;
        copy(row, out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain_argmax(x: &[f32]) -> usize {
        let mut best = 0;
        for (index, value) in x.iter().enumerate() {
            if *value > x[best] || x[best].is_nan() && !value.is_nan() {
                best = index;
            }
        }
        if x.iter().all(|x| x.is_nan()) { 0 } else { best }
    }

    #[test]
    fn argmax_is_the_first_of_the_largest() {
        assert_eq!(argmax(&[]), 0);
        assert_eq!(argmax(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), 0);
        assert_eq!(argmax(&[f32::NAN, 1.0, f32::INFINITY, f32::INFINITY]), 2);
        for count in [1, 31, 32, 33, 511, 512, 513, 5000] {
            for step in [0.1, 0.37, 1.9] {
                // Few distinct values, so that the largest occurs often.
                let mut x: Vec<f32> =
                    (0..count).map(|i| ((i as f32 * step).sin() * 5.0).round()).collect();
                assert_eq!(argmax(&x), plain_argmax(&x), "{count} {step}");
                x[count / 2] = f32::NAN;
                x[count - 1] = 7.0;
                assert_eq!(argmax(&x), plain_argmax(&x), "{count} {step}");
            }
        }
    }

    #[test]
    fn rows_are_gathered_and_unknown_ones_refused() {
        let table: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let halves: Vec<bf16> = table.iter().map(|x| bf16::from_f32(*x)).collect();
        let mut out = [0.0; 6];
        gather_f32(&table, 3, &[3, 1], &mut out).expect("both rows exist");
        assert_eq!(out, [9.0, 10.0, 11.0, 3.0, 4.0, 5.0]);
        gather_bf16(&halves, 3, &[0, 2], &mut out).expect("both rows exist");
        assert_eq!(out, [0.0, 1.0, 2.0, 6.0, 7.0, 8.0]);
        let outside = KernelError::TokenOutOfRange { token: 4, rows: 4 };
        assert_eq!(gather_f32(&table, 3, &[0, 4], &mut out), Err(outside));
        let outside = KernelError::TokenOutOfRange { token: u32::MAX, rows: 4 };
        assert_eq!(gather_bf16(&halves, 3, &[u32::MAX], &mut out[..3]), Err(outside));
        assert_eq!(gather_f32(&[], 3, &[], &mut []), Ok(()));
    }

    #[test]
    fn sums_are_taken_in_place() {
        let mut x = [1.0, 2.0, 3.0];
        add_assign(&mut x, &[0.5, -2.0, 1.0]);
        assert_eq!(x, [1.5, 0.0, 4.0]);
    }
}
