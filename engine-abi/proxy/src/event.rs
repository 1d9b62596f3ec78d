//! An event of another's cache, in no wire's form: names, tokens, and whose they are, as far as it says.

/// A block's name at its server, which means nothing elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Native {
    /// 64 bits, of either sign.
    Number(u64),
    /// A whole digest.
    Digest([u8; 32]),
}

/// Where blocks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Device,
    Host,
    Disk,
    Remote,
}

/// What tells one block from another besides its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Salt {
    /// The server does not say (an older one, or a block behind the first).
    #[default]
    Untold,
    /// It says that there is none.
    None,
    Text(String),
    /// Images, adapters: nothing that a request of ours has.
    Foreign,
}

/// Blocks that the server has come to hold, each the parent of the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub blocks: Vec<Native>,
    pub parent: Option<Native>,
    pub tokens: Vec<u32>,
    pub block_tokens: u32,
    pub medium: Option<Medium>,
    /// Of the first of the blocks.
    pub salt: Salt,
    /// From this block on there is content that is not tokens.
    pub foreign_from: Option<usize>,
    pub group: Group,
}

/// Which of several caches of one model an event is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub index: Option<u64>,
    /// A cache of the last tokens alone: a prefix does not live in it.
    pub is_partial: bool,
}

/// What happened in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Stored(Stored),
    /// Left one medium; the device where none is named.
    Removed {
        blocks: Vec<Native>,
        medium: Option<Medium>,
        group: Group,
    },
    /// Left the cache, wherever they lay.
    Dropped(Vec<Native>),
    /// Went from one medium to another.
    Moved {
        block: Native,
        from: Medium,
        to: Medium,
    },
    Cleared,
}
