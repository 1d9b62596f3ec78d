//! What came into a tier and what went, for whoever tells others what it holds.
//!
//! The log is bounded: a reader that falls behind is told that moves were lost, and asks for all keys instead.

use mainstay_types::SequenceHash;

use crate::BlockKey;

/// One change of what a tier holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The block can be read from now on.
    Came {
        /// Which.
        key: BlockKey,
        /// The block before it.
        parent: SequenceHash,
    },
    /// It can be read no more.
    Went {
        /// Which.
        key: BlockKey,
        /// Since when it was there.
        since_ms: u64,
    },
}

/// The changes since the last reading, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// What moved.
    pub moves: Vec<Move>,
    /// More moved than the log has room for, and nothing is left of it.
    pub lost: bool,
}

/// The log in a table; it keeps nothing before it is asked to.
#[derive(Debug, Default)]
pub(crate) struct MoveLog {
    room: usize,
    moves: Moves,
}

impl MoveLog {
    /// Keeps so many moves from now on.
    pub(crate) fn keep(&mut self, room: usize) {
        self.room = room;
    }

    pub(crate) fn note(&mut self, moved: Move) {
        if self.room == 0 || self.moves.lost {
            return;
        }
        if self.moves.moves.len() >= self.room {
            self.moves = Moves { moves: Vec::new(), lost: true };
            return;
        }
        self.moves.moves.push(moved);
    }

    pub(crate) fn take(&mut self) -> Moves {
        std::mem::take(&mut self.moves)
    }
}
