//! The host's end of an engine's child process.
//!
//! Two plain threads carry frames: the writer batches what calls have queued, the reader never waits
//! for a consumer, since each lane may only have [`WINDOW`] batches under way; a task per lane passes
//! them on and gives credit back. The reader also owns the child: it sees the socket end or the
//! process end, makes sure of the latter, and says how it ended.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{EngineError, OpDone, Output};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::KvBatch;
use crate::error::{ExitReason, HostError, LoadError};
use crate::local::spawn;
use crate::log;
use crate::shared::Shared;
use crate::wire::{self, Answer, Call, FromChild, Lane, Opened, ToChild, WINDOW};

/// How long an engine may load (weights over a slow disk included).
const OPEN_TIMEOUT: Duration = Duration::from_secs(900);
/// How often the reader looks whether the process still lives while nothing comes.
const LOOK: Duration = Duration::from_millis(500);
/// How long the process may live on after its socket ended.
const GRACE: Duration = Duration::from_secs(5);
/// Calls that may wait for their answer.
const CALLS_MAX: usize = 1024;
/// Bytes that may wait for the writer.
const QUEUED_BYTES_MAX: usize = 256 << 20;
/// When to come again if the limits above are reached.
const BUSY_RETRY_MS: u32 = 20;
/// Bytes that the writer puts into one write.
const WRITE_BYTES: usize = 64 << 10;

/// A call without its answer yet.
struct Unanswered {
    tell: oneshot::Sender<Result<Answer, EngineError>>,
    /// The request that it submits, if it does.
    request: Option<u64>,
}

type Waiting = Arc<Mutex<HashMap<u64, Unanswered>>>;

/// Frames on their way to the child. Calls are bounded by [`CALLS_MAX`], cancellations by the live
/// requests, credits by the windows, so the channel itself needs no bound.
#[derive(Clone)]
struct Outbox {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    queued_bytes: Arc<AtomicUsize>,
}

impl Outbox {
    fn send(&self, frame: &ToChild) -> io::Result<()> {
        let bytes = wire::encode(frame)?;
        self.queued_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        self.frames.send(bytes).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A child process and the way to it. Dropping it ends the child.
pub(crate) struct Remote {
    outbox: Outbox,
    waiting: Waiting,
    next_call: AtomicU64,
    socket: UnixStream,
    pub(crate) process_id: u32,
    /// Draining is a control call, so one at a time.
    draining: tokio::sync::Mutex<()>,
}

/// Where the lanes lead.
pub(crate) struct Outlets {
    pub(crate) outputs: mpsc::Sender<Vec<Output>>,
    pub(crate) kv: mpsc::Sender<KvBatch>,
    pub(crate) ops: mpsc::Sender<OpDone>,
}

fn resources(error: io::Error) -> LoadError {
    LoadError::Resources { what: "sockets".into(), reason: error.to_string() }
}

impl Remote {
    /// Starts a child and opens an engine in it.
    pub(crate) async fn open(
        program: &Path,
        args: &[String],
        library: Option<PathBuf>,
        config_json: &str,
        shared: &Arc<Shared>,
        outlets: Outlets,
    ) -> Result<(Self, Opened), LoadError> {
        let (socket, theirs) = UnixStream::pair().map_err(resources)?;
        // Whatever may fail for want of resources comes before the child.
        let (reads, shuts) =
            (socket.try_clone().map_err(resources)?, socket.try_clone().map_err(resources)?);
        let child = start(program, args, theirs)?;
        let process_id = child.id();
        let (frames, queue) = mpsc::unbounded_channel();
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let outbox = Outbox { frames, queued_bytes };
        let waiting = Waiting::default();
        let (opened, when_opened) = oneshot::channel();
        let lanes = pass_on(shared, outlets, &outbox);
        let process = Process { child, socket: reads };
        let reader = Reader {
            shared: Arc::clone(shared),
            waiting: Arc::clone(&waiting),
            lanes,
            opened: Some(opened),
        };
        let remote = Self {
            outbox,
            waiting,
            next_call: AtomicU64::new(0),
            process_id,
            socket: shuts,
            draining: tokio::sync::Mutex::new(()),
        };
        let bytes = Arc::clone(&remote.outbox.queued_bytes);
        spawn("engine-reader", move || reader.run(process))?;
        spawn("engine-writer", move || write_frames(socket, queue, &bytes))?;
        let open = ToChild::Open { library, config_json: config_json.into() };
        // A child that is gone already is told by the reader.
        let _ = remote.outbox.send(&open);
        match tokio::time::timeout(OPEN_TIMEOUT, when_opened).await {
            Ok(Ok(opened)) => opened.map(|opened| (remote, opened)),
            Ok(Err(_)) => Err(LoadError::ChildCrashed { how: "its reader is gone".into() }),
            Err(_) => Err(LoadError::ChildSilent { seconds: OPEN_TIMEOUT.as_secs() }),
        }
    }

    /// Asks the child; the outer error means that there is no answer.
    pub(crate) async fn call(
        &self,
        body: Call,
        shared: &Shared,
    ) -> Result<Result<Answer, EngineError>, HostError> {
        let ended = || HostError::Ended(shared.reason());
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            let queued = self.outbox.queued_bytes.load(Ordering::Relaxed);
            if waiting.len() >= CALLS_MAX || queued >= QUEUED_BYTES_MAX {
                return Err(HostError::Busy { retry_after_ms: BUSY_RETRY_MS });
            }
            // Entered under the lock and before this look: the reader clears the table after the
            // end, so either it finds this entry or this finds the end.
            let request = match &body {
                Call::Submit(request) => Some(request.id),
                _ => None,
            };
            waiting.insert(call, Unanswered { tell, request });
            if shared.stopping() {
                waiting.remove(&call);
                return Err(ended());
            }
        }
        if let Err(error) = self.outbox.send(&ToChild::Call { call, body }) {
            self.waiting.lock().remove(&call);
            return match error.kind() {
                io::ErrorKind::InvalidData => {
                    Ok(Err(EngineError::invalid(format!("too long for the engine: {error}"))))
                }
                _ => Err(ended()),
            };
        }
        told.await.map_err(|_| ended())
    }

    pub(crate) async fn drain(
        &self,
        timeout: Duration,
        shared: &Shared,
    ) -> Result<Result<Answer, EngineError>, HostError> {
        let _one_at_a_time = self.draining.lock().await;
        let timeout_us = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        self.call(Call::Drain { timeout_us }, shared).await
    }

    pub(crate) fn cancel(&self, id: u64) {
        // A child that is gone has ended the request anyway.
        let _ = self.outbox.send(&ToChild::Cancel { id });
    }

    /// Ends the child: it ends the engine when its socket ends, or is killed.
    pub(crate) fn shut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shut();
    }
}

