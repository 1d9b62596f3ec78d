//! The state as bytes: what snapshots hold and what a watcher gets first.
//!
//! Little-endian, a version byte first, a 128-bit checksum last. Every version from the oldest to the newest is read, and
//! that of the cluster is written, so that a member of an older program can be sent one; what a version adds is written
//! and read where that version is asked for. Everything is written in sorted order and read
//! back only in that order, so that no two images mean the same state. Equal
//! states have equal bytes but for the runs of the block index, which also tell how blocks came and went.
//! Reading trusts nothing: counts are held against the limits and against the bytes that are left before
//! anything is reserved, and what can be derived (a live pin's state, budgets, digests) is derived, not read.

mod kept;
mod parts;
mod read;
mod regions;
mod responses;
mod sink;
mod source;
mod tenants;
mod write;

use thiserror::Error;

use crate::limits::Limits;
use crate::machine::Machine;
use crate::version::{TENANTS_AND_REGIONS, VERSION_NEWEST, VERSION_OLDEST};
use sink::{Sink, StateHasher, checksum};
use source::Source;

pub use parts::IndexLoader;
pub(crate) use parts::encode_parts;

const CHECKSUM_BYTES: usize = 16;
const WITH_BLOCKS: u8 = 1;
const WITH_TOKENS: u8 = 2;

/// What of the state goes into an image, beside what always does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) blocks: bool,
    pub(crate) tokens: bool,
}

/// Why bytes are not an image of a state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageError {
    /// Fewer bytes than it takes.
    #[error("image is cut short; fetch it again")]
    Truncated,
    /// Written by another version.
    #[error(
        "image has version {0}, this program reads versions {VERSION_OLDEST} to {VERSION_NEWEST}; start the version that wrote it, or a newer one"
    )]
    Version(u8),
    /// The bytes changed on their way.
    #[error("image fails its checksum; fetch it again")]
    Checksum,
    /// More than the limits allow.
    #[error("image holds {count} {what}, the limit is {limit}; run all members with equal limits")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A value that no machine writes.
    #[error("image has an impossible {0}")]
    Invalid(&'static str),
}

pub(crate) fn encode(machine: &Machine, version: u8, parts: Parts) -> Vec<u8> {
    let tokens = parts.tokens && version >= TENANTS_AND_REGIONS;
    let mut bytes = Vec::new();
    bytes.u8(version);
    let part = |with: bool, kind: u8| if with { kind } else { 0 };
    bytes.u8(part(parts.blocks, WITH_BLOCKS) | part(tokens, WITH_TOKENS));
    write::state(&mut bytes, machine, version);
    if tokens {
        kept::write_tokens(&mut bytes, machine);
        responses::write_payloads(&mut bytes, machine);
    }
    if parts.blocks {
        write::blocks(&mut bytes, &machine.index);
    }
    let sum = checksum(&bytes);
    bytes.u128(sum);
    bytes
}

pub(crate) fn digest(machine: &Machine) -> u128 {
    let mut hasher = StateHasher::new();
    write::state(&mut hasher, machine, machine.version);
    write::block_digests(&mut hasher, &machine.index);
    hasher.finish()
}

pub(crate) fn decode(bytes: &[u8], limits: Limits) -> Result<Machine, ImageError> {
    let version = *bytes.first().ok_or(ImageError::Truncated)?;
    if !(VERSION_OLDEST..=VERSION_NEWEST).contains(&version) {
        return Err(ImageError::Version(version));
    }
    let body_bytes = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(ImageError::Truncated)?;
    let (body, sum) = bytes.split_at(body_bytes);
    if checksum(body).to_le_bytes() != sum {
        return Err(ImageError::Checksum);
    }
    let mut source = Source::new(body);
    source.u8()?;
    let kind = source.u8()?;
    let kinds =
        if version >= TENANTS_AND_REGIONS { WITH_BLOCKS | WITH_TOKENS } else { WITH_BLOCKS };
    if kind & !kinds != 0 {
        return Err(ImageError::Invalid("kind"));
    }
    let mut machine = read::state(&mut source, limits, version)?;
    if kind & WITH_TOKENS != 0 {
        kept::read_tokens(&mut source, &mut machine)?;
        responses::read_payloads(&mut source, &mut machine)?;
    }
    if kind & WITH_BLOCKS != 0 {
        read::blocks(&mut source, &mut machine)?;
    }
    source.end()?;
    Ok(machine)
}

#[cfg(test)]
mod tests;
