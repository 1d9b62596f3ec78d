//! Who waits for room at a worker: the router's queue for each model, and the task that lets them go on.
//!
//! It exists while a threshold is set. A request goes on at once while nobody waits and some worker has room; else it
//! waits until its turn comes, its client leaves, or it has waited for as long as anybody may. What goes on is placed
//! under the same lock, so that those behind it see its booking. The task lives while somebody waits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_chat::{ApiError, ErrorKind};
use mainstay_route::{QueueSettings, Refusal, RequestQueue, Waiting};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::generate::Job;
use crate::placement::{Placed, Placement};

/// Workers tell their loads every 50 ms at most, each at another time.
const TURN_EVERY: Duration = Duration::from_millis(10);
/// Nobody waits longer than this, whatever the order says.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Queues whose pace is remembered, while nobody waits there.
const LINES_MAX: usize = 64;
/// Those who came before and still wait are counted up to this.
const OVERTOOK_MAX: usize = 1_000;

/// A model with its revision.
type Key = (String, String);

/// The queues of a gateway.
#[derive(Clone)]
pub(crate) struct Lines {
    inner: Arc<Inner>,
}

struct Inner {
    settings: QueueSettings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: HashMap<Key, Line>,
    last_id: u64,
    /// A task lets requests go on.
    turning: bool,
}

/// One queue, and who sits in it.
struct Line {
    queue: RequestQueue,
    seats: HashMap<u64, Seat>,
}

struct Seat {
    job: Arc<Job>,
    came: Instant,
    go: oneshot::Sender<Turn>,
}

/// Somebody's turn.
struct Turn {
    /// `None` where no worker could be chosen at that moment: the usual way says why.
    placed: Option<Placed>,
    waited: Box<Waited>,
}

/// That a request waited, for the tenant's and its program's account.
pub(crate) struct Waited {
    lines: Lines,
    key: Key,
    waiting: Waiting,
    /// For how long.
    took: Duration,
}

impl Waited {
    /// Its answer had so many tokens.
    pub(crate) fn answered(self, now_ms: u64, output_tokens: u32) {
        if let Some(line) = self.lines.inner.state.lock().lines.get_mut(&self.key) {
            line.queue.answered(now_ms, &self.waiting, output_tokens);
        }
    }
}

/// How a request got on.
pub(crate) enum Entered {
    /// It is on its way.
    Placed(Placed, Option<Box<Waited>>),
    /// No worker can be chosen at all: whoever asked finds out why.
    Nowhere,
}

/// Leaves the queue when whoever waits is gone.
struct Seated<'a> {
    lines: &'a Lines,
    key: &'a Key,
    id: u64,
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        let mut state = self.lines.inner.state.lock();
        if let Some(line) = state.lines.get_mut(self.key)
            && line.seats.remove(&self.id).is_some()
        {
            line.queue.remove(self.id);
        }
    }
}

fn refused(refusal: &Refusal) -> ApiError {
    let (kind, reason) = match refusal {
        // The gateway's own limit, and the tenant's.
        Refusal::Full { .. } => (ErrorKind::Overloaded, "full"),
        Refusal::TenantFull { .. } => (ErrorKind::RateLimited, "tenant"),
    };
    metrics::counter!("mainstay_gateway_queue_refused_total", "reason" => reason).increment(1);
    let seconds = refusal.retry_after_ms().div_ceil(1_000).max(1);
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
    ApiError::new(kind, refusal.to_string()).with_retry_after_s(seconds)
}

impl Lines {
    /// `None` where no threshold is set.
    pub(crate) fn new(settings: QueueSettings) -> Option<Self> {
        settings.threshold?;
        Some(Self { inner: Arc::new(Inner { settings, state: Mutex::default() }) })
    }