/// Starts the child. What it prints goes to standard error, since standard output may be read by
/// programs that expect only the host's own lines.
fn start(program: &Path, args: &[String], socket: UnixStream) -> Result<Child, LoadError> {
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(resources)?;
    Command::new(program)
        .args(args)
        // Its maker's business are tokens, not ours.
        .env_remove("MAINSTAY_JOIN_TOKEN")
        .env_remove("MAINSTAY_ADMIN_TOKEN")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::from(stderr))
        // Ctrl-C on the terminal is for the worker, which drains; the child ends when its socket does.
        .process_group(0)
        .spawn()
        .map_err(|error| LoadError::ChildNotStarted {
            program: program.to_path_buf(),
            reason: error.to_string(),
        })
}

fn write_frames(
    mut socket: UnixStream,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    queued_bytes: &AtomicUsize,
) {
    while let Some(mut bytes) = queue.blocking_recv() {
        while bytes.len() < WRITE_BYTES {
            let Ok(more) = queue.try_recv() else { break };
            bytes.extend_from_slice(&more);
        }
        if socket.write_all(&bytes).is_err() {
            return;
        }
        queued_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
    }
}

/// The near ends of the lanes; each holds a window, so that the reader never waits.
struct Lanes {
    outputs: mpsc::Sender<Vec<Output>>,
    kv: mpsc::Sender<KvBatch>,
    ops: mpsc::Sender<Vec<OpDone>>,
}

/// Starts the tasks that pass batches on and give credit back.
fn pass_on(shared: &Arc<Shared>, outlets: Outlets, outbox: &Outbox) -> Lanes {
    let window = WINDOW as usize;
    let (outputs, mut from_child) = mpsc::channel(window);
    let (shared, credit) = (Arc::clone(shared), outbox.clone());
    tokio::spawn(async move {
        while let Some(mut batch) = from_child.recv().await {
            shared.live.pass(&mut batch);
            if !batch.is_empty() {
                let _ = outlets.outputs.send(batch).await;
            }
            let _ = credit.send(&ToChild::Credit { lane: Lane::Out });
        }
        for owed in shared.owed(&shared.reason()) {
            let _ = outlets.outputs.send(owed).await;
        }
    });
    let (kv, mut from_child) = mpsc::channel(window);
    let credit = outbox.clone();
    tokio::spawn(async move {
        while let Some(batch) = from_child.recv().await {
            let _ = outlets.kv.send(batch).await;
            let _ = credit.send(&ToChild::Credit { lane: Lane::Kv });
        }
    });
    let (ops, mut from_child) = mpsc::channel::<Vec<OpDone>>(window);
    let credit = outbox.clone();
    tokio::spawn(async move {
        while let Some(batch) = from_child.recv().await {
            for done in batch {
                let _ = outlets.ops.send(done).await;
            }
            let _ = credit.send(&ToChild::Credit { lane: Lane::Op });
        }
    });
    Lanes { outputs, kv, ops }
}

