//! What requests and sessions want kept, from the wire to the engine.
//!
//! All of it is hints: an engine that knows nothing of leases takes a request's ranges as claims without a name, one
//! that knows nothing of retention serves the request all the same, and a change of a lease that comes too late or to
//! the wrong worker is nothing.

use mainstay_engine_abi::sdk::{
    LeaseChange, LeaseEnd, RetentionClass, RetentionRange, TOKENS_TO_END, caps,
};
use mainstay_proto::convert::u128_from_wire;
use mainstay_proto::v1;
use mainstay_types::NamespaceId;
use tonic::Status;

use crate::shared::Shared;

/// The most ranges of a request, as the engines' interface has it.
const RANGES_MAX: usize = mainstay_engine_abi::limits::RANGES_MAX as usize;
/// The most leases of a request.
const LEASES_MAX: usize = mainstay_engine_abi::limits::LEASES_MAX as usize;
/// The most changes of one call.
pub(crate) const CHANGES_MAX: usize = 1_024;

fn invalid(message: impl Into<String>) -> Status {
    Status::invalid_argument(message)
}

/// A request's ranges and the names of its leases, as far as an engine with these capabilities takes them.
pub(crate) fn wishes(
    ranges: &[v1::RetentionRange],
    leases: &[impl AsRef<[u8]>],
    engine: u64,
) -> Result<(Vec<RetentionRange>, Vec<u128>), Status> {
    if leases.len() > LEASES_MAX {
        return Err(invalid(format!("at most {LEASES_MAX} leases")));
    }
    let mut ranges = ranges_from_wire(ranges, leases.len())?;
    let name = |lease: &_| u128_from_wire(AsRef::<[u8]>::as_ref(lease), "lease");
    let leases = leases.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    if engine & caps::RETENTION == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    if engine & caps::LEASE == 0 {
        ranges.iter_mut().for_each(|range| range.lease = 0);
        return Ok((ranges, Vec::new()));
    }
    Ok((ranges, leases))
}

fn ranges_from_wire(
    wire: &[v1::RetentionRange],
    leases: usize,
) -> Result<Vec<RetentionRange>, Status> {
    if wire.len() > RANGES_MAX {
        return Err(invalid(format!("at most {RANGES_MAX} retention ranges")));
    }
    wire.iter().map(|range| range_from_wire(range, leases)).collect()
}

fn range_from_wire(range: &v1::RetentionRange, leases: usize) -> Result<RetentionRange, Status> {
    let priority = u8::try_from(range.priority).ok().filter(|priority| *priority <= 100);
    let priority = priority.ok_or_else(|| invalid("a range's priority is 0 to 100"))?;
    if range.start >= range.end {
        return Err(invalid("a range's end must be after its start"));
    }
    let after = match range.after {
        0 => None,
        after => match u8::try_from(after - 1) {
            Ok(after) if after <= priority => Some(after),
            _ => return Err(invalid("after its time a range is worth no more than before")),
        },
    };
    // A kind that a newer gateway knows is plain here.
    let class = RetentionClass::from_number(range.kind).unwrap_or_default();
    let lease = u8::try_from(range.lease).ok().filter(|lease| usize::from(*lease) <= leases);
    let lease =
        lease.ok_or_else(|| invalid("a range is of a lease that the request does not name"))?;
    let (start, end, duration_ms) = (range.start, range.end, range.duration_ms);
    Ok(RetentionRange { start, end, priority, after, class, lease, duration_ms })
}

/// Has the engine change leases, in order.
pub(crate) async fn change(
    shared: &Shared,
    request: v1::ChangeLeasesRequest,
) -> Result<v1::ChangeLeasesReply, Status> {
    if request.changes.len() > CHANGES_MAX {
        return Err(invalid(format!("at most {CHANGES_MAX} changes in a call")));
    }
    let changes = request.changes.into_iter().map(change_from_wire);
    let changes = changes.collect::<Result<Vec<_>, _>>()?;
    let Some(life) = shared.life().filter(|life| life.caps & caps::LEASE != 0) else {
        return Ok(v1::ChangeLeasesReply {});
    };
    for change in changes {
        if let Some(end) = change.end {
            let_go(shared, &change, end).await;
        }
        if let Err(error) = life.engine.lease(change).await {
            metrics::counter!("mainstay_worker_lease_changes_total", "ended" => "refused")
                .increment(1);
            return Err(Status::unavailable(error.to_string()));
        }
        metrics::counter!("mainstay_worker_lease_changes_total", "ended" => "taken").increment(1);
    }
    Ok(v1::ChangeLeasesReply {})
}