    /// Lets a request go on when it is its turn.
    pub(crate) async fn enter(
        &self,
        placement: &Placement,
        job: &Arc<Job>,
    ) -> Result<Entered, ApiError> {
        let key = (job.model.clone(), job.revision.clone());
        let came = Instant::now();
        let (id, turn) = {
            let mut state = self.inner.state.lock();
            let busy = state.lines.get(&key).is_some_and(|line| !line.queue.is_empty());
            match placement.room(job, self.room_tokens()) {
                Room::Nobody => return Ok(Entered::Nowhere),
                Room::Some if !busy => {
                    let placed = placement.choose(job, &HashSet::new(), None);
                    return Ok(placed.map_or(Entered::Nowhere, |p| Entered::Placed(p, None)));
                }
                Room::Some | Room::None => {}
            }
            self.sit_down(&mut state, placement, &key, job, came)?
        };
        let _seated = Seated { lines: self, key: &key, id };
        match tokio::time::timeout(WAIT_MAX, turn).await {
            Ok(Ok(Turn { placed: Some(placed), waited })) => {
                metrics::histogram!("mainstay_gateway_queue_wait_seconds")
                    .record(waited.took.as_secs_f64());
                Ok(Entered::Placed(placed, Some(waited)))
            }
            Ok(_) => Ok(Entered::Nowhere),
            Err(_) => {
                metrics::counter!("mainstay_gateway_queue_refused_total", "reason" => "waited")
                    .increment(1);
                let message = "no worker had room for this request within a minute; try again";
                Err(ApiError::new(ErrorKind::Overloaded, message).with_retry_after_s(5))
            }
        }
    }

    fn room_tokens(&self) -> f64 {
        self.inner.settings.room_tokens().unwrap_or(f64::INFINITY)
    }

    /// Takes a place in the queue.
    fn sit_down(
        &self,
        state: &mut State,
        placement: &Placement,
        key: &Key,
        job: &Arc<Job>,
        came: Instant,
    ) -> Result<(u64, oneshot::Receiver<Turn>), ApiError> {
        if state.lines.len() >= LINES_MAX && !state.lines.contains_key(key) {
            state.lines.retain(|_, line| !line.queue.is_empty());
        }
        state.last_id += 1;
        let id = state.last_id;
        let settings = self.inner.settings;
        let fresh = || Line { queue: RequestQueue::new(settings), seats: HashMap::new() };
        let line = state.lines.entry(key.clone()).or_insert_with(fresh);
        let waiting = Waiting {
            id,
            tenant: job.tenant.clone(),
            weight: 1.0,
            program: job.program,
            priority: job.priority,
            tier: job.tier,
            uncached_tokens: placement.uncached_tokens(job),
            output_tokens: job.expected_output_tokens,
        };
        line.queue.offer(placement.now_ms(), waiting).map_err(|refusal| refused(&refusal))?;
        let (go, turn) = oneshot::channel();
        line.seats.insert(id, Seat { job: Arc::clone(job), came, go });
        if !state.turning {
            state.turning = true;
            tokio::spawn(self.clone().turn(placement.clone()));
        }
        Ok((id, turn))
    }

    /// Lets requests go on until nobody waits.
    async fn turn(self, placement: Placement) {
        loop {
            tokio::time::sleep(TURN_EVERY).await;
            let mut state = self.inner.state.lock();
            let mut waiting = 0;
            for (key, line) in &mut state.lines {
                self.turn_one(&placement, key, line);
                waiting += line.queue.len();
            }
            metrics::gauge!("mainstay_gateway_queue_waiting").set(waiting as f64);
            if waiting == 0 {
                state.turning = false;
                return;
            }
        }
    }

    fn turn_one(&self, placement: &Placement, key: &Key, line: &mut Line) {
        while let Some(any) = line.seats.values().next() {
            if matches!(placement.room(&any.job, self.room_tokens()), Room::None) {
                return;
            }
            let Some(waiting) = line.queue.next(placement.now_ms()) else { return };
            let Some(Seat { job, came, go }) = line.seats.remove(&waiting.id) else { continue };
            if go.is_closed() {
                continue;
            }
            let before = line.seats.values().filter(|other| other.came < came);
            let overtook = before.take(OVERTOOK_MAX).count();
            let took = came.elapsed();
            let queued = Queued { took, overtook };
            let placed = placement.choose(&job, &HashSet::new(), Some(queued));
            let (lines, key) = (self.clone(), key.clone());
            let waited = Box::new(Waited { lines, key, waiting, took });
            // Whoever left meanwhile gives his booking back.
            if let Err(Turn { placed: Some(placed), .. }) = go.send(Turn { placed, waited }) {
                placed.cancel();
            }
        }
    }
}

/// What a request went through in the queue, for explanations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queued {
    pub(crate) took: Duration,
    /// How many that came before it were still waiting then.
    pub(crate) overtook: usize,
}

/// Whether any worker takes another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Some does.
    Some,
    /// All have enough to do.
    None,
    /// There is no worker.
    Nobody,
}
