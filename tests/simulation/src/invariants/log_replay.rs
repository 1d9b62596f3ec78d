//! The log, applied once more to a machine of our own: the oracle of digests and outcomes, the budgets (P7) at
//! every index, and cluster time beside true time.

use std::collections::BTreeMap;

use mainstay_proto::convert::proposal_from_wire;
use mainstay_state::{Machine, Outcome};
use mainstay_types::{ClusterTime, Command, LogIndex, PinId, TenantId};

use crate::history::History;
use crate::member::START;

/// How much later than its process a member's clock may have started.
const START_MS: u64 = 50;

/// What a command is about, as far as safeguards that are taken away leave it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum About {
    Put(PinId),
    Extend(PinId),
    Release(PinId),
    Other,
}

impl About {
    fn of(command: &Command) -> Self {
        match command {
            Command::PutPin(request) => Self::Put(request.id),
            Command::ExtendPin { id, .. } => Self::Extend(*id),
            Command::ReleasePin { id } => Self::Release(*id),
            _ => Self::Other,
        }
    }

    pub(crate) fn same_as(&self, command: &Command) -> bool {
        *self == Self::of(command)
    }
}

/// What a replay of the log gives.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// The state's digest after each entry.
    pub(crate) digests: BTreeMap<u64, u128>,
    pub(crate) outcomes: BTreeMap<u64, (About, Outcome)>,
    pub(crate) leaderships: usize,
    /// Budgets that were exceeded.
    pub(crate) quotas: Vec<String>,
    /// Where cluster time left the truth by more than it may.
    pub(crate) times: Vec<String>,
}

pub(crate) fn replay(history: &History) -> Replay {
    let mut replay = Replay::default();
    let mut machine = Machine::new(history.limits);
    // Cluster time counts from 1970, true time from the start.
    let origin_ms = u64::try_from(START.as_millis()).expect("a small constant");
    // A replay ends where an entry is missing that no member was seen with.
    let first = history.log.keys().next().copied().unwrap_or(0);
    let logged = history.log.iter().zip(first..).take_while(|((index, _), at)| **index == *at);
    for ((index, entry), _) in logged {
        // Raft's own entries leave the state as it is.
        let Some(entry) = entry else { continue };
        let Ok(proposal) = proposal_from_wire(entry) else { continue };
        let before = machine.time();
        let outcome = machine.apply(LogIndex(*index), &proposal);
        replay.outcomes.insert(*index, (About::of(&proposal.command), outcome));
        replay.digests.insert(*index, machine.digest());
        replay.leaderships += usize::from(before.tenure != proposal.stamp.tenure);
        check_quotas(&machine, *index, &mut replay.quotas);
        if let Some(stamped_ms) = history.stamped_ms(&machine.time()) {
            check_time(&machine, *index, stamped_ms + origin_ms, &mut replay.times);
        }
    }
    replay
}

fn check_quotas(machine: &Machine, index: u64, found: &mut Vec<String>) {
    let limits = machine.limits();
    let mut pins: BTreeMap<&TenantId, u32> = BTreeMap::new();
    let mut blocks = 0;
    for pin in machine.pins().filter(|pin| pin.is_live()) {
        *pins.entry(&pin.request.tenant).or_default() += 1;
        blocks += pin.request.blocks.len() as u64;
    }
    let live: u32 = pins.values().sum();
    if live > limits.pins_max || blocks > limits.pinned_blocks_max {
        found.push(format!("at entry {index}, {live} pins of {blocks} blocks lived"));
    }
    for (tenant, count) in pins {
        let named = machine.tenant_pinned_blocks(tenant);
        if count > limits.pins_per_tenant_max || named > limits.pinned_blocks_per_tenant_max {
            found.push(format!(
                "at entry {index}, tenant {tenant:?} had {count} pins of {named} blocks"
            ));
        }
    }
}

/// Time is never ahead of the truth, and at most two skews behind it.
fn check_time(machine: &Machine, index: u64, true_ms: u64, found: &mut Vec<String>) {
    let now_ms = machine.time().now_ms;
    let behind_ms = 2 * ClusterTime::SKEW_MS_MAX + START_MS;
    if now_ms > true_ms + START_MS || now_ms + behind_ms < true_ms {
        found.push(format!("at entry {index}, time was {now_ms} while it was {true_ms}"));
    }
}
