//! Leases: what sessions want kept, renewed, changed and ended by name.

use std::collections::HashSet;

use mainstay_engine_abi::sdk::{
    Code, EngineError, Finish, LeaseChange, LeaseEnd, RetentionClass, RetentionRange,
    TOKENS_TO_END, caps,
};

use crate::session::{NAMESPACE_OF_ALL, Session};
use crate::{Context, Ended, Stop};

/// Long enough for any case.
const MINUTES_MS: u32 = 600_000;

fn range(priority: u8) -> RetentionRange {
    RetentionRange {
        end: TOKENS_TO_END,
        priority,
        after: Some(priority.min(30)),
        class: RetentionClass::History,
        lease: 1,
        duration_ms: MINUTES_MS,
        ..RetentionRange::default()
    }
}

/// Computes a prompt under a lease, and says which blocks came of it.
fn leased(session: &mut Session, lease: u128, priority: u8) -> Result<HashSet<u128>, Stop> {
    let blocks = session.blocks_of_a_prompt().min(4);
    let prompt = session.prompt_of_blocks(blocks);
    let before: HashSet<u128> = session.cache.held.keys().copied().collect();
    let mut request = session.request(prompt, 1);
    request.ranges = vec![range(priority)];
    request.leases = vec![lease];
    let told = session.generate(&request)?;
    if told.finish != Some(Finish::Length) {
        return Err(format!("a request with a lease ended as {:?}", told.finish).into());
    }
    session.settle()?;
    let made = session.cache.held.keys().filter(|block| !before.contains(*block));
    Ok(made.copied().collect())
}

fn held(session: &Session, blocks: &HashSet<u128>) -> usize {
    blocks.iter().filter(|block| session.cache.held.contains_key(*block)).count()
}

fn change(lease_id: u128, end: Option<LeaseEnd>) -> LeaseChange {
    let ranges =
        if end.is_none() { vec![RetentionRange { lease: 0, ..range(90) }] } else { vec![] };
    LeaseChange { namespace: NAMESPACE_OF_ALL.0, lease_id, end, ranges }
}

fn refused(error: EngineError) -> Stop {
    Stop::Fault(format!("a change of a lease was refused: {error}"))
}

pub(super) fn keep(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::LEASE | caps::KV_EVENTS, "LEASE with KV_EVENTS")?;
    let (kept, ended) = (leased(&mut session, 1, 90)?, leased(&mut session, 2, 90)?);
    session.driver.lease(&change(2, Some(LeaseEnd::Finished)), |_| {}).map_err(refused)?;
    session.flood(1)?;
    let (still, gone) = (held(&session, &kept), ended.len() - held(&session, &ended));
    if still < kept.len() || gone < ended.len() {
        return Err(format!(
            "after a flood {still} of {} leased blocks are held, and {gone} of {} of an ended lease gone",
            kept.len(),
            ended.len()
        )
        .into());
    }
    session.driver.lease(&change(1, Some(LeaseEnd::Compacted)), |_| {}).map_err(refused)?;
    session.flood(1)?;
    match held(&session, &kept) {
        0 => Ok(vec![("kept, then let go".into(), kept.len().to_string())]),
        left => Err(format!("{left} blocks of a lease that had ended outlast a flood").into()),
    }
}

pub(super) fn amend(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::LEASE | caps::KV_EVENTS, "LEASE with KV_EVENTS")?;
    // Worth less than anything, until it is amended.
    let (raised, low) = (leased(&mut session, 1, 5)?, leased(&mut session, 2, 5)?);
    session.driver.lease(&change(1, None), |_| {}).map_err(refused)?;
    session.flood(1)?;
    let (still, left) = (held(&session, &raised), held(&session, &low));
    if still < raised.len() || left > 0 {
        let (all, others) = (raised.len(), low.len());
        return Err(format!(
            "after a flood {still} of {all} amended blocks are held, and {left} of {others} of low ones"
        )
        .into());
    }
    Ok(vec![("kept".into(), still.to_string())])
}

pub(super) fn bad(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::LEASE, "LEASE")?;
    let end = change(7, Some(LeaseEnd::Released));
    let amended = change(7, None);
    session.driver.lease(&end, |_| {}).map_err(refused)?;
    session.driver.lease(&amended, |_| {}).map_err(refused)?;
    let driver = &session.driver;
    let nonsense = [
        ("no such change", driver.lease(&end, |raw| raw.how = 9), Code::Invalid),
        ("an end with ranges", driver.lease(&amended, |raw| raw.how = 3), Code::Invalid),
        ("an amendment without", driver.lease(&end, |raw| raw.how = 1), Code::Invalid),
        ("a reserved field", driver.lease(&end, |raw| raw._reserved = 1), Code::TooNew),
        ("a flag", driver.lease(&end, |raw| raw.h.flags = 1), Code::TooNew),
    ];
    for (what, outcome, code) in nonsense {
        match outcome {
            Err(error) if error.rc == code => {}
            other => return Err(format!("{what} came to {other:?}, not to {code:?}").into()),
        }
    }
    let prompt = session.prompt(20);
    let mut request = session.request(prompt, 1);
    request.ranges = vec![RetentionRange { lease: 2, ..range(50) }];
    request.leases = vec![1];
    match session.try_submit(&request)? {
        Err(error) if error.rc == Code::Invalid => {}
        other => return Err(format!("a range of no lease came to {other:?}").into()),
    }
    let prompt = session.prompt(20);
    session.tell(&prompt, 1)?;
    Ok(vec![])
}
