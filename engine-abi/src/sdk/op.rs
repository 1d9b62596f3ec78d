//! The OP lane's queue: ended operations, bounded because operations are counted when they begin.

use std::collections::VecDeque;

/// Operations that may be outstanding (begun, and their end not yet polled) at one time.
pub const OPS_MAX: usize = 4096;

/// The end of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OpDone {
    pub op_id: u64,
    /// 0, or one of the header's codes.
    pub rc: i32,
    pub done: u32,
}

#[derive(Default)]
pub(super) struct OpQueue {
    items: VecDeque<OpDone>,
    first_seq: u64,
    outstanding: usize,
}

impl OpQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn begin(&mut self) -> bool {
        let admitted = self.outstanding < OPS_MAX;
        self.outstanding += usize::from(admitted);
        admitted
    }

    pub(super) fn abandon(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    pub(super) fn push(&mut self, done: OpDone) {
        self.items.push_back(done);
    }

    pub(super) fn take(&mut self, items_max: usize) -> (u64, Vec<OpDone>) {
        let first_seq = self.first_seq;
        let taken: Vec<OpDone> = self.items.drain(..items_max.min(self.items.len())).collect();
        self.first_seq += taken.len() as u64;
        self.outstanding = self.outstanding.saturating_sub(taken.len());
        (first_seq, taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_bounded_until_their_ends_are_polled() {
        let mut queue = OpQueue::default();
        assert!((0..OPS_MAX).all(|_| queue.begin()));
        assert!(!queue.begin());
        queue.abandon();
        assert!(queue.begin());
        queue.push(OpDone { op_id: 1, rc: 0, done: 2 });
        assert!(!queue.begin());
        assert_eq!(queue.take(10).1.len(), 1);
        assert!(queue.begin());
    }
}
