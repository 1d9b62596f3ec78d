//! How a group comes to be: one of a list of members founds it, or a new member asks to be taken in.
//!
//! Founding happens once in the life of a cluster. A member whose disk was lost must not found it again, so it
//! first asks the others: if one of them was in a group before, it refuses and says what to do.

use std::time::Duration;

use mainstay_proto::client::ControlPlane;
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_raft::{Connector, Group};
use mainstay_types::NodeId;

const PAUSE: Duration = Duration::from_millis(100);
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// One attempt to join; attempts go on until one succeeds.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// Founds the group if this member is the one to do it and a majority has never been in one.
pub(crate) async fn found(group: Group, members: Vec<(NodeId, String)>, connector: Connector) {
    let Some(first) = members.iter().map(|(id, _)| *id).min() else { return };
    if first != group.node() {
        return;
    }
    loop {
        match group.is_initialised().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        let mut blank = 1;
        for (id, address) in members.iter().filter(|(id, _)| *id != first) {
            match ask(&connector, address).await {
                Some(status) if status.term == 0 && status.last_log_index == 0 => blank += 1,
                Some(_) => {
                    tracing::error!(
                        member = %first,
                        "the data directory is empty, but member {id} at {address} is in a group already; \
                         take this member out with `mainstay control members rm {first}` and start it anew \
                         with --join and an id that was never used"
                    );
                    return;
                }
                None => {}
            }
        }
        if blank * 2 > members.len() {
            match group.initialise(&members).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(%error, "founding the group failed; trying again"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(connector: &Connector, address: &str) -> Option<v1::StatusReply> {
    let mut client = ControlClient::new(connector(address).ok()?);
    let asked = client.status(v1::StatusRequest { local_only: true });
    Some(tokio::time::timeout(ASK_TIMEOUT, asked).await.ok()?.ok()?.into_inner())
}

/// Asks the group behind `members` to take this member in, until it does.
pub(crate) async fn join(
    group: Group,
    advertised: String,
    members: Vec<String>,
    connector: Connector,
) {
    let plane = match ControlPlane::with_connector(&members, connector) {
        Ok(plane) => plane,
        Err(error) => {
            tracing::error!(reason = error.message(), "joining is not possible");
            return;
        }
    };
    let id = group.node().0;
    loop {
        match group.is_initialised().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        let request = v1::AddMemberRequest { id, address: advertised.clone(), learner_only: false };
        let asked = plane.call(JOIN_PATIENCE, |mut c| {
            let request = request.clone();
            async move { c.add_member(request).await }
        });
        match asked.await {
            Ok(_) => {
                tracing::info!(member = id, "joined the group");
                return;
            }
            Err(status) => {
                tracing::warn!(
                    member = id,
                    reason = status.message(),
                    "joining failed; trying again"
                );
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
