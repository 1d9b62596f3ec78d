//! A cache and a queue that are full.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use mainstay_engine_abi::raw::{AGES_TOLD, MseAges};
use mainstay_engine_abi::sdk::{Finish, RetentionRange, TOKENS_TO_END, caps};

use crate::session::Session;
use crate::{Context, Ended, Stop};

/// How often, and how far apart, the queue is looked at until somebody waits in it: two seconds, since the engine's
/// thread may not run for a while on a machine with other work.
const LOOKS: u32 = 4_000;
const LOOK: Duration = Duration::from_micros(500);

pub(super) fn evict(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::KV_EVENTS, "KV_EVENTS")?;
    session.flood(3)?;
    super::cache::room(&session)?;
    if session.cache.removed.is_empty() {
        return Err("three times the cache was computed, and nothing was REMOVED"
            .to_owned()
            .into());
    }
    // What is held by the events is hit, what is not is not, under pressure as at rest.
    let block = session.info().block_tokens as usize;
    let prompt = session.prompt_of_blocks(3);
    let chain = session.blocks_of(&prompt)?;
    session.flood(1)?;
    let held = chain.iter().take_while(|b| session.cache.held.contains_key(*b)).count();
    let cached = session.tell(&prompt, 1)?.cached_tokens as usize;
    if cached != held * block {
        let due = held * block;
        return Err(
            format!("after a flood events leave {due} tokens, the request hit {cached}").into()
        );
    }
    Ok(vec![
        ("most blocks".into(), session.cache.device_most.to_string()),
        ("removed".into(), session.cache.removed.len().to_string()),
    ])
}

/// How long a block lies until it is hit, so that its age in a wrong unit is more than the engine's own.
const REST: Duration = Duration::from_millis(50);
/// Two clocks that are rounded are apart by no more.
const CLOCKS_MS: u64 = 5;

/// Ages of which none can be older than the engine, and whose sum is one that their powers of two can have.
fn check_ages(what: &str, ages: &MseAges, begun: Instant) -> Result<u64, Stop> {
    let life_ms = begun.elapsed().as_millis() as u64 + CLOCKS_MS;
    let (mut count, mut least_ms, mut most_ms) = (0_u64, 0_u64, 0_u64);
    for (power, many) in ages.by_power.iter().enumerate().filter(|(_, many)| **many > 0) {
        let from_ms = if power == 0 { 0 } else { 1 << (power - 1) };
        if from_ms > life_ms {
            let reason = format!("{what}: {many} blocks were {from_ms} ms old after {life_ms} ms");
            return Err(reason.into());
        }
        count = count.saturating_add(*many);
        least_ms = least_ms.saturating_add(many.saturating_mul(from_ms));
        most_ms = most_ms.saturating_add(many.saturating_mul(from_ms.saturating_mul(2)));
    }
    if ages.sum_ms < least_ms || ages.sum_ms > most_ms {
        let sum_ms = ages.sum_ms;
        let reason =
            format!("{what}: {count} ages come to {least_ms} to {most_ms}, not {sum_ms} ms");
        return Err(reason.into());
    }
    Ok(count)
}

pub(super) fn ages(context: &Context) -> Ended {
    let begun = Instant::now();
    let mut session = Session::new(context)?;
    match session.driver.stats()?.ages {
        AGES_TOLD => {}
        0 => return Err(Stop::NotOffered("it keeps no ages of blocks".into())),
        other => return Err(format!("mse_stats has the unknown flags of ages {other:#x}").into()),
    }
    let prompt = session.prompt_of_blocks(3);
    session.tell(&prompt, 1)?;
    session.settle()?;
    std::thread::sleep(REST);
    let block = u64::from(session.info().block_tokens);
    let found = u64::from(session.tell(&prompt, 1)?.cached_tokens) / block;
    session.flood(2)?;
    session.settle()?;
    let stats = session.driver.stats()?;
    let hits = check_ages("age_at_hit", &stats.age_at_hit, begun)?;
    if hits < found {
        return Err(format!("{found} blocks were hit, and the ages of {hits} are told").into());
    }
    let mut went = 0;
    for (cause, ages) in stats.age_at_eviction.iter().enumerate() {
        went += check_ages(&format!("age_at_eviction of cause {cause}"), ages, begun)?;
    }
    if went != stats.evictions {
        let evictions = stats.evictions;
        return Err(format!("{evictions} blocks went, and the ages of {went} are told").into());
    }
    Ok(vec![("hit".into(), hits.to_string()), ("went".into(), went.to_string())])
}

