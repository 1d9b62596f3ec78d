//! Cancelling, slow readers, many threads.

use std::time::{Duration, Instant};

use mainstay_engine_abi::raw::{LANE_OUT, OK};
use mainstay_engine_abi::sdk::{Code, Finish, caps};

use crate::session::Session;
use crate::{Context, Ended, Stop};

fn long(session: &Session, most: u32) -> u32 {
    let info = session.info();
    let room = info.blocks_total.saturating_mul(u64::from(info.block_tokens)) / 4;
    let room = u32::try_from(room).unwrap_or(u32::MAX).max(1);
    (info.context_tokens_max / 2).clamp(1, most).min(room)
}

pub(super) fn cancel(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.cancel(u64::MAX);
    let mut cancelled = 0;
    for round in 0..100 {
        let prompt = session.prompt(24);
        let tokens_max = long(&session, 50_000);
        let request = session.request(prompt, tokens_max);
        session.submit(&request)?;
        for _ in 0..session.rng.below(4) {
            session.pump(Duration::from_micros(200))?;
        }
        session.driver.cancel(request.id);
        if round % 3 == 0 {
            session.driver.cancel(request.id);
        }
        if round % 5 == 0 {
            session.finish_all()?;
            session.driver.cancel(request.id);
        }
    }
    let begun = Instant::now();
    session.finish_all()?;
    let took = begun.elapsed();
    session.settle()?;
    for id in 2..session.id() {
        let Some(told) = session.ledger.take(id) else { continue };
        match told.finish {
            Some(Finish::Cancelled) => cancelled += 1,
            Some(Finish::Length | Finish::Stop) => {}
            other => return Err(format!("cancelled request {id} ended as {other:?}").into()),
        }
    }
    if cancelled == 0 {
        return Err("100 long requests were cancelled, and none ended as such".to_owned().into());
    }
    Ok(vec![
        ("cancelled".into(), cancelled.to_string()),
        ("last end".into(), format!("{took:.1?}")),
    ])
}

pub(super) fn slow_reader(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let tokens_max = long(&session, 2000);
    let mut ids = Vec::new();
    for _ in 0..session.info().requests_max.min(16) {
        let prompt = session.prompt(16);
        let request = session.request(prompt, tokens_max);
        match session.try_submit(&request)? {
            Ok(()) => ids.push(request.id),
            // Nobody reads: an engine may well have no more room.
            Err(error) if error.rc == Code::Exhausted => break,
            Err(error) => return Err(format!("a sound request was refused: {error}").into()),
        }
    }
    std::thread::sleep(Duration::from_millis(400));
    session.finish_all()?;
    session.settle()?;
    for id in &ids {
        let told = session.ledger.take(*id).unwrap_or_default();
        if told.tokens.len() != tokens_max as usize {
            let got = told.tokens.len();
            return Err(format!("request {id}: {got} of {tokens_max} tokens came (R8)").into());
        }
    }
    Ok(vec![("tokens that waited".into(), (ids.len() * tokens_max as usize).to_string())])
}

pub(super) fn slow_events(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::KV_EVENTS, "KV_EVENTS")?;
    // Outputs are read, events are not, while many short prompts are computed.
    for _ in 0..400 {
        let prompt = session.prompt_of_blocks(2);
        let request = session.request(prompt, 1);
        session.ledger.enter(&request);
        while let Err(error) = session.driver.submit_raw(&request, |_| {}) {
            if error.rc != Code::Exhausted {
                return Err(format!("a sound request was refused: {error}").into());
            }
            session.read_lane(LANE_OUT)?;
            session.driver.wait(LANE_OUT, Duration::from_millis(2));
        }
        session.read_lane(LANE_OUT)?;
    }
    // From here on the session reads all lanes, and judges each step of the sequence.
    session.finish_all()?;
    session.settle()?;
    let epochs = session.cache.resets;
    if session.driver.caps & caps::KV_SNAPSHOT != 0 {
        session.snapshot()?;
    }
    let prompt = session.prompt_of_blocks(2);
    session.blocks_of(&prompt)?;
    Ok(vec![("epochs begun by loss".into(), epochs.to_string())])
}

pub(super) fn wait(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.settle()?;
    let begun = Instant::now();
    let rc = session.driver.wait(LANE_OUT, Duration::from_millis(50));
    let idle = begun.elapsed();
    if rc != Code::NotFound.rc() {
        return Err(format!("waiting for nothing gave {rc}, not NOT_FOUND").into());
    }
    if !(Duration::from_millis(40)..Duration::from_secs(2)).contains(&idle) {
        return Err(format!("waiting 50 ms for nothing took {idle:.1?}").into());
    }
    let prompt = session.prompt(8);
    let request = session.request(prompt, 2);
    session.submit(&request)?;
    let begun = Instant::now();
    let rc = session.driver.wait(LANE_OUT, Duration::from_secs(10));
    let until_first = begun.elapsed();
    if rc != OK || until_first > Duration::from_secs(9) {
        return Err(format!("waiting for a token gave {rc} after {until_first:.1?}").into());
    }
    session.finish_all()?;
    Ok(vec![("first token".into(), format!("{until_first:.1?}"))])
}

