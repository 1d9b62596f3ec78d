//! Who a process is: certificates of the cluster's authority, and TLS between roles that checks both sides.
//!
//! Every port between nodes carries prompts, answers or the cluster's state, so each side must know whom it
//! talks to. An authority signs certificates that name cluster, role and node; [`Identity`] keeps one node's
//! files in memory and reads them again when they change; [`incoming`] accepts and [`Identity::channel`] opens
//! connections; [`Guard`] says which role may call what. Without an identity everything is plain text and
//! nothing is checked, which is refused beyond one machine's loopback unless somebody insists.
//!
//! Layout: `authority` signs, `files` stores, `name` reads what a certificate says, `identity` is one node's
//! own, `listen` and `connect` are the two ends of a connection, `guard` the roles, `secret` tokens and keys, `guest`
//! and `join` what those do who have a token and no certificate yet.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod authority;
mod connect;
mod error;
mod files;
mod guard;
mod guest;
mod identity;
mod join;
mod listen;
mod name;
mod secret;

pub use authority::{Authority, DAYS_MAX, DAYS_USUAL, HOSTS_MAX, Issued, Order, Request};
pub use error::IdentityError;
pub use guard::{Guard, Guarded, Rule, caller};
pub use guest::Guest;
pub use identity::{Identity, RELOAD_EVERY};
pub use join::{Applicant, Given, is_identity};
pub use listen::{Caller, Connection, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, Incoming, incoming};
pub use name::{NAME_BYTES_MAX, Peer, Role};
pub use secret::{
    ADMIN_PREFIX, ClusterSecret, JOIN_PREFIX, KEY_PREFIX, new_name, new_secret, sha256,
};

/// Refuses a listener that others can reach and that would speak plain text, unless somebody insists.
///
/// # Errors
/// If the address is not loopback, there is no identity, and `insecure` is not set.
pub fn check_listener(
    address: std::net::SocketAddr,
    identity: Option<&Identity>,
    insecure: bool,
) -> Result<(), IdentityError> {
    if address.ip().is_loopback() || identity.is_some() {
        return Ok(());
    }
    if !insecure {
        return Err(IdentityError::Plain { address });
    }
    tracing::warn!(%address, "listening beyond this machine in plain text, as --insecure asks for");
    Ok(())
}

#[cfg(test)]
mod tests;