/// The child and its socket, as one stream that ends when either does. A grandchild may hold the
/// socket open after the child has died, so silence makes it look at the process.
struct Process {
    child: Child,
    socket: UnixStream,
}

impl Drop for Process {
    /// A child that was never read to its end must not outlive its host's interest, nor stay a zombie.
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Read for Process {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.child.try_wait()?.is_some() {
                        // What it wrote between that read and its end is still in the socket.
                        return match self.socket.read(buffer) {
                            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
                            other => other,
                        };
                    }
                }
                other => return other,
            }
        }
    }
}

impl Process {
    /// Makes sure that the process is gone, and says how it went.
    fn finish(&mut self) -> String {
        let _ = self.socket.shutdown(Shutdown::Both);
        let deadline = Instant::now() + GRACE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return describe(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
        }
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(_) => "killed, since it did not end".into(),
            Err(error) => error.to_string(),
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let core = if status.core_dumped() { ", core dumped" } else { "" };
            format!("signal {}{core}", signal_name(signal))
        }
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS",
        other => return other.to_string(),
    };
    name.to_owned()
}

struct Reader {
    shared: Arc<Shared>,
    waiting: Waiting,
    lanes: Lanes,
    opened: Option<oneshot::Sender<Result<Opened, LoadError>>>,
}

impl Reader {
    fn run(mut self, child: Process) {
        // Without the timeout a grandchild could hide the child's death; failing to set it is
        // survivable, so it is not an error.
        let _ = child.socket.set_read_timeout(Some(LOOK));
        let mut from_child = BufReader::new(child);
        let broken = loop {
            match wire::read(&mut from_child) {
                Ok(Some(frame)) => {
                    if let Err(reason) = self.take(frame) {
                        break Some(reason);
                    }
                }
                // A frame that ends in the middle is what a crash looks like.
                Ok(None) => break None,
                Err(error) if error.kind() != io::ErrorKind::InvalidData => break None,
                Err(error) => break Some(ExitReason::Broken(error.to_string())),
            }
        };
        let child = from_child.get_mut();
        let told = broken.or_else(|| self.shared.stopping().then(|| self.shared.reason()));
        match told {
            // The reason is known, so nobody has to wait for a process that may hang.
            Some(reason) => {
                let words = reason.to_string();
                self.close(reason, LoadError::ChildProtocol { reason: words });
                child.finish();
            }
            None => {
                let how = child.finish();
                let reason = ExitReason::ProcessEnded(how.clone());
                self.close(reason, LoadError::ChildCrashed { how });
            }
        }
    }

    /// Tells everyone of the end: who opens, who calls, and, as the lanes are dropped, who reads.
    fn close(self, reason: ExitReason, not_opened: LoadError) {
        if let Some(opened) = self.opened {
            let _ = opened.send(Err(not_opened));
        }
        self.shared.end(reason);
        self.waiting.lock().clear();
    }

    /// Takes one frame; an error ends the child.
    fn take(&mut self, frame: FromChild) -> Result<(), ExitReason> {
        let overrun = |_| ExitReason::Broken("its child sent more than its window".into());
        match frame {
            FromChild::Opened(result) => match self.opened.take() {
                Some(opened) => drop(opened.send(result)),
                None => return Err(ExitReason::Broken("its child opened twice".into())),
            },
            FromChild::Answer { call, answer } => {
                let unanswered = self.waiting.lock().remove(&call);
                if let Some(Unanswered { tell, request }) = unanswered
                    && let (Err(Err(_)), Some(id)) = (tell.send(answer), request)
                {
                    // The submitter is gone, so nobody else would strike the refused request off.
                    self.shared.live.refuse(id);
                }
            }
            FromChild::Outputs(batch) => {
                self.lanes.outputs.try_send(batch).map_err(|e| overrun(e.to_string()))?
            }
            FromChild::Kv(batch) => {
                self.lanes.kv.try_send(batch).map_err(|e| overrun(e.to_string()))?
            }
            FromChild::Ops(batch) => {
                self.lanes.ops.try_send(batch).map_err(|e| overrun(e.to_string()))?
            }
            FromChild::Log { level, target, message } => log::trace(level, &target, &message),
            FromChild::Ended(reason) => return Err(reason),
        }
        Ok(())
    }
}
