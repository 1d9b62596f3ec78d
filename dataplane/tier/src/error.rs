//! What can be wrong with a call or a setting of a tier.
//!
//! Faults of a disk or a store are not here unless nothing can be opened: a tier that cannot give a block says so in
//! its answer, since the caller's next step is the same as for a miss.

use std::io;

/// Why a tier could not be opened, or a call makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// A setting out of its bounds.
    #[error("{0}")]
    Setting(String),
    /// Bytes of another layout.
    #[error("the block has another layout than the tier; open a tier for each layout")]
    WrongLayout,
    /// Not the length of the layout's blocks.
    #[error("{got} bytes where a block has {want}")]
    WrongLength {
        /// What was given.
        got: usize,
        /// What the layout says.
        want: usize,
    },
    /// Somebody else has the folder open.
    #[error("another process uses the folder of this tier; give each worker a folder of its own")]
    Locked,
    /// The folder or its files cannot be used.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The store of objects cannot be used as it is set.
    #[error(
        "the store of objects cannot be used: {0}; check its address and the credentials in the environment"
    )]
    Store(String),
}

impl TierError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