pub(super) fn priority(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::PRIORITY, "PRIORITY")?;
    let most = session.info().requests_max as usize;
    let mut low = Vec::new();
    let tokens_max = (session.info().context_tokens_max / 4).clamp(1, 400);
    // More than run at once, as far as the engine admits them.
    for _ in 0..(most * 3).min(1000) {
        let prompt = session.prompt(40);
        let mut request = session.request(prompt, tokens_max);
        request.priority = -1;
        if session.try_submit(&request)?.is_err() {
            break;
        }
        low.push(request.id);
    }
    // A queue counts them once its thread has seen them.
    let mut stats = session.driver.stats()?;
    for _ in 0..LOOKS {
        if stats.waiting > 0 {
            break;
        }
        std::thread::sleep(LOOK);
        stats = session.driver.stats()?;
    }
    if stats.waiting == 0 {
        return Err(Stop::NotOffered(format!(
            "{} requests were admitted and none had to wait",
            low.len()
        )));
    }
    let prompt = session.prompt(40);
    let mut urgent = session.request(prompt, 2);
    urgent.priority = 100;
    session.submit(&urgent)?;
    session.finish_all()?;
    let place = |session: &Session, id| session.ledger.told(id).map_or(0, |told| told.place);
    let own = place(&session, urgent.id);
    let before = low.iter().filter(|id| place(&session, **id) < own).count();
    let waited = stats.waiting as usize;
    // Those that ran already may end first; those that waited may not.
    let ran = low.len() - waited.min(low.len());
    if before > ran + waited / 2 {
        return Err(format!(
            "an urgent request ended after {before} of {} neutral ones, of which {waited} waited",
            low.len()
        )
        .into());
    }
    Ok(vec![("ended before it".into(), format!("{before} of {}", low.len()))])
}

pub(super) fn retention(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::RETENTION | caps::KV_EVENTS, "RETENTION with KV_EVENTS")?;
    let blocks = session.blocks_of_a_prompt().min(4);
    let mut chains: [HashSet<u128>; 2] = Default::default();
    for (chain, priority) in chains.iter_mut().zip([90_u8, 5]) {
        let prompt = session.prompt_of_blocks(blocks);
        let before: HashSet<u128> = session.cache.held.keys().copied().collect();
        let mut request = session.request(prompt, 1);
        let range = RetentionRange { end: TOKENS_TO_END, priority, ..RetentionRange::default() };
        request.ranges = vec![range];
        let told = session.generate(&request)?;
        if told.finish != Some(Finish::Length) {
            return Err(format!("a request with a range ended as {:?}", told.finish).into());
        }
        session.settle()?;
        chain.extend(session.cache.held.keys().filter(|block| !before.contains(*block)));
    }
    // Once the cache over: something has to go, and what was asked to stay stays longer.
    session.flood(1)?;
    let kept = chains
        .each_ref()
        .map(|chain| chain.iter().filter(|b| session.cache.held.contains_key(*b)).count());
    let (high, low) = (kept[0], kept[1]);
    if high < low || (high < chains[0].len() && low > 0) || (high == 0 && !chains[0].is_empty()) {
        return Err(format!(
            "after a flood {high} of {} blocks of priority 90 are held, and {low} of {} of priority 5",
            chains[0].len(),
            chains[1].len()
        )
        .into());
    }
    Ok(vec![("kept".into(), format!("priority 90: {high}, priority 5: {low}"))])
}