/// Threads that call at once.
const CALLERS: u64 = 4;
const CALLS_EACH: u64 = 40;

pub(super) fn threads(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let mut requests = Vec::new();
    for _ in 0..CALLERS * CALLS_EACH {
        let prompt = session.prompt(12);
        let request = session.request(prompt, 6);
        session.ledger.enter(&request);
        requests.push(request);
    }
    let Session { driver, ledger, .. } = &mut session;
    let driver = &*driver;
    let refused = std::thread::scope(|scope| {
        let callers: Vec<_> = requests
            .chunks(CALLS_EACH as usize)
            .map(|mine| {
                scope.spawn(move || {
                    let mut refused = Vec::new();
                    for request in mine {
                        match driver.submit_raw(request, |_| {}) {
                            Ok(()) => {}
                            Err(error) if error.rc == Code::Exhausted => refused.push(request.id),
                            Err(error) => return Err(format!("refused: {error}")),
                        }
                        if request.id % 7 == 0 {
                            driver.cancel(request.id);
                        }
                        driver.stats().map_err(|stop| format!("{stop:?}"))?;
                    }
                    Ok(refused)
                })
            })
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().map_err(|_| "a caller panicked".to_owned())?)
            .collect::<Result<Vec<_>, String>>()
    })?;
    let refused: Vec<u64> = refused.concat();
    for id in &refused {
        ledger.refuse(*id)?;
    }
    session.finish_all()?;
    session.settle()?;
    let admitted = requests.len() - refused.len();
    Ok(vec![("admitted".into(), format!("{admitted} of {}", requests.len()))])
}

/// What an `[any]` call may take by rule R6, and what the kit holds against it: a machine that does other things
/// makes a call wait for its processor, but not the median of two hundred.
const BLOCK_MAX: Duration = Duration::from_micros(50);
const MEDIAN_MAX: Duration = Duration::from_millis(2);

pub(super) fn short_calls(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let mut took = Vec::new();
    let tokens_max = long(&session, 200);
    for _ in 0..200 {
        let prompt = session.prompt(64);
        let request = session.request(prompt, tokens_max.min(8));
        session.ledger.enter(&request);
        let begun = Instant::now();
        let result = session.driver.submit_raw(&request, |_| {});
        session.driver.stats()?;
        let each = begun.elapsed() / 2;
        match result {
            Ok(()) => took.push(each),
            Err(_) => session.ledger.refuse(request.id)?,
        }
        session.pump(Duration::ZERO)?;
    }
    session.finish_all()?;
    if took.is_empty() {
        return Err("200 short requests were offered, and none was taken".to_owned().into());
    }
    took.sort_unstable();
    let (median, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    if median > MEDIAN_MAX {
        return Err(format!(
            "submit and stats block {median:.1?} in the median; R6 allows {BLOCK_MAX:.1?}"
        )
        .into());
    }
    Ok(vec![("p50".into(), format!("{median:.1?}")), ("p99".into(), format!("{p99:.1?}"))])
}

pub(super) fn stats(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let mut before = session.driver.stats()?;
    let (mut asked, mut answered) = (0_u64, 0_u64);
    for _ in 0..20 {
        let prompt = session.prompt(30);
        asked += prompt.len() as u64;
        answered += session.tell(&prompt, 3)?.tokens.len() as u64;
        let now = session.driver.stats()?;
        for (name, before, now) in [
            ("query_tokens", before.query_tokens, now.query_tokens),
            ("hit_tokens", before.hit_tokens, now.hit_tokens),
            ("decode_tokens", before.decode_tokens, now.decode_tokens),
            ("prefill_tokens", before.prefill_tokens, now.prefill_tokens),
            ("evictions", before.evictions, now.evictions),
            ("draft_tokens", before.draft_tokens, now.draft_tokens),
            ("accepted_tokens", before.accepted_tokens, now.accepted_tokens),
        ] {
            if now < before {
                return Err(format!("its {name} went from {before} to {now}").into());
            }
        }
        if now.blocks_used > session.info().blocks_total {
            let (used, total) = (now.blocks_used, session.info().blocks_total);
            return Err(format!("{used} blocks are used of {total}").into());
        }
        before = now;
    }
    session.settle()?;
    let at_rest = session.driver.stats()?;
    if (at_rest.running, at_rest.waiting) != (0, 0) {
        let (running, waiting) = (at_rest.running, at_rest.waiting);
        return Err(Stop::Fault(format!("at rest it runs {running} and has {waiting} waiting")));
    }
    if at_rest.hit_tokens > at_rest.query_tokens {
        return Err("it hit more tokens than it was asked".to_owned().into());
    }
    if at_rest.accepted_tokens > at_rest.draft_tokens {
        let (right, all) = (at_rest.accepted_tokens, at_rest.draft_tokens);
        return Err(format!("of {all} tokens that it guessed {right} were right").into());
    }
    if at_rest.decode_tokens != answered {
        let said = at_rest.decode_tokens;
        return Err(format!("it answered {answered} tokens and says {said} `decode_tokens`").into());
    }
    Ok(vec![
        ("asked".into(), format!("{asked}, it says {}", at_rest.query_tokens)),
        ("answered".into(), answered.to_string()),
    ])
}
