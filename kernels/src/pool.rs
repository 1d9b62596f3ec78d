//! A small pool of threads that live as long as the engine.
//!
//! A decode step makes hundreds of parallel calls of tens of microseconds, so starting threads per
//! call would cost more than the work. Workers spin for a short while after a call, then sleep. A
//! call that finds the pool taken (from another thread, or from inside a task) runs its tasks on
//! the calling thread: it never waits for another call and so never deadlocks.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// More threads than any machine of ours has; a larger wish is a mistake in a configuration.
const MAX_THREADS: usize = 256;
/// Rounds of the spin loop before a thread sleeps: some tens of microseconds, which covers the
/// row-wise work between two products of one layer.
const SPIN_ROUNDS: usize = 4_000;

/// Bit of `state`: a job is posted and workers may still join it.
const OPEN: usize = 1;
/// Bit of `state`: the pool is being dropped.
const STOP: usize = 2;
/// Bit of `state`: the caller sleeps until the last worker leaves.
const CALLER_SLEEPS: usize = 4;
/// What one joined worker adds to `state`.
const JOINED: usize = 8;

type Task = dyn Fn(usize) + Sync;

/// One call of [`Pool::run`], as the workers see it.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task,
    tasks: usize,
}

struct Shared {
    /// `OPEN | STOP | CALLER_SLEEPS` and, above them, how many workers have joined the job.
    state: AtomicUsize,
    /// Written only while `state` is not open and nobody has joined; read only by joined workers.
    job: UnsafeCell<Job>,
    /// The next task that nobody has claimed.
    next: AtomicUsize,
    /// How many tasks the posted job has.
    end: AtomicUsize,
    /// What the first failed task threw.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    posted: Condvar,
    left: Condvar,
}

// SAFETY: `job` is the only part that is not `Sync` by itself; the protocol in its comment keeps
// writes and reads of it apart.
unsafe impl Sync for Shared {}
// SAFETY: the pointer inside `job` is only used while the call that posted it is still running.
unsafe impl Send for Shared {}

/// A pool of threads, the caller's included.
pub struct Pool {
    shared: Arc<Shared>,
    taken: AtomicBool,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads of which the caller is one; at least 1, at most 256. When the
    /// system refuses a thread, the pool is smaller.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { task: &|_| {}, tasks: 0 }),
            next: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            posted: Condvar::new(),
            left: Condvar::new(),
        });
        let workers = (1..threads.clamp(1, MAX_THREADS))
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || shared.work())
                    .ok()
            })
            .collect();
        Pool { shared, taken: AtomicBool::new(false), workers }
    }

    /// How many threads take part in a call.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` once for every index below `tasks` and returns when all calls have. Tasks start
    /// in the order of their index.
    ///
    /// # Panics
    /// When a task panics, tasks that have not started are dropped and the first panic goes on in
    /// the caller. The pool stays usable.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || self.taken.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(f);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. `run` does not return before every worker that
        // could use the pointer has left the job, and nothing between here and there unwinds.
        let task =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Task>(f) };
        // SAFETY: `taken` makes this the only call, the state is closed and nobody has joined, so
        // no worker reads `job` now.
        unsafe { *shared.job.get() = Job { task, tasks } };
        shared.next.store(0, Ordering::Relaxed);
        shared.end.store(tasks, Ordering::Relaxed);
        shared.state.fetch_or(OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.locked());
            shared.posted.notify_all();
        }
        shared.claim(Job { task, tasks });
        shared.close();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.taken.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.fetch_or(STOP, Ordering::SeqCst);
        drop(self.shared.locked());
        self.shared.posted.notify_all();
        for worker in self.workers.drain(..) {
            // A worker can't panic: tasks are caught. Nothing is lost if one did.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs tasks until none is left to claim.
    fn claim(&self, job: Job) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.tasks {
                return;
            }
            // SAFETY: this thread is the caller or has joined, so the caller is still inside
            // `run` and its closure is alive.
            let task = unsafe { &*job.task };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(index))) {
                self.next.store(job.tasks, Ordering::Relaxed);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
        }
    }

    /// Ends the job: nobody may join any more, and everybody who has is waited for.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        for _ in 0..SPIN_ROUNDS {
            if state < JOINED {
                return;
            }
            std::hint::spin_loop();
            state = self.state.load(Ordering::Acquire);
        }
        let mut guard = self.locked();
        self.state.fetch_or(CALLER_SLEEPS, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) >= JOINED {
            guard = self.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.state.fetch_and(!CALLER_SLEEPS, Ordering::AcqRel);
    }

    /// A worker's life.
    fn work(&self) {
        let mut last_job_done = false;
        loop {
            let Some(job) = self.join(last_job_done) else { return };
            self.claim(job);
            let before = self.state.fetch_sub(JOINED, Ordering::AcqRel);
            if before & CALLER_SLEEPS != 0 {
                drop(self.locked());
                self.left.notify_all();
            }
            last_job_done = true;
        }
    }

    /// Waits for a job that has tasks left and joins it; `None` when the pool is dropped.
    fn join(&self, spin: bool) -> Option<Job> {
        for _ in 0..if spin { SPIN_ROUNDS } else { 0 } {
            match self.try_join() {
                Joined::Nothing => std::hint::spin_loop(),
                Joined::Stopped => return None,
                Joined::Job(job) => return Some(job),
            }
        }
        let mut guard = self.locked();
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let joined = loop {
            match self.try_join() {
                Joined::Nothing => {
                    guard = self.posted.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                Joined::Stopped => break None,
                Joined::Job(job) => break Some(job),
            }
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        joined
    }

    fn try_join(&self) -> Joined {
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            if state & STOP != 0 {
                return Joined::Stopped;
            }
            // The counters are only a hint that joining is worth it: without it a worker that is
            // done would join and leave until the caller has finished its last task.
            let exhausted = self.next.load(Ordering::Relaxed) >= self.end.load(Ordering::Relaxed);
            if state & OPEN == 0 || exhausted {
                return Joined::Nothing;
            }
            let next = state + JOINED;
            match self.state.compare_exchange(state, next, Ordering::SeqCst, Ordering::SeqCst) {
                // SAFETY: joining succeeded while the job was open, so the caller waits for this
                // thread before it writes `job` again.
                Ok(_) => return Joined::Job(unsafe { *self.job.get() }),
                Err(now) => state = now,
            }
        }
    }
}

enum Joined {
    Nothing,
    Stopped,
    Job(Job),
}

#[cfg(test)]
mod tests;
