//! Leases on blocks.

use std::time::Duration;

use mainstay_engine_abi::sdk::{Pin, caps};

use super::boundary::refused;
use crate::driver::Driver;
use crate::session::Session;
use crate::{Context, Ended, Stop};
use mainstay_engine_abi::sdk::Code;

const PIN_ID: u128 = 0x6b69_745f_7069_6e00;
/// A pin that outlives the case.
const LONG_MS: u64 = 600_000;
const SHORT_MS: u64 = 300;

fn pinned(context: &Context, ttl_ms: u64) -> Result<(Session, Vec<u32>, Vec<u128>), Stop> {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::PIN | caps::KV_EVENTS, "PIN with KV_EVENTS")?;
    let blocks = session.blocks_of_a_prompt().min(4);
    let prompt = session.prompt_of_blocks(blocks);
    let chain = session.blocks_of(&prompt)?;
    let op = session.pin(PIN_ID, &chain, ttl_ms)?;
    if op.rc != 0 || op.done as usize != chain.len() {
        let (rc, done, all) = (op.rc, op.done, chain.len());
        return Err(format!("a pin on {all} held blocks ended with {rc}, {done} done").into());
    }
    Ok((session, prompt, chain))
}

fn kept(session: &Session, chain: &[u128]) -> usize {
    chain.iter().filter(|block| session.cache.held.contains_key(*block)).count()
}

pub(super) fn hold(context: &Context) -> Ended {
    let (mut session, prompt, chain) = pinned(context, LONG_MS)?;
    if session.driver.stats()?.blocks_pinned < chain.len() as u64 {
        return Err("stats counts fewer pinned blocks than were pinned".to_owned().into());
    }
    session.flood(3)?;
    let held = kept(&session, &chain);
    if held != chain.len() {
        return Err(format!(
            "a flood took {} of {} pinned blocks",
            chain.len() - held,
            chain.len()
        )
        .into());
    }
    let removed = chain.iter().filter(|b| session.cache.removed.contains(b)).count();
    if removed > 0 {
        return Err(format!("{removed} pinned blocks were told to be removed").into());
    }
    let cached = session.tell(&prompt, 1)?.cached_tokens;
    let due = chain.len() as u32 * session.info().block_tokens;
    if cached != due {
        return Err(format!("after a flood {cached} tokens of {due} pinned ones were hit").into());
    }
    if session.cache.expired.contains(&PIN_ID) {
        return Err("a pin of ten minutes expired within the case".to_owned().into());
    }
    Ok(vec![("blocks".into(), chain.len().to_string())])
}

pub(super) fn expire(context: &Context) -> Ended {
    let (mut session, _, chain) = pinned(context, SHORT_MS)?;
    session.read_until("MSE_KV_PIN_EXPIRED", |s| s.cache.expired.contains(&PIN_ID))?;
    gone(&mut session, &chain, "a pin that expired")
}

pub(super) fn unpin(context: &Context) -> Ended {
    let (mut session, _, chain) = pinned(context, LONG_MS)?;
    let op = session.operate("an unpin's end", |driver, op| driver.unpin(op, PIN_ID))?;
    if op.rc != 0 {
        return Err(format!("an unpin ended with {}", op.rc).into());
    }
    if session.driver.stats()?.blocks_pinned != 0 {
        return Err("stats counts pinned blocks after the only pin was ended".to_owned().into());
    }
    gone(&mut session, &chain, "a pin that was ended")
}

/// What nothing holds any more has to leave a cache that is filled over and over.
fn gone(session: &mut Session, chain: &[u128], what: &str) -> Ended {
    session.flood(3)?;
    let held = kept(session, chain);
    if held > 0 {
        return Err(format!("{what} still held {held} blocks through a flood").into());
    }
    Ok(Vec::new())
}

/// Pins that come and go, one operation after another.
const TURNS: u128 = 24;

pub(super) fn ops(context: &Context) -> Ended {
    let (mut session, _, chain) = pinned(context, LONG_MS)?;
    for turn in 0..TURNS {
        let id = PIN_ID + 1 + turn % 3;
        let op = session.pin(id, &chain, LONG_MS)?;
        if op.rc != 0 {
            return Err(format!("pin {turn} ended with {}", op.rc).into());
        }
        if turn % 2 == 1 {
            session.operate("an unpin's end", |driver, op| driver.unpin(op, id))?;
        }
    }
    session.settle()?;
    Ok(vec![("operations".into(), (TURNS + TURNS / 2 + 1).to_string())])
}

pub(super) fn bad(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::PIN, "PIN")?;
    let sound = Pin { op_id: 1, pin_id: PIN_ID, blocks: vec![1], ttl_ms: 1000, priority: 50 };
    let driver = &session.driver;
    let endless = Pin { ttl_ms: 0, ..sound.clone() };
    refused(driver.pin(&endless, |_| {}), "a pin without a time", &[Code::Invalid])?;
    let result = driver.pin(&sound, |raw| raw.priority = 101);
    refused(result, "a pin of priority 101", &[Code::Invalid])?;
    let result = driver.pin(&sound, |raw| raw.blocks_len = 1 << 40);
    refused(result, "a pin of more blocks than the header allows", &[Code::Invalid])?;
    let result = driver.pin(&sound, |raw| raw._reserved = 1);
    refused(result, "a reserved field of a pin", &[Code::Invalid, Code::TooNew])?;
    // Blocks that are not there may come: the pin is taken, with nothing done yet, or refused in words.
    let op = session.pin(PIN_ID, &[1, 2, 3], 60_000)?;
    if op.done != 0 {
        return Err(format!("{} of three blocks that never were are pinned", op.done).into());
    }
    let unknown = session
        .operate("the unpin of an unknown pin", |driver: &Driver, op| driver.unpin(op, PIN_ID + 1));
    if let Err(Stop::Fault(fault)) = unknown
        && !fault.contains("refused")
    {
        return Err(Stop::Fault(fault));
    }
    session.pump(Duration::ZERO)?;
    Ok(Vec::new())
}
