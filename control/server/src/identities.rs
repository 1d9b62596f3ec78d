//! The leader's search for data directories that the group does not know yet: those of first members that did not
//! answer when the group was founded, and of members that joined before directories had numbers.
//!
//! Only an unknown number is ever filled in. A number that is known never changes, whoever answers at the
//! member's address.

use std::time::Duration;

use mainstay_raft::{Connector, Group};

use crate::founding::ask;

/// Between two looks; asking costs a call for each member that is not known.
const PACE: Duration = Duration::from_secs(1);

/// Runs for as long as the member does.
pub(crate) async fn run(group: Group, connector: Connector) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if !group.leads() {
            continue;
        }
        for member in group.status().members.into_iter().filter(|m| m.instance == 0) {
            let instance = if member.id == group.node() {
                group.instance()
            } else {
                let answer = ask(&connector, &member.address).await;
                answer.filter(|a| a.node == member.id.0).map_or(0, |a| a.instance)
            };
            if instance == 0 {
                continue;
            }
            match group.learn_instance(member.id, instance).await {
                Ok(()) => tracing::info!(member = %member.id, "its data directory is known now"),
                Err(error) => tracing::debug!(member = %member.id, %error, "not learnt yet"),
            }
        }
    }
}
