//! What crossing the boundary costs: one token there and back, through each way into an engine.
//!
//! `cargo run --release -p mainstay-engine-host --example round_trip` prints one line per way. The
//! engine answers in `submit` itself, so the figures are the boundary's alone. The first two lines
//! call the C functions from one thread; the others go through [`EngineHandle`] and its lanes.

use std::hint::black_box;
use std::process::ExitCode;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::raw::{
    ABI_MAJOR, ABI_MINOR, LANE_OUT, MseBatch, MseEngine, MseErr, MseHdr, MseHost, MseRequest,
    MseSampling, MseStr, MseVtable, OK,
};
use mainstay_engine_host::sdk::{
    Engine, EngineError, Finish, Health, HostLog, Identity, Info, Lanes, Output, Request, Stats,
    caps, entry_point,
};
use mainstay_engine_host::{EngineHandle, Receivers, Source, child, open};

struct Echo {
    lanes: Arc<Lanes>,
}

impl Engine for Echo {
    const IDENTITY: Identity = Identity { vendor: "mainstay", name: "instant", version: "1" };
    const CAPS: u64 = caps::NAMESPACE;

    fn create(_: &str, lanes: Arc<Lanes>, _: HostLog) -> Result<Self, EngineError> {
        Ok(Self { lanes })
    }

    fn info(&self) -> Info {
        Info {
            block_tokens: 16,
            vocab: 1 << 17,
            context_tokens_max: 1 << 17,
            requests_max: 1024,
            ..Info::default()
        }
    }

    fn stats(&self) -> Stats {
        Stats { health: Health::Ok, ..Stats::default() }
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        let (id, finish) = (request.id, Some(Finish::Stop));
        self.lanes.output(Output { id, tokens: vec![1], first: true, finish, ..Output::default() });
        Ok(())
    }

    fn cancel(&self, _: u64) {}

    fn drain(&self, _: Duration) -> Result<(), EngineError> {
        Ok(())
    }
}

fn say(what: &str, rounds: u32, took: Duration) {
    let each_ns = took.as_nanos() / u128::from(rounds);
    println!("{what:<58} {each_ns:>8} ns each over {rounds}");
}

/// Submit, wait, poll and release through the C functions, `burst` requests at a time.
fn raw(rounds: u32, burst: u32, prompt_tokens: usize) -> Result<(), i32> {
    let entry = entry_point::<Echo>();
    let host = MseHost {
        h: MseHdr::of::<MseHost>(),
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        ctx: ptr::null_mut(),
        log: None,
    };
    let tokens = vec![7_u32; prompt_tokens];
    // SAFETY: all zero is a valid struct of the header; the fields that matter are set below.
    let (mut sampling, mut request, mut batch) = unsafe {
        (
            std::mem::zeroed::<MseSampling>(),
            std::mem::zeroed::<MseRequest>(),
            std::mem::zeroed::<MseBatch>(),
        )
    };
    sampling.h = MseHdr::of::<MseSampling>();
    (sampling.top_p, sampling.repetition_penalty, sampling.tokens_max) = (1.0, 1.0, 1);
    request.h = MseHdr::of::<MseRequest>();
    (request.tokens, request.tokens_len) = (tokens.as_ptr(), tokens.len() as u64);
    request.sampling = &raw const sampling;
    batch.h = MseHdr::of::<MseBatch>();
    let (mut vtable, mut engine) = (ptr::null::<MseVtable>(), ptr::null_mut::<MseEngine>());
    let mut err = MseErr::empty();
    let missing = -12;
    let check = |rc: i32| if rc == OK { Ok(()) } else { Err(rc) };
    // SAFETY: whole structs that outlive the calls; one thread; the engine is destroyed last.
    unsafe {
        check((entry.open)(&raw const host, &raw mut vtable, &raw mut err))?;
        let vtable = &*vtable;
        let create = vtable.create.ok_or(missing)?;
        check(create(&raw const host, MseStr::of("{}"), &raw mut engine, &raw mut err))?;
        let (submit, wait) = (vtable.submit.ok_or(missing)?, vtable.wait.ok_or(missing)?);
        let (poll, release) = (vtable.poll.ok_or(missing)?, vtable.batch_release.ok_or(missing)?);
        let since = Instant::now();
        for round in 0..rounds / burst {
            for n in 0..burst {
                request.id = u64::from(round * burst + n);
                check(submit(engine, &raw const request, &raw mut err))?;
            }
            check(wait(engine, LANE_OUT, 1000))?;
            check(poll(engine, LANE_OUT, burst, &raw mut batch, &raw mut err))?;
            black_box(batch.len);
            release(engine, &raw mut batch);
        }
        let what = format!("C functions, {burst} at a time, {prompt_tokens} prompt tokens");
        say(&what, rounds, since.elapsed());
        vtable.destroy.ok_or(missing)?(engine);
    }
    Ok(())
}

type Failure = Box<dyn std::error::Error>;

async fn round_trips(
    what: &str,
    handle: &EngineHandle,
    receivers: &mut Receivers,
    rounds: u32,
) -> Result<(), Failure> {
    let request = |id: u64| Request { id, tokens: vec![7; 16], ..Request::default() };
    let since = Instant::now();
    for id in 0..rounds {
        handle.submit(request(u64::from(id))).await?;
        black_box(receivers.outputs.recv().await.ok_or("the lane ended")?);
    }
    say(&format!("{what}, one at a time"), rounds, since.elapsed());
    let since = Instant::now();
    for id in 0..rounds {
        handle.submit(request(u64::from(id))).await?;
    }
    let mut ended = 0;
    while ended < rounds {
        ended += receivers.outputs.recv().await.ok_or("the lane ended")?.len() as u32;
    }
    say(&format!("{what}, all at once"), rounds, since.elapsed());
    Ok(())
}

async fn through_handles() -> Result<(), Failure> {
    let linked = Source::Linked(entry_point::<Echo>());
    let own = Source::child(std::env::current_exe()?, None);
    for (what, source, rounds) in
        [("handle, linked in", linked, 4000), ("handle, child process", own, 4000)]
    {
        let (handle, mut receivers) = open(source, "{}").await?;
        round_trips(what, &handle, &mut receivers, rounds).await?;
    }
    Ok(())
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("engine-child") {
        let served = child::run_linked(entry_point::<Echo>());
        return if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    for (rounds, burst, prompt_tokens) in [(200_000, 1, 16), (640_000, 64, 16), (20_000, 1, 8192)] {
        if let Err(rc) = raw(rounds, burst, prompt_tokens) {
            eprintln!("the engine answered {rc}");
            return ExitCode::FAILURE;
        }
    }
    let done = tokio::runtime::Runtime::new()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(through_handles()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
