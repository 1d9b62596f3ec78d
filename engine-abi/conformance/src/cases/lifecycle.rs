//! Engines come and go.

use std::time::{Duration, Instant};

use mainstay_engine_abi::raw::HEALTH_DRAINING;
use mainstay_engine_abi::sdk::{Code, Finish};

use crate::driver::{self, Driver};
use crate::session::Session;
use crate::{Context, Ended, Stop};

/// How many engines come and go.
const TIMES: usize = 8;
/// What a process may keep after the first of them: a pool that is made once is no leak.
const SLACK: usize = 2;
/// How long destroying may take.
const DESTROY: Duration = Duration::from_secs(10);

/// Threads and open files of this process.
fn holds() -> (usize, usize) {
    let count = |folder: &str| std::fs::read_dir(folder).map_or(0, Iterator::count);
    (count("/proc/self/task"), count("/proc/self/fd"))
}

fn once(context: &Context) -> Result<Duration, Stop> {
    let mut session = Session::new(context)?;
    let prompt = session.prompt(20);
    session.tell(&prompt, 4)?;
    let begun = Instant::now();
    drop(session);
    Ok(begun.elapsed())
}

pub(super) fn again(context: &Context) -> Ended {
    once(context)?;
    let before = holds();
    let mut slowest = Duration::ZERO;
    for _ in 0..TIMES {
        slowest = slowest.max(once(context)?);
    }
    // A thread that was joined may be seen for an instant more.
    let begun = Instant::now();
    let mut after = holds();
    while after.0 > before.0 + SLACK && begun.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(10));
        after = holds();
    }
    for (what, before, after) in [("threads", before.0, after.0), ("files", before.1, after.1)] {
        if after > before + SLACK {
            return Err(format!(
                "{TIMES} engines came and went, and the process has {after} {what} instead of {before}"
            )
            .into());
        }
    }
    Ok(vec![("slowest destroy".into(), format!("{slowest:.1?}"))])
}

pub(super) fn two(context: &Context) -> Ended {
    let mut first = Session::new(context)?;
    let prompt = first.prompt(40);
    let alone = first.tell(&prompt, 8)?;
    let vtable = driver::open(&context.subject)?;
    let second = match Driver::create_from(vtable, context.config_json.as_bytes()) {
        Err(Stop::NotOffered(_)) => return Ok(vec![("engines at once".into(), "1".into())]),
        Err(Stop::Fault(fault)) => {
            return Err(format!("a second engine is not refused as EXHAUSTED: {fault}").into());
        }
        Ok(second) => second,
    };
    let mut second = Session::over(second, context);
    let told = second.tell(&prompt, 8)?;
    if told.tokens != alone.tokens {
        return Err("two engines of one configuration answer differently".to_owned().into());
    }
    if told.cached_tokens != 0 {
        return Err("an engine hit what only another one holds".to_owned().into());
    }
    drop(second);
    first.tell(&prompt, 8)?;
    Ok(vec![("engines at once".into(), "2".into())])
}

pub(super) fn busy_destroy(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    for _ in 0..session.info().requests_max.min(8) {
        let prompt = session.prompt(30);
        let tokens_max = (session.info().context_tokens_max / 2).clamp(1, 4096);
        let request = session.request(prompt, tokens_max);
        session.submit(&request)?;
    }
    session.pump(Duration::from_millis(5))?;
    let begun = Instant::now();
    drop(session);
    let took = begun.elapsed();
    if took > DESTROY {
        return Err(format!("destroying a busy engine took {took:.1?}").into());
    }
    Ok(vec![("took".into(), format!("{took:.1?}"))])
}

pub(super) fn drain(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let mut ids = Vec::new();
    for _ in 0..session.info().requests_max.min(6) {
        let prompt = session.prompt(30);
        let tokens_max = (session.info().context_tokens_max / 2).clamp(1, 100_000);
        let request = session.request(prompt, tokens_max);
        session.submit(&request)?;
        ids.push(request.id);
    }
    session
        .driver
        .drain(Duration::from_millis(100))
        .map_err(|error| format!("drain failed: {error}"))?;
    session.finish_all()?;
    session.settle()?;
    for id in ids {
        let told = session.ledger.take(id).unwrap_or_default();
        if !matches!(told.finish, Some(Finish::Cancelled | Finish::Length | Finish::Stop)) {
            return Err(format!("draining ended request {id} as {:?}", told.finish).into());
        }
    }
    let prompt = session.prompt(5);
    let request = session.request(prompt, 1);
    match session.try_submit(&request)? {
        Ok(()) => return Err("a drained engine admits a request".to_owned().into()),
        Err(error) if error.rc != Code::Unavailable => {
            return Err(format!("a drained engine says {:?}, not UNAVAILABLE", error.rc).into());
        }
        Err(_) => {}
    }
    if session.driver.stats()?.health != HEALTH_DRAINING {
        return Err("a drained engine's health is not DRAINING".to_owned().into());
    }
    Ok(Vec::new())
}
