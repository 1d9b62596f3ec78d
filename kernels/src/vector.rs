//! Sums, choices and look-ups over plain rows.

use half::bf16;

use crate::error::KernelError;

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
    for (index, x) in x.iter().enumerate() {
        if *x > best.1 {
            best = (index, *x);
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
