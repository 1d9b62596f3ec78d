//! The leader's care for the cluster's version: raised once every member knows a newer one, so that members of two
//! minor versions can share one log for as long as an upgrade takes.
//!
//! Members say in their status what they know. While one says less, or says nothing, the version stays, and whoever
//! asks for what it lacks is told why. Once raised it never goes back: members that know less are refused from then on.

use std::time::Duration;

use futures::future::join_all;
use mainstay_proto::v1;
use mainstay_raft::{Connector, Group, MemberStatus, ProposeError};
use mainstay_state::{VERSION_NEWEST, VERSION_OLDEST};

use crate::founding::ask;

/// Between two looks while the version is not the newest.
const PACE: Duration = Duration::from_millis(500);

/// What a member said that it knows; members from before versions say nothing.
pub(crate) fn known(said: u32) -> u8 {
    u8::try_from(said).map_or(u8::MAX, |version| version.max(VERSION_OLDEST))
}

/// Runs for as long as the member does.
pub(crate) async fn run(group: Group, connector: Connector) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        pace.tick().await;
        if !group.leads() {
            told = None;
            group.note_held_back(None);
            continue;
        }
        // A cluster without its key is only beginning: see `begin`.
        if group.version() >= VERSION_NEWEST || group.read(|m| m.hash_key().is_none()) {
            continue;
        }
        match look(&group, &connector, Silence::Holds).await {
            Ok(why) => {
                if let Some(why) = why.as_ref().filter(|why| told.as_ref() != Some(*why)) {
                    tracing::info!(version = group.version(), why, "the cluster's version stays");
                }
                told.clone_from(&why);
                group.note_held_back(why);
            }
            Err(error) => tracing::debug!(%error, "the cluster's version has to wait"),
        }
    }
}

/// The version of a cluster in which nothing has happened yet. There is nobody to disappoint, so members that do not
/// answer are not waited for.
pub(crate) async fn begin(group: &Group, connector: &Connector) -> Result<(), ProposeError> {
    if group.version() < VERSION_NEWEST {
        let why = look(group, connector, Silence::Ignored).await?;
        group.note_held_back(why);
    }
    Ok(())
}

/// What a member means that does not answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    Holds,
    Ignored,
}

/// Raises the version to what all members know; answers why it stays if it does.
async fn look(
    group: &Group,
    connector: &Connector,
    silence: Silence,
) -> Result<Option<String>, ProposeError> {
    let version = group.version();
    let members = group.status().members;
    let asked = members.iter().map(async |member| (member, what(group, connector, member).await));
    let (mut newest, mut why) = (VERSION_NEWEST, Vec::new());
    for (member, known) in join_all(asked).await {
        let (id, address) = (member.id, &member.address);
        match known {
            Some(known) if known > version => newest = newest.min(known),
            Some(known) => {
                why.push(format!("member {id} at {address} runs version {known}, upgrade it"));
            }
            None if silence == Silence::Ignored => {}
            None => why.push(format!(
                "member {id} at {address} does not answer, start it or take it out with `mainstay control members rm {id}`"
            )),
        }
    }
    if !why.is_empty() {
        return Ok(Some(why.join("; ")));
    }
    group.raise_version(newest).await?;
    Ok(None)
}

/// What a member knows; `None` if it does not answer, or somebody else does at its address.
async fn what(group: &Group, connector: &Connector, member: &MemberStatus) -> Option<u8> {
    if member.id == group.node() {
        return Some(group.knows());
    }
    let answer = ask(connector, &member.address).await?;
    is_member(&answer, member).then(|| known(answer.version))
}

fn is_member(answer: &v1::StatusReply, member: &MemberStatus) -> bool {
    let unknown = member.instance == 0 || answer.instance == 0;
    answer.node == member.id.0 && (unknown || answer.instance == member.instance)
}
