//! Who may call what on a secured member.
//!
//! Rights hang on the role in the caller's certificate. A worker besides may speak for itself only: it registers
//! under the name in its certificate, and publishes and leaves as the worker of that name. What is not listed
//! here nobody may call, so a new method is closed until it has a line.

use mainstay_identity::{Peer, Role};
use mainstay_raft::Group;
use mainstay_types::WorkerId;
use tonic::Status;

/// The roles that may call the method at `path`.
pub(crate) fn allowed(path: &str) -> &'static [Role] {
    use Role::{Admin, Control, Gateway, Worker};
    if path.starts_with("/mainstay.v1.Raft/") {
        return &[Control];
    }
    match path.strip_prefix("/mainstay.v1.Control/").unwrap_or_default() {
        "Register" | "Publish" | "Leave" | "PinTokens" => &[Worker],
        "Watch" | "Freshness" => &[Gateway, Worker, Control, Admin],
        "GetPin" => &[Gateway, Worker, Admin],
        "CreatePin" | "ExtendPin" | "ReleasePin" | "WritePins" | "ListPins" => &[Gateway, Admin],
        // What was said is for those who answer with it.
        "PutResponse" | "GetResponse" | "EndResponse" => &[Gateway],
        "Status" => &[Gateway, Control, Admin],
        "AddMember" | "RemoveMember" | "TransferLeader" => &[Control, Admin],
        "PutTenant" | "RemoveTenant" | "ListTenants" | "PutKey" | "RemoveKey" => &[Admin],
        "PutJoinToken" | "ListJoinTokens" | "RemoveJoinToken" => &[Admin],
        "Join" => &[Control, Gateway, Worker, Admin],
        _ => &[],
    }
}

/// Whether the method at `path` needs no certificate: a node that joins has none yet, and shows its token instead.
pub(crate) fn open(path: &str) -> bool {
    path == "/mainstay.v1.Control/Join"
}

/// Refuses a worker that registers under another's name.
pub(crate) fn own_name(caller: Option<&Peer>, name: &str) -> Result<(), Status> {
    match caller {
        Some(peer) if peer.node != name => Err(Status::permission_denied(format!(
            "the certificate is worker {}'s, and it registers as {name:?}; start it with --name {}",
            peer.node, peer.node
        ))),
        _ => Ok(()),
    }
}

/// Refuses a worker that speaks for another. A worker that this member does not know is refused later, for that.
pub(crate) fn own_worker(
    caller: Option<&Peer>,
    group: &Group,
    worker: WorkerId,
) -> Result<(), Status> {
    let Some(peer) = caller else { return Ok(()) };
    let same = group.read(|m| m.worker(worker).is_none_or(|w| w.name == peer.node));
    if same {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the certificate is worker {}'s, and worker {worker} is another",
        peer.node
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every method of the service definitions, so that none is closed by oversight.
    #[test]
    fn every_method_is_open_to_somebody_and_raft_to_members_only() {
        let text = [
            include_str!("../../../proto/mainstay/v1/control.proto"),
            include_str!("../../../proto/mainstay/v1/raft.proto"),
        ];
        for (service, text) in ["Control", "Raft"].into_iter().zip(text) {
            let methods: Vec<&str> = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
                .collect();
            assert!(methods.len() >= 5, "{methods:?}");
            for method in methods {
                let roles = allowed(&format!("/mainstay.v1.{service}/{method}"));
                assert!(!roles.is_empty(), "nobody may call {method}");
                if service == "Raft" {
                    assert_eq!(roles, [Role::Control]);
                }
            }
        }
        assert!(open("/mainstay.v1.Control/Join") && !open("/mainstay.v1.Raft/Join"));
        assert!(!open("/mainstay.v1.Control/Status"));
        assert!(allowed("/mainstay.v1.Control/Nothing").is_empty());
        assert!(allowed("/mainstay.v1.Raft").is_empty());
    }
}
