//! The cluster's version: what its log and its images may say, so that members of two minor versions can share one log.
//!
//! A log begins at [`VERSION_OLDEST`] and is raised by an entry of its own, once every member knows the newer version.
//! Until then a command that an older member could not read is refused, and a field that it would not see is left out:
//! both here, so that a member that proposes and a member that applies can't differ.

use mainstay_types::{Command, PinRequest, PinScope, Region};
use thiserror::Error;

/// The version in which every log begins, and the oldest that this program reads and writes.
pub const VERSION_OLDEST: u8 = 3;
/// The newest version that this program knows; an image's first byte, as is every version.
pub const VERSION_NEWEST: u8 = 4;

/// The first version with regions, scopes, kept tokens, orders, tenants, join tokens and stored responses.
pub const TENANTS_AND_REGIONS: u8 = 4;
/// As many workers as members before [`TENANTS_AND_REGIONS`] take, whatever the limits say.
const WORKERS_MAX_BEFORE: u32 = 4_096;

/// A command that members of the cluster's version could not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this needs version {needed} of the cluster, which is at version {version}")]
pub struct NewerCommand {
    /// The version that it came with.
    pub needed: u8,
    /// The version of the cluster.
    pub version: u8,
}

/// What a cluster of `version` makes of a command: as it is (`None`), or without what its older members don't see. A
/// region and a scope become [`Region::LOCAL`], tokens are not kept: that is what an older leader would do with the
/// same request, so a caller gets the same from either, and the answer shows it.
///
/// # Errors
/// If older members could not read the command at all.
pub fn fit(version: u8, command: &Command) -> Result<Option<Command>, NewerCommand> {
    if version >= TENANTS_AND_REGIONS {
        return Ok(None);
    }
    match command {
        Command::PutPin(request) if !is_plain(request) => Ok(Some(Command::PutPin(plain(request)))),
        Command::RegisterWorker { region, .. } if *region != Region::default() => {
            let mut command = command.clone();
            if let Command::RegisterWorker { region, .. } = &mut command {
                *region = Region::default();
            }
            Ok(Some(command))
        }
        Command::OrderPin { .. }
        | Command::PutTenant { .. }
        | Command::RemoveTenant { .. }
        | Command::PutKey { .. }
        | Command::RemoveKey { .. }
        | Command::PutJoinToken(_)
        | Command::UseJoinToken(_)
        | Command::RemoveJoinToken { .. }
        | Command::PutResponse(_)
        | Command::EndResponse { .. } => Err(NewerCommand { needed: TENANTS_AND_REGIONS, version }),
        // By name, so that a new command has to be thought about.
        Command::Tick
        | Command::Bootstrap { .. }
        | Command::RegisterWorker { .. }
        | Command::FenceWorker { .. }
        | Command::Blocks(_)
        | Command::PutPin(_)
        | Command::ExtendPin { .. }
        | Command::ReleasePin { .. }
        | Command::ReportPin { .. }
        | Command::Cut(_)
        | Command::RaiseVersion { .. } => Ok(None),
    }
}

fn is_plain(request: &PinRequest) -> bool {
    request.tokens.is_none() && request.scope == PinScope::default()
}

/// A pin's request without what came with [`TENANTS_AND_REGIONS`].
pub(crate) fn plain(request: &PinRequest) -> PinRequest {
    PinRequest { tokens: None, scope: PinScope::default(), ..request.clone() }
}

/// How many workers a cluster of `version` takes.
pub(crate) fn workers_max(version: u8, limit: u32) -> u32 {
    if version >= TENANTS_AND_REGIONS { limit } else { limit.min(WORKERS_MAX_BEFORE) }
}

#[cfg(test)]
mod tests;
