//! Work on the data directory of a member that is down: look at it, copy it, make a new one from a copy.
//!
//! Looking and copying never change the directory and tell damage instead of stopping at it or repairing it. A
//! copy is one file with checksums over all of it. What is made from a copy is a new group of one member with the
//! same state: the old group's other members are no part of it and must not be started again beside it.

mod archive;
mod inspect;

pub use archive::{BackedUp, RestoreTo, Restored, backup, restore};
pub use inspect::{Inspection, LogSeen, MemberSeen, Position, SnapshotSeen, VoteSeen, inspect};

use std::path::Path;

use crate::error::StoreError;
use crate::store::{Folder, Marker};

/// The folder of a member that exists, or why it is none.
fn existing(dir: &Path) -> Result<(Folder, Marker), StoreError> {
    let marker = Folder::look(dir)?.ok_or_else(|| StoreError::Absent { dir: dir.to_owned() })?;
    Ok((Folder::existing(dir, marker), marker))
}

#[cfg(test)]
mod tests;
