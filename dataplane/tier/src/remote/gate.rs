//! The way to the store: so many calls run at once, so many more wait, and each has a deadline.
//!
//! A call whose deadline is over is given up by who asked, and goes on without them: a folder that hangs keeps
//! the thread that reads it, and would keep another for each call until the process has none left. So the
//! permit goes back when the call has ended, and until then others wait, or are turned away.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::Figures;
use crate::figures::count;

/// What became of a call.
pub(super) enum Called<T> {
    Done(T),
    Late,
    Busy,
}

/// See the module.
pub(super) struct Gate {
    timeout: Duration,
    parallel: usize,
    waiting_max: usize,
    permits: Arc<Semaphore>,
    /// Those that wait for a permit or for their call.
    waiting: AtomicUsize,
}

impl Gate {
    pub(super) fn new(timeout: Duration, parallel: usize, waiting_max: usize) -> Self {
        Self {
            timeout,
            parallel,
            waiting_max,
            permits: Arc::new(Semaphore::new(parallel)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// How many calls run at once.
    pub(super) const fn parallel(&self) -> usize {
        self.parallel
    }

    /// Makes a call once it may be made: nothing of it, its bytes least of all, is there before.
    pub(super) async fn pass<T, C>(&self, figures: &Figures, begin: impl FnOnce() -> C) -> Called<T>
    where
        T: Send + 'static,
        C: Future<Output = T> + Send + 'static,
    {
        let waiting = Counted::new(&self.waiting);
        if waiting.others >= self.waiting_max.saturating_add(self.parallel) {
            count(&figures.busy);
            return Called::Busy;
        }
        let permitted = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
            let call = begin();
            let running = tokio::spawn(async move {
                let done = call.await;
                drop(permit);
                done
            });
            running.await.ok()
        };
        match tokio::time::timeout(self.timeout, permitted).await {
            Ok(Some(done)) => Called::Done(done),
            Ok(None) | Err(_) => {
                count(&figures.timeouts);
                Called::Late
            }
        }
    }
}

/// One of those that wait; counted off however the call ends.
struct Counted<'a> {
    counter: &'a AtomicUsize,
    others: usize,
}

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        Self { counter, others: counter.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
    }
}
