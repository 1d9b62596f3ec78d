//! How a group comes to be: one of a list of members founds it, or a new member asks to be taken in.
//!
//! Founding happens once in the life of a cluster. A member whose disk was lost must not found it again, so it
//! first asks the others: if one of them was in a group before, it refuses and says what to do. Each member's data
//! directory is named along, so that the group knows it from any other that takes its id.

use std::time::Duration;

use mainstay_proto::client::ControlPlane;
use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_raft::{Connector, Founder, Group};
use mainstay_types::NodeId;
use tonic::Code;

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
        let mut founders: Vec<Founder> = members.iter().map(founder).collect();
        for Founder { id, address, instance } in founders.iter_mut().filter(|f| f.id != first) {
            match ask(&connector, address).await {
                Some(status) if status.term == 0 && status.last_log_index == 0 => {
                    blank += 1;
                    if status.node == id.0 {
                        *instance = status.instance;
                    }
                }
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
            match group.initialise(&founders).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(%error, "founding the group failed; trying again"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A member of the list, before it was asked for its data directory.
fn founder((id, address): &(NodeId, String)) -> Founder {
    Founder { id: *id, address: address.clone(), instance: 0 }
}

/// What a member says of itself; `None` if it does not answer soon.
pub(crate) async fn ask(connector: &Connector, address: &str) -> Option<v1::StatusReply> {
    let mut client = ControlClient::new(connector(address).ok()?);
    let asked =
        client.status(v1::StatusRequest { local_only: true, ..v1::StatusRequest::default() });
    Some(tokio::time::timeout(ASK_TIMEOUT, asked).await.ok()?.ok()?.into_inner())
}

/// Asks the group behind `members` to take this member in, until it does.
pub(crate) async fn join(
    group: Group,
    advertised: String,
    learner_only: bool,
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
        let instance = group.instance();
        let address = advertised.clone();
        let request = v1::AddMemberRequest {
            id,
            address,
            learner_only,
            instance,
            version: u32::from(group.knows()),
        };
        let asked = plane.call(JOIN_PATIENCE, |mut c| {
            let request = request.clone();
            async move { c.add_member(request).await }
        });
        match asked.await {
            Ok(_) => {
                tracing::info!(member = id, "joined the group");
                return;
            }
            // The id is somebody else's, or was this member's before it lost its disk: asking again is no cure.
            Err(status) if status.code() == Code::AlreadyExists => {
                tracing::error!(member = id, reason = status.message(), "joining is not possible");
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
