//! The child process that holds one engine, so that the engine's crash is not the worker's.
//!
//! Its standard input is a Unix socket to the host; standard error passes through. It loads the
//! engine as the host would in its own process, and carries calls and lanes over the socket. When the
//! socket ends, because the host let go or died, the child ends the engine and itself, by force after
//! [`GRACE`]: an engine that hangs must not outlive its host and keep the device.

use std::io::{self, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use mainstay_engine_abi::sdk::{EngineError, EntryPoint, Level};
use parking_lot::{Condvar, Mutex};

use crate::decode::Broken;
use crate::error::{ExitReason, LoadError};
use crate::instance::{Instance, Next};
use crate::library;
use crate::local::{TICK, spawn};
use crate::log::LogTarget;
use crate::transfer::Whole;
use crate::wire::{self, Answer, Call, FromChild, Lane, Opened, ToChild, WINDOW};

/// How long the engine may take to end once the host is gone.
const GRACE: Duration = Duration::from_secs(3);
const LANES: usize = 3;
/// As much as a program's first thread has; engines may need it while they load.
const LOADER_STACK_BYTES: usize = 8 << 20;

/// Bytes out to the host, whole frames at a time.
struct Uplink(Mutex<UnixStream>);

impl Uplink {
    /// Sends a frame. False when the host is gone, or when the frame can't be sent at all.
    fn send(&self, frame: &FromChild) -> bool {
        match wire::encode(frame) {
            Ok(bytes) => self.0.lock().write_all(&bytes).is_ok(),
            Err(error) => {
                eprintln!("engine child: {error}");
                false
            }
        }
    }
}

/// How many batches each lane may still send; see [`WINDOW`].
struct Credits {
    left: Mutex<[u32; LANES]>,
    changed: Condvar,
    stopping: AtomicBool,
}

impl Credits {
    fn new() -> Self {
        Self {
            left: Mutex::new([WINDOW; LANES]),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Waits for a credit of `lane` and takes it; false when everything stops.
    fn take(&self, lane: Lane) -> bool {
        let mut left = self.left.lock();
        while left[lane as usize] == 0 && !self.stopping() {
            self.changed.wait(&mut left);
        }
        if self.stopping() {
            return false;
        }
        left[lane as usize] -= 1;
        true
    }

    fn give(&self, lane: Lane) {
        let mut left = self.left.lock();
        left[lane as usize] = (left[lane as usize] + 1).min(WINDOW);
        self.changed.notify_all();
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn stop(&self) {
        let _left = self.left.lock();
        self.stopping.store(true, Ordering::Release);
        self.changed.notify_all();
    }
}

/// Serves the library that the host names, over standard input, until the host lets go.
///
/// The calling program should then return at once: it holds nothing that needs more than that.
///
/// # Errors
/// When standard input is not a socket to a host of this release.
pub fn run() -> io::Result<()> {
    serve(None)
}

/// As [`run`], with the engine to use when the host names no library.
///
/// # Errors
/// As [`run`].
pub fn run_linked(linked: EntryPoint) -> io::Result<()> {
    serve(Some(linked))
}

fn no_host(reason: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!(
        "no host on standard input ({reason}); mainstay starts this command itself"
    ))
}

fn serve(linked: Option<EntryPoint>) -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.peer_addr().map_err(no_host)?;
    let uplink = Arc::new(Uplink(Mutex::new(socket.try_clone()?)));
    let mut from_host = BufReader::new(socket);
    let first = wire::read(&mut from_host).map_err(no_host)?;
    let Some(ToChild::Open { library, config_json }) = first else {
        return Err(no_host("its first frame opens no engine"));
    };
    let child = Arc::new(Serving { uplink, credits: Credits::new(), engine: OnceLock::new() });
    // Loading has a thread of its own, so that this one sees the host go meanwhile.
    let loading = Arc::clone(&child);
    let loader = thread::Builder::new()
        .name("engine-load".into())
        .stack_size(LOADER_STACK_BYTES)
        .spawn(move || open(&loading, library, linked, &config_json))?;
    let result = follow(&mut from_host, &child);
    end(child, loader);
    result
}

/// What the threads of the child share.
struct Serving {
    uplink: Arc<Uplink>,
    credits: Credits,
    /// There once the engine is open.
    engine: OnceLock<Instance>,
}

/// Loads the engine, tells the host, and starts the lanes; returns their threads.
fn open(
    child: &Arc<Serving>,
    library: Option<PathBuf>,
    linked: Option<EntryPoint>,
    config_json: &str,
) -> Vec<thread::JoinHandle<()>> {
    let opened = load(library, linked, config_json, &child.uplink).and_then(|instance| {
        let opened = Opened {
            identity: instance.identity.clone(),
            info: instance.info.clone(),
            caps: instance.caps,
        };
        // It is there before the host learns of it, since calls may follow at once.
        child.engine.get_or_init(|| instance);
        Ok((opened, start_lanes(child)?))
    });
    match opened {
        Ok((opened, lanes)) => {
            child.uplink.send(&FromChild::Opened(Ok(opened)));
            lanes
        }
        Err(error) => {
            child.uplink.send(&FromChild::Opened(Err(error)));
            Vec::new()
        }
    }
}

fn load(
    library: Option<PathBuf>,
    linked: Option<EntryPoint>,
    config_json: &str,
    uplink: &Arc<Uplink>,
) -> Result<Instance, LoadError> {
    let to_host = Arc::clone(uplink);
    let log = LogTarget::leak(Box::new(move |level: Level, target: &str, message: &str| {
        let (target, message) = (target.to_owned(), message.to_owned());
        to_host.send(&FromChild::Log { level, target, message });
    }));
    match (library, linked) {
        (Some(path), _) => open_library(&path, config_json, log),
        (None, Some(entry)) => Instance::open(&entry, "the linked engine", config_json, log),
        (None, None) => Err(LoadError::ChildProtocol {
            reason: "no library was named and none is linked into the child".into(),
        }),
    }
}

fn open_library(
    path: &Path,
    config_json: &str,
    log: &'static LogTarget,
) -> Result<Instance, LoadError> {
    let entry = library::load(path)?;
    Instance::open(&entry, &path.display().to_string(), config_json, log)
}

fn start_lanes(child: &Arc<Serving>) -> Result<Vec<thread::JoinHandle<()>>, LoadError> {
    let c = Arc::clone(child);
    let out = spawn("engine-out", move || {
        let reason = match pump(&c, Lane::Out, Instance::next_outputs, FromChild::Outputs) {
            Ok(true) => ExitReason::Closed,
            Ok(false) => return,
            Err(broken) => ExitReason::Broken(broken),
        };
        c.uplink.send(&FromChild::Ended(reason));
    })?;
    let c = Arc::clone(child);
    let kv = spawn("engine-kv", move || {
        if let Err(broken) = pump(&c, Lane::Kv, Instance::next_kv, FromChild::Kv) {
            c.uplink.send(&FromChild::Ended(ExitReason::Broken(broken)));
        }
    })?;
    let c = Arc::clone(child);
    let op = spawn("engine-op", move || {
        let pumped = pump(&c, Lane::Op, Instance::next_ops, FromChild::Ops);
        if let Some(instance) = c.engine.get() {
            instance.close_transfers();
        }
        if let Err(broken) = pumped {
            c.uplink.send(&FromChild::Ended(ExitReason::Broken(broken)));
        }
    })?;
    Ok(vec![out, kv, op])
}

/// Carries one lane up to the host. True when the lane closed, false when everything stops.
fn pump<T>(
    child: &Serving,
    lane: Lane,
    next: impl Fn(&Instance, Duration) -> Result<Next<T>, Broken>,
    frame: impl Fn(T) -> FromChild,
) -> Result<bool, Broken> {
    let Some(instance) = child.engine.get() else {
        return Ok(false);
    };
    // The credit comes before the poll: without one, what the engine makes stays in its own lane.
    while child.credits.take(lane) {
        let items = loop {
            match next(instance, TICK)? {
                Next::Items(items) => break items,
                Next::TimedOut if child.credits.stopping() => return Ok(false),
                Next::TimedOut => {}
                Next::Closed => return Ok(true),
            }
        };
        if !child.uplink.send(&frame(items)) {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Does what the host says until the socket ends.
fn follow(from_host: &mut BufReader<UnixStream>, child: &Arc<Serving>) -> io::Result<()> {
    while let Some(frame) = wire::read(from_host)? {
        let Some(instance) = child.engine.get() else {
            return Err(io::Error::other("the host calls before the engine is open"));
        };
        match frame {
            ToChild::Open { .. } => {
                return Err(io::Error::other("an engine is open already"));
            }
            ToChild::Cancel { id } => instance.cancel(id),
            ToChild::Credit { lane } => child.credits.give(lane),
            ToChild::Call { call, body: Call::Drain { timeout_us } } => {
                drain(call, timeout_us, child);
            }
            ToChild::Call { call, body: Call::Export { blocks } } => {
                let told = told(call, child);
                refused(call, child, instance.kv_export(blocks, told));
            }
            ToChild::Call { call, body: Call::Import(import) } => {
                let told = told(call, child);
                refused(call, child, instance.kv_import(import, told));
            }
            ToChild::Call { call, body } => {
                let answer = answer(instance, &body);
                child.uplink.send(&FromChild::Answer { call, answer });
            }
        }
    }
    Ok(())
}

/// Answers a transfer when it has ended.
fn told(call: u64, child: &Serving) -> impl FnOnce(Whole) + Send + 'static {
    let uplink = Arc::clone(&child.uplink);
    move |whole| {
        uplink.send(&FromChild::Answer { call, answer: Ok(Answer::Whole(whole)) });
    }
}

/// Answers a transfer that did not begin.
fn refused(call: u64, child: &Serving, begun: Result<(), EngineError>) {
    if let Err(error) = begun {
        child.uplink.send(&FromChild::Answer { call, answer: Err(error) });
    }
}

fn answer(instance: &Instance, call: &Call) -> Result<Answer, EngineError> {
    match call {
        Call::Submit(request) => instance.submit(request),
        Call::Pin(pin) => instance.pin(pin),
        Call::Lease(change) => instance.lease(change),
        Call::Unpin { op_id, pin_id } => instance.unpin(*op_id, *pin_id),
        Call::KvSnapshot { op_id } => instance.kv_snapshot(*op_id),
        Call::Stats => return instance.stats().map(|stats| Answer::Stats(Box::new(stats))),
        Call::Drain { timeout_us } => instance.drain(Duration::from_micros(*timeout_us)),
        // They are answered when they end, not here.
        Call::Export { .. } | Call::Import(_) => {
            Err(EngineError::internal("a transfer out of turn"))
        }
    }
    .map(|()| Answer::Done)
}

/// Draining blocks, so it has a thread of its own; the host asks for one at a time.
fn drain(call: u64, timeout_us: u64, child: &Arc<Serving>) {
    let c = Arc::clone(child);
    let started = spawn("engine-drain", move || {
        if let Some(instance) = c.engine.get() {
            let answer = answer(instance, &Call::Drain { timeout_us });
            c.uplink.send(&FromChild::Answer { call, answer });
        }
    });
    if let Err(error) = started {
        let answer = Err(EngineError::unavailable(error.to_string()));
        child.uplink.send(&FromChild::Answer { call, answer });
    }
}

/// Ends the engine, and the process with it should that hang.
fn end(child: Arc<Serving>, loader: thread::JoinHandle<Vec<thread::JoinHandle<()>>>) {
    let watchdog = spawn("engine-end", || {
        thread::sleep(GRACE);
        eprintln!("engine child: the engine does not end; aborting");
        std::process::abort();
    });
    if watchdog.is_err() {
        // Without a watchdog, waiting for the engine could be for ever.
        std::process::abort();
    }
    child.credits.stop();
    // A thread that panicked has said so on standard error.
    for lane in loader.join().unwrap_or_default() {
        let _ = lane.join();
    }
    // The last owner destroys the engine: this thread, or one that still drains, in which case the
    // process ends first.
    drop(child);
}