/// The end of a lease for the tiers below: what it alone was known to claim goes first there, too. One that was only
/// released leaves its blocks as they are.
async fn let_go(shared: &Shared, change: &LeaseChange, end: LeaseEnd) {
    let namespace = NamespaceId(change.namespace);
    let gone = shared.leased.lock().end(namespace, change.lease_id);
    if gone.is_empty() || end == LeaseEnd::Released {
        return;
    }
    {
        let mut wants = shared.wants.lock();
        gone.iter().for_each(|block| wants.unclaim(*block));
    }
    if let Some(tiers) = shared.tiers() {
        // A long history is thousands of blocks, and the disk has a lock of its own.
        let told = tokio::task::spawn_blocking(move || tiers.unclaim(namespace, &gone)).await;
        if let Err(error) = told {
            tracing::error!(%error, "the tiers were not told of a lease's end");
        }
    }
}

fn change_from_wire(wire: v1::LeaseChange) -> Result<LeaseChange, Status> {
    let end = match wire.end() {
        v1::LeaseEnd::Unspecified => None,
        v1::LeaseEnd::Released => Some(LeaseEnd::Released),
        v1::LeaseEnd::Finished => Some(LeaseEnd::Finished),
        v1::LeaseEnd::Compacted => Some(LeaseEnd::Compacted),
    };
    let mut ranges = ranges_from_wire(&wire.ranges, 0)?;
    if ranges.is_empty() != end.is_some() {
        return Err(invalid("a lease goes on by its ranges, and ends without"));
    }
    for range in &mut ranges {
        (range.start, range.end) = (0, TOKENS_TO_END);
    }
    let namespace = u128_from_wire(&wire.namespace, "namespace")?;
    let lease_id = u128_from_wire(&wire.lease, "lease")?;
    Ok(LeaseChange { namespace, lease_id, end, ranges })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = caps::RETENTION | caps::LEASE;

    fn range(lease: u32) -> v1::RetentionRange {
        v1::RetentionRange { end: 4, priority: 60, after: 31, kind: 3, lease, ..Default::default() }
    }

    #[test]
    fn wishes_go_as_far_as_the_engine_takes_them() {
        let (ranges, leases) = ([range(1)], [vec![1_u8; 16]]);
        let (taken, names) = wishes(&ranges, &leases, ALL).unwrap();
        assert_eq!(
            (taken[0].lease, taken[0].after, taken[0].class),
            (1, Some(30), RetentionClass::History)
        );
        assert_eq!(names.len(), 1);
        let (taken, names) = wishes(&ranges, &leases, caps::RETENTION).unwrap();
        assert_eq!((taken[0].lease, names.len()), (0, 0));
        assert_eq!(wishes(&ranges, &leases, 0).unwrap(), (vec![], vec![]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let none: [Vec<u8>; 0] = [];
        let of = |range| wishes(&[range], &none, ALL).unwrap_err().code();
        let plain = v1::RetentionRange { lease: 0, ..range(0) };
        assert!(wishes(&[plain], &none, ALL).is_ok());
        for bad in [
            range(1),
            v1::RetentionRange { priority: 101, ..plain },
            v1::RetentionRange { after: 62, ..plain },
            v1::RetentionRange { after: 1000, ..plain },
            v1::RetentionRange { end: 0, ..plain },
        ] {
            assert_eq!(of(bad), tonic::Code::InvalidArgument, "{bad:?}");
        }
        assert!(wishes(&[], &vec![vec![0_u8; 16]; LEASES_MAX + 1], ALL).is_err());
        assert!(wishes(&[], &[vec![0_u8; 15]], ALL).is_err());
        let ended = |end: v1::LeaseEnd, ranges| v1::LeaseChange {
            namespace: vec![0; 16].into(),
            lease: vec![0; 16].into(),
            end: end.into(),
            ranges,
        };
        assert!(change_from_wire(ended(v1::LeaseEnd::Finished, vec![])).is_ok());
        assert!(change_from_wire(ended(v1::LeaseEnd::Finished, vec![plain])).is_err());
        assert!(change_from_wire(ended(v1::LeaseEnd::Unspecified, vec![])).is_err());
        let held = change_from_wire(ended(v1::LeaseEnd::Unspecified, vec![plain])).unwrap();
        assert_eq!((held.ranges[0].start, held.ranges[0].end), (0, TOKENS_TO_END));
    }
}
