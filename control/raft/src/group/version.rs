//! The cluster's version at this member: which commands it may propose, and raising it.
//!
//! Whether all members know a newer version is for the caller to find out; here a command is held against the version
//! that the log has reached. A leader that has yet to apply what was agreed on before its term waits until it has.

use std::sync::atomic::Ordering;

use mainstay_state::{NewerCommand, Outcome, VERSION_NEWEST, fit};
use mainstay_types::Command;
use openraft::async_runtime::watch::WatchReceiver;

use super::Group;
use crate::error::ProposeError;

impl Group {
    /// The version of the cluster, as this member has applied it.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.inner.shared.version.load(Ordering::Acquire)
    }

    /// The newest version that this member agrees to.
    #[must_use]
    pub fn knows(&self) -> u8 {
        self.inner.version_max
    }

    /// Lets the log say what `version` knows, for ever. Every member must know it.
    pub async fn raise_version(&self, version: u8) -> Result<u8, ProposeError> {
        match self.propose(Command::RaiseVersion { version }).await? {
            (_, Outcome::Raised { version }) => Ok(version),
            _ => Err(ProposeError::Unavailable("the version was not raised")),
        }
    }

    /// Notes why the version is not raised, for those whose commands have to wait for it.
    pub fn note_held_back(&self, why: Option<String>) {
        *self.inner.held_back.lock() = why;
    }

    /// The entry by which a new leadership begins: a tick, or what makes a member without others speak its own version.
    pub(super) fn barrier(&self) -> Command {
        let alone = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.nodes().all(|(id, _)| *id == self.inner.node)
        };
        if alone && self.version() < self.knows() {
            return Command::RaiseVersion { version: self.knows() };
        }
        Command::Tick
    }

    /// The commands as the cluster's version has them, or why they can't be had.
    pub(super) async fn fit(&self, commands: Vec<Command>) -> Result<Vec<Command>, ProposeError> {
        let fits = |version| commands.iter().all(|c| matches!(fit(version, c), Ok(None)));
        if self.version() >= VERSION_NEWEST || fits(self.version()) {
            return Ok(commands);
        }
        // An entry before this term may have raised it.
        self.serving().await?;
        let version = self.version();
        let fitted = commands.into_iter().map(|command| match fit(version, &command) {
            Ok(fitted) => Ok(fitted.unwrap_or(command)),
            Err(newer) => Err(self.held_back(newer)),
        });
        fitted.collect()
    }

    fn held_back(&self, newer: NewerCommand) -> ProposeError {
        match self.inner.held_back.lock().clone() {
            Some(why) => ProposeError::Newer { newer, why },
            None => ProposeError::Unavailable("the members are being asked for their versions"),
        }
    }
}
