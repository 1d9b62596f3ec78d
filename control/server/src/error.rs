//! Why a member did not start.

use std::net::SocketAddr;

use mainstay_identity::IdentityError;
use mainstay_raft::{GroupError, MemberError};

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Its settings contradict each other.
    #[error("control plane settings: {0}")]
    Settings(String),
    /// Its address is taken or not its own.
    #[error("cannot listen on {address}: {detail}; pass another --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        detail: String,
    },
    /// Its log or data directory.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Its certificate, or the want of one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its group could not be founded.
    #[error("the group could not be founded: {0}")]
    Founding(#[from] MemberError),
}
