//! The thread that makes writes durable, so that no async task waits for a disk and many appends share an fsync.
//!
//! Whatever was queued while one fsync ran is covered by the next. After a failed fsync nothing is acknowledged
//! any more: the kernel may have dropped the dirty pages, so that a later success would prove nothing.

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

use crate::types::TypeConfig;

/// How late writes that nobody waits for become durable.
pub(super) const SYNC_LATEST: Duration = Duration::from_millis(100);
/// How many writes may wait for one fsync; one more blocks its writer.
const QUEUE_MAX: usize = 4096;

enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Sync(oneshot::Sender<io::Result<()>>),
    Stop,
}

pub(super) struct Flusher {
    queue: SyncSender<Waiter>,
    /// Something was written that no waiter stands for.
    touched: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    pub(super) fn start(db: Arc<DB>) -> io::Result<Self> {
        let (queue, waiters) = sync_channel(QUEUE_MAX);
        let touched = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&touched);
        let thread = std::thread::Builder::new()
            .name("mainstay-fsync".into())
            .spawn(move || run(&db, &waiters, &seen))?;
        Ok(Self { queue, touched, thread: Mutex::new(Some(thread)) })
    }

    /// Completes `callback` once everything written so far is durable.
    pub(super) fn append(&self, callback: IOFlushed<TypeConfig>) -> io::Result<()> {
        self.queue.send(Waiter::Append(callback)).map_err(|_| stopped())
    }

    /// Returns once everything written so far is durable.
    pub(super) async fn sync(&self) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.queue.send(Waiter::Sync(done)).map_err(|_| stopped())?;
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

fn run(db: &DB, waiters: &Receiver<Waiter>, touched: &AtomicBool) {
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
            failed = flush(db, batch.len()).err();
        }
        let result = || failed.as_ref().map_or(Ok(()), |text| Err(io::Error::other(text.clone())));
        let mut stop = false;
        for waiter in batch {
            match waiter {
                Waiter::Append(callback) => callback.io_completed(result()),
                // The one who asked may have gone.
                Waiter::Sync(done) => drop(done.send(result())),
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
    db.flush_wal(true).map_err(|e| {
        tracing::error!(error = %e, "the log could not be made durable");
        format!("fsync of the log: {e}")
    })?;
    metrics::histogram!("mainstay_control_fsync_seconds").record(start.elapsed().as_secs_f64());
    metrics::counter!("mainstay_control_fsyncs_total").increment(1);
    metrics::counter!("mainstay_control_fsync_waiters_total").increment(waiters as u64);
    Ok(())
}
