//! How old this member's state may be.
//!
//! The leader knows by itself: nothing can have been committed past it before the moment at which it sent what a quorum
//! last answered. Another member asks the leader ten times a second, and [`Freshness`] makes of the answers an age that
//! is never too low, whatever the clocks and the links do. A member that is cut off goes on answering, ever staler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_proto::v1;
use mainstay_proto::v1::control_client::ControlClient;
use mainstay_raft::{Connector, Group, MEMBERS_MAX};
use mainstay_state::{Freshness, Machine};
use mainstay_types::{LogIndex, Region};
use parking_lot::Mutex;
use tonic::transport::Channel;

const PACE: Duration = Duration::from_millis(100);
/// How long an answer is waited for; further than that no datacenter is.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// The clock begins here, so that what an older member knew before this one was started is a time, too.
const CLOCK_BEGINS_MS: u64 = 1 << 40;

/// What this member knows of ages and places.
pub(crate) struct Place {
    pub(crate) region: Region,
    started: Instant,
    fresh: Mutex<Freshness>,
    /// Members' regions as they last told them.
    regions: Mutex<BTreeMap<u64, String>>,
}

impl Place {
    pub(crate) fn new(region: Region) -> Self {
        Self { region, started: Instant::now(), fresh: Mutex::default(), regions: Mutex::default() }
    }

    fn ms_of(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started).as_millis();
        CLOCK_BEGINS_MS.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// The last applied entry, and how old the state there is at most.
    pub(crate) fn age(&self, group: &Group) -> (LogIndex, Option<u64>) {
        let now = Instant::now();
        let now_ms = self.ms_of(now);
        let leads = group.known_as_leader();
        let applied = group.read(Machine::applied).max(group.status().applied);
        let mut fresh = self.fresh.lock();
        if let Some((committed, ago)) = leads {
            fresh.note(committed, now_ms.saturating_sub(whole_ms(ago)));
        }
        (applied, fresh.age_ms(applied, now_ms))
    }

    /// What a member said of its region.
    pub(crate) fn note_region(&self, member: u64, region: &str) {
        let mut regions = self.regions.lock();
        if Region::new(region).is_some()
            && (regions.len() < MEMBERS_MAX || regions.contains_key(&member))
        {
            regions.insert(member, region.to_owned());
        }
    }

    /// Where a member is, if it ever said so; members that are gone are forgotten.
    pub(crate) fn region_of(&self, member: u64) -> String {
        self.regions.lock().get(&member).cloned().unwrap_or_default()
    }

    pub(crate) fn keep_regions(&self, members: impl Fn(u64) -> bool) {
        self.regions.lock().retain(|id, _| members(*id));
    }
}

/// Whole milliseconds that are not fewer than `duration`.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Asks the leader for as long as the member runs.
pub(crate) async fn run(group: Group, place: Arc<Place>, connector: Connector) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut open: Option<(String, Channel)> = None;
    loop {
        pace.tick().await;
        if group.known_as_leader().is_some() {
            continue;
        }
        let Some(leader) = group.leader_address() else { continue };
        if open.as_ref().is_none_or(|(address, _)| *address != leader) {
            open = connector(&leader).ok().map(|channel| (leader, channel));
        }
        let Some((_, channel)) = &open else { continue };
        let asked = Instant::now();
        let mut client = ControlClient::new(channel.clone());
        let answer = client.freshness(v1::FreshnessRequest {});
        let Ok(Ok(answer)) = tokio::time::timeout(ASK_TIMEOUT, answer).await else { continue };
        let answer = answer.into_inner();
        place.note_region(answer.node, &answer.region);
        if let Some(age_ms) = answer.age_ms {
            let until_ms = place.ms_of(asked).saturating_sub(age_ms.saturating_add(1));
            place.fresh.lock().note(LogIndex(answer.log_index), until_ms);
        }
    }
}
