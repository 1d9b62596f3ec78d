//! How much a gateway remembers of prompts: bodies that it read, messages, texts and tokens made of them.

use mainstay_types::SequenceHash;

/// Of so many parts each memory gets some.
const PARTS: usize = 24;
/// For so many bytes of prompts one session's workers are known: 65,536 where nothing else is said.
const SESSION_BYTES: usize = 12 << 10;
/// Names of sessions' blocks take a part more, one in so many.
const NAMES_PART: usize = 6;

/// What may be remembered of prompts, in bytes; a gateway with several models keeps as much again for each further one,
/// but for bodies, which all share. What is known of sessions grows with it, and takes a sixth more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptMemory(usize);

impl Default for PromptMemory {
    fn default() -> Self {
        Self(768 << 20)
    }
}

impl PromptMemory {
    /// The least that makes sense: of less, no prompt of some length would find room.
    pub const BYTES_MIN: u64 = 16 << 20;

    /// So many bytes, or the least that makes sense.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(usize::try_from(bytes.max(Self::BYTES_MIN)).unwrap_or(usize::MAX))
    }

    /// How many, for the first model and the bodies of all.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0
    }

    const fn parts(self, parts: usize) -> usize {
        self.0 / PARTS * parts
    }

    /// Bodies as they came, and what was read of them.
    pub(crate) const fn bodies(self) -> usize {
        self.parts(4)
    }

    /// Messages as templates see them.
    pub(crate) const fn messages(self) -> usize {
        self.parts(5)
    }

    /// Pieces of rendered prompts, which come again as the same allocation.
    pub(crate) const fn pieces(self) -> usize {
        self.parts(4)
    }

    /// Prompts that the next turn goes on from.
    pub(crate) const fn prompts(self) -> usize {
        self.parts(4)
    }

    /// Texts between special tokens.
    pub(crate) const fn segments(self) -> usize {
        self.parts(7)
    }

    /// Sessions whose workers are known.
    pub(crate) const fn sessions(self) -> usize {
        self.0 / SESSION_BYTES
    }

    /// Names of blocks of those sessions' last turns.
    pub(crate) const fn session_names(self) -> usize {
        self.0 / NAMES_PART / size_of::<SequenceHash>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole_and_little_is_raised_to_what_makes_sense() {
        let memory = PromptMemory::new(240 << 20);
        let parts = [memory.bodies(), memory.messages(), memory.pieces(), memory.prompts()];
        assert_eq!(parts.iter().sum::<usize>() + memory.segments(), 240 << 20);
        let all = PromptMemory::default();
        assert_eq!((all.sessions(), all.session_names()), (65_536, 8 << 20));
        assert_eq!(PromptMemory::new(1), PromptMemory::new(PromptMemory::BYTES_MIN));
    }
}
