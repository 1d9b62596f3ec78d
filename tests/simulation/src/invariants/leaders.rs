//! One leader for each leader id, and never an older one after a newer.
//!
//! openraft orders leaders by term and member, so that a term may see a second leader with a higher id, but none
//! that comes back. A member that restarts must stand for election again, so that a leader id has one life.

use std::collections::BTreeMap;

use mainstay_proto::convert::proposal_from_wire;

use crate::history::History;

pub(crate) fn check(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut lives: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut last = (0, 0);
    for (index, entry) in &history.log {
        let Some(proposal) = entry.as_ref().and_then(|e| proposal_from_wire(e).ok()) else {
            continue;
        };
        let tenure = proposal.stamp.tenure;
        let leader = (tenure.term, tenure.node);
        if leader < last {
            found.push(format!("entry {index} is of leader {leader:?}, after one of {last:?}"));
        }
        last = last.max(leader);
        let boot = *lives.entry(leader).or_insert(tenure.boot);
        if boot != tenure.boot {
            found.push(format!("leader {leader:?} had two lives, the second at entry {index}"));
        }
    }
    found
}
