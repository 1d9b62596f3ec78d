//! Row-wise work spread over the kernels' threads: each task gets the same stretch of rows of
//! several buffers. It exists because norms, rotations and gates sit between the big products and
//! would otherwise run on one thread. Few rows are done by the caller, since waking threads would
//! cost more than the work.

use std::marker::PhantomData;

use mainstay_kernels::Pool;

/// Below this many rows the caller works alone.
const ROWS_ALONE: usize = 8;
/// Stretches per thread, so that a late thread leaves work to the others.
const STRETCHES_PER_THREAD: usize = 2;

/// A buffer of equal rows that tasks take apart.
struct Rows<'a> {
    start: *mut f32,
    width: usize,
    rows: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks only take stretches of rows that no other task takes, see `stretch`.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    fn new(buffer: &'a mut [f32], rows: usize) -> Self {
        assert_eq!(buffer.len() % rows, 0, "a buffer must hold whole rows");
        let width = buffer.len() / rows;
        Self { start: buffer.as_mut_ptr(), width, rows, lifetime: PhantomData }
    }

    /// # Safety
    /// No other stretch that is alive may share a row with this one.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps stretches apart")]
    unsafe fn stretch(&self, first: usize, count: usize) -> &mut [f32] {
        assert!(first + count <= self.rows, "a stretch lies inside its buffer");
        // SAFETY: the stretch lies inside the buffer that `new` borrowed for 'a, and the caller
        // vouches that nothing else refers to it.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(first * self.width), count * self.width)
        }
    }
}

/// Calls `work(first_row, stretches)` so that each row of every buffer is in exactly one call.
/// `rows` is not 0.
pub(crate) fn each_stretch<const N: usize>(
    pool: &Pool,
    rows: usize,
    buffers: [&mut [f32]; N],
    work: impl Fn(usize, [&mut [f32]; N]) + Sync,
) {
    if rows <= ROWS_ALONE || pool.threads() == 1 {
        return work(0, buffers);
    }
    let buffers = buffers.map(|buffer| Rows::new(buffer, rows));
    let per_task = rows.div_ceil(pool.threads() * STRETCHES_PER_THREAD).max(ROWS_ALONE / 2);
    pool.run(rows.div_ceil(per_task), &|task| {
        let first = task * per_task;
        let count = per_task.min(rows - first);
        // SAFETY: tasks have distinct numbers, so their stretches do not overlap, and each task
        // takes its own once.
        let stretches = std::array::from_fn(|i| unsafe { buffers[i].stretch(first, count) });
        work(first, stretches);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_with_its_own_number() {
        let pool = Pool::new(3);
        for rows in [1, 7, 8, 9, 50, 513] {
            let (mut wide, mut narrow) = (vec![0.0; rows * 3], vec![0.0; rows]);
            each_stretch(&pool, rows, [&mut wide, &mut narrow], |first, [wide, narrow]| {
                assert_eq!(wide.len(), narrow.len() * 3);
                for (i, (row, one)) in wide.chunks_mut(3).zip(narrow).enumerate() {
                    row.iter_mut().for_each(|x| *x += (first + i) as f32);
                    *one += 1.0;
                }
            });
            assert!(narrow.iter().all(|x| *x == 1.0));
            assert!(wide.chunks(3).enumerate().all(|(i, row)| row == [i as f32; 3]));
        }
    }
}
