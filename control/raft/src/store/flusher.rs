//! The thread that makes writes durable, so that no async task waits for a disk and many appends share an fsync.
//!
//! Whatever was queued while one fsync ran is covered by the next. After a failed fsync nothing is acknowledged
//! any more: the kernel may have dropped the dirty pages, so that a later success would prove nothing. What is
//! acknowledged is written down beside the log first ([`Promised`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use rocksdb::DB;
use tokio::sync::oneshot;

use super::promised::Promised;
use crate::types::{TypeConfig, Vote};

/// How late writes that nobody waits for become durable.
pub(super) const SYNC_LATEST: Duration = Duration::from_millis(100);
/// How many writes may wait for one fsync; one more blocks its writer.
const QUEUE_MAX: usize = 4096;

type Done = oneshot::Sender<io::Result<()>>;

enum Waiter {
    /// Entries up to an index, if there are any.
    Append(IOFlushed<TypeConfig>, Option<u64>),
    Vote(Done, Vote),
    /// The log is about to end at an index, or to be empty.
    Cut(Done, Option<u64>),
    Stop,
}

pub(super) struct Flusher {
    queue: SyncSender<Waiter>,
    /// Something was written that no waiter stands for.
    touched: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    pub(super) fn start(db: Arc<DB>, mut promised: Promised) -> io::Result<Self> {
        let (queue, waiters) = sync_channel(QUEUE_MAX);
        let touched = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&touched);
        let thread = std::thread::Builder::new()
            .name("mainstay-fsync".into())
            .spawn(move || run(&db, &mut promised, &waiters, &seen))?;
        Ok(Self { queue, touched, thread: Mutex::new(Some(thread)) })
    }

    /// Completes `callback` once everything written so far, the log up to `last`, is durable.
    pub(super) fn append(
        &self,
        callback: IOFlushed<TypeConfig>,
        last: Option<u64>,
    ) -> io::Result<()> {
        self.queue.send(Waiter::Append(callback, last)).map_err(|_| stopped())
    }

    /// Returns once everything written so far, `vote` among it, is durable.
    pub(super) async fn vote(&self, vote: Vote) -> io::Result<()> {
        self.wait(|done| Waiter::Vote(done, vote)).await
    }

    /// Returns once the log may end at `last`: nothing beyond is promised any more.
    pub(super) async fn cut(&self, last: Option<u64>) -> io::Result<()> {
        self.wait(|done| Waiter::Cut(done, last)).await
    }

    async fn wait(&self, waiter: impl FnOnce(Done) -> Waiter) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.queue.send(waiter(done)).map_err(|_| stopped())?;
        wait.await.map_err(|_| stopped())?
    }

    /// Asks for durability without waiting for it.
    pub(super) fn touch(&self) {
        self.touched.store(true, Ordering::Release);
    }

    /// Makes everything durable and ends the thread.
    pub(super) fn stop(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // An error means that it has ended already.
            let _ = self.queue.send(Waiter::Stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop();
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's flusher has stopped")
}

fn run(db: &DB, promised: &mut Promised, waiters: &Receiver<Waiter>, touched: &AtomicBool) {
    let mut failed: Option<String> = None;
    loop {
        let first = match waiters.recv_timeout(SYNC_LATEST) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) if touched.load(Ordering::Acquire) => None,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => Some(Waiter::Stop),
        };
        let batch: Vec<Waiter> =
            first.into_iter().chain(waiters.try_iter().take(QUEUE_MAX)).collect();
        touched.store(false, Ordering::Release);
        if failed.is_none() {
            failed = flush(db, batch.len()).and_then(|()| promise(promised, &batch)).err();
        }
        let result = || failed.as_ref().map_or(Ok(()), |text| Err(io::Error::other(text.clone())));
        let mut stop = false;
        for waiter in batch {
            match waiter {
                Waiter::Append(callback, _) => callback.io_completed(result()),
                // The one who asked may have gone.
                Waiter::Vote(done, _) | Waiter::Cut(done, _) => drop(done.send(result())),
                Waiter::Stop => stop = true,
            }
        }
        if stop {
            return;
        }
    }
}

fn flush(db: &DB, waiters: usize) -> Result<(), String> {
    let start = Instant::now();
    db.flush_wal(true).map_err(|e| failure("fsync of the log", &e))?;
    metrics::histogram!("mainstay_control_fsync_seconds").record(start.elapsed().as_secs_f64());
    metrics::counter!("mainstay_control_fsyncs_total").increment(1);
    metrics::counter!("mainstay_control_fsync_waiters_total").increment(waiters as u64);
    Ok(())
}

/// Writes down what `batch` is about to be told.
fn promise(promised: &mut Promised, batch: &[Waiter]) -> Result<(), String> {
    let mut now = promised.says();
    let mut cut = false;
    for waiter in batch {
        match waiter {
            Waiter::Append(_, last) => now.last = last.or(now.last),
            Waiter::Vote(_, vote) => now.vote = Some(*vote),
            Waiter::Cut(_, last) => (now.last, cut) = (now.last.min(*last), true),
            Waiter::Stop => {}
        }
    }
    promised.say(now, cut).map_err(|e| failure("writing what the log holds", &e))
}

fn failure(what: &str, error: &dyn std::fmt::Display) -> String {
    tracing::error!(%error, "the log could not be made durable");
    format!("{what}: {error}")
}
