//! What can be wrong with certificates, each with what to type next.
//!
//! Whoever reads these has a node that does not start or a connection that is refused, so a text names the file
//! and the cure. No text contains a key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why an identity can't be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the identity is not there.
    #[error(
        "{} is missing; issue a certificate into that folder with `mainstay control cert --ca DIR --role ROLE \
         --name NAME --out {}`", .path.display(), .path.parent().unwrap_or(Path::new(".")).display()
    )]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A file of the authority is not there.
    #[error(
        "{} is missing; make an authority with `mainstay control init --out {}`",
        .path.display(), .path.parent().unwrap_or(Path::new(".")).display()
    )]
    NoAuthority {
        /// Which.
        path: PathBuf,
    },
    /// An authority would be overwritten, and with it the trust of every node.
    #[error("{} exists already; choose another folder with --out, or remove it first", .path.display())]
    AuthorityExists {
        /// Which.
        path: PathBuf,
    },
    /// The system refused to read or write.
    #[error("{}: {detail}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A file holds something else than it should.
    #[error("{} holds no usable {what}: {detail}; issue it again with `mainstay control cert`", .path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why it isn't that.
        detail: String,
    },
    /// The certificate's time is over.
    #[error(
        "the certificate in {} has expired; issue another with `mainstay control cert` and the same --out",
        .path.display()
    )]
    Expired {
        /// Which.
        path: PathBuf,
    },
    /// The certificate's time has not come.
    #[error("the certificate in {} is not valid yet; set this machine's clock", .path.display())]
    NotYetValid {
        /// Which.
        path: PathBuf,
    },
    /// The certificate was signed by another authority than the one beside it.
    #[error(
        "the certificate in {} was not signed by the authority in the ca.pem beside it; \
         issue it again with `mainstay control cert --ca` and that authority's folder",
        .path.display()
    )]
    WrongAuthority {
        /// Which.
        path: PathBuf,
    },
    /// The key belongs to another certificate.
    #[error(
        "the key in {} does not match the certificate beside it; take both from the same \
         `mainstay control cert`",
        .path.display()
    )]
    KeyMismatch {
        /// Which.
        path: PathBuf,
    },
    /// The certificate names no role.
    #[error("the certificate in {} names no role: {detail}; issue it with `mainstay control cert`", .path.display())]
    NoRole {
        /// Which.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// New files would make this process somebody else.
    #[error("the files in {} now name {found}, but this process is {own}; restart it to become another", .path.display())]
    Changed {
        /// Where.
        path: PathBuf,
        /// Who it is.
        own: String,
        /// Who the files say.
        found: String,
    },
    /// A name that can't be in a certificate.
    #[error("the {what} {name:?} won't do: {rule}")]
    Name {
        /// A cluster, a node or a host.
        what: &'static str,
        /// What was given.
        name: String,
        /// What would do.
        rule: &'static str,
    },
    /// A role that does not exist.
    #[error("{0:?} is not a role; it is one of control, gateway, worker, admin")]
    Role(String),
    /// A text that is no token.
    #[error(
        "that is no token of a cluster; it begins with msa_ or msj_ and ends with 64 digits after a dot"
    )]
    Token,
    /// A lifetime that can't be had.
    #[error("{0}; pass fewer --days")]
    Lifetime(String),
    /// The library that signs, or speaks TLS, refused.
    #[error("certificates: {0}")]
    Library(String),
    /// The process has another role than the command needs.
    #[error("the identity in {} is a {own}'s, and this is a {needed}; issue one with --role {needed}", .path.display())]
    OtherRole {
        /// Where.
        path: PathBuf,
        /// What it is.
        own: crate::Role,
        /// What it should be.
        needed: crate::Role,
    },
    /// A listener would speak plain text to other machines.
    #[error(
        "{address} can be reached from other machines, and there is no identity to secure it; pass --identity DIR \
         (made by `mainstay control cert`), or --insecure for plain text"
    )]
    Plain {
        /// Where it would listen.
        address: SocketAddr,
    },
    /// A connection's other end is not whom it should be, or does not take us for whom we say.
    #[error("{address}: {detail}")]
    Connection {
        /// The other end.
        address: String,
        /// What went wrong and what to do.
        detail: String,
    },
}
