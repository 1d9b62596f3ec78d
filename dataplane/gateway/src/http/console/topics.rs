//! Topics: what the console shows, each a table of rows under keys that stay the same from look to look.
//!
//! A row holds nothing that changes by itself, so ends are points in time and not times left: a stream sends what has
//! changed, and a page counts down by itself.

use std::sync::Arc;

use mainstay_chat::{ApiError, ErrorKind, SessionView};
use mainstay_state::{Machine, Pin, Worker};
use mainstay_types::{SessionId, TenantId, WorkerId};
use serde_json::{Value, json};

use super::blocks::{Census, census, tiers_json};
use super::{App, Status};
use crate::history::{Sample, shown_ms, unix_ms};
use crate::http::staleness::Basis;
use crate::http::{admin, explain_json, sessions};
use crate::lanes::{Lane, Mark, Turn};
use crate::placement::Explained;
use crate::workers::WorkerEntry;

/// Live pins in the table, those that end soonest; and ended ones, the latest.
const PINS_MAX: usize = 1_000;
const ENDED_PINS_MAX: usize = 50;
/// Sessions in the table, the latest.
const SESSIONS_MAX: usize = 200;
/// Turns and marks of each of them, the latest.
const TURNS_MAX: usize = 32;
/// Workers whose epoch is over, the latest.
const GONE_WORKERS_MAX: usize = 64;
/// Candidates of a decision; `/api/v1/requests/{id}/explain` has all that are kept.
const CANDIDATES_MAX: usize = 8;
/// Reasons why the gateway is not ready.
const REASONS_MAX: usize = 8;

/// What may be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Overview,
    Workers,
    Pins,
    Sessions,
    Decisions,
    Members,
}

impl Topic {
    pub(super) const ALL: [Self; 6] =
        [Self::Overview, Self::Workers, Self::Pins, Self::Sessions, Self::Decisions, Self::Members];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Workers => "workers",
            Self::Pins => "pins",
            Self::Sessions => "sessions",
            Self::Decisions => "decisions",
            Self::Members => "members",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }
}

/// A topic at one moment.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Rows and their keys, in the order in which they are to be shown first.
    pub(super) rows: Vec<(String, Value)>,
    /// There are more rows than these.
    pub(super) has_more: bool,
    /// What is said of all of them.
    pub(super) about: Value,
}

impl Table {
    /// All of it as an answer.
    pub(super) fn list(self, topic: Topic, basis: Basis) -> Value {
        let row = |(key, mut row): (String, Value)| {
            row["key"] = Value::String(key);
            row
        };
        json!({
            "object": "list", "topic": topic.name(), "log_index": basis.log_index,
            "index_age_ms": basis.age_ms, "now_unix_ms": unix_ms(), "has_more": self.has_more,
            "about": self.about, "data": self.rows.into_iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// Looks at a topic, with the eyes of a tenant.
pub(super) async fn look(app: &App, tenant: &TenantId, topic: Topic) -> Result<Table, ApiError> {
    let status = match topic {
        Topic::Overview | Topic::Members => Some(super::status(app).await),
        _ => None,
    };
    let (app, tenant) = (app.clone(), tenant.clone());
    // Thousands of rows are milliseconds of work, and the index is walked under a lock.
    let table = tokio::task::spawn_blocking(move || match topic {
        Topic::Overview => Ok(overview(&app, &tenant, status)),
        Topic::Workers => Ok(workers(&app)),
        Topic::Pins => {
            // Its clock went on since its last entry.
            let age_ms = Basis::of_replica(&app).age_ms.unwrap_or(0);
            Ok(app.replica.read(|m| pins(m, &tenant, m.time().now_ms.saturating_add(age_ms))))
        }
        Topic::Sessions => Ok(sessions_of(&app, &tenant)),
        Topic::Decisions => Ok(decisions(&app, &tenant)),
        Topic::Members => members(status),
    });
    table.await.map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string()))?
}

/// Sums of a stretch of time.
fn sums(sample: &Sample) -> Value {
    json!({
        "requests": sample.requests, "refused": sample.refused,
        "prompt_tokens": sample.prompt_tokens, "cached_tokens": sample.cached_tokens,
        "completion_tokens": sample.completion_tokens,
        "ttft_p50_ms": shown_ms(sample.times.quantile(0.5)),
        "ttft_p95_ms": shown_ms(sample.times.quantile(0.95)),
        "ttft_p99_ms": shown_ms(sample.times.quantile(0.99)),
    })
}

fn fleet_json(sample: &Sample) -> Value {
    let f = sample.fleet;
    json!({
        "running": f.running, "waiting": f.waiting, "blocks_total": f.blocks_total,
        "blocks_used": f.blocks_used, "blocks_pinned": f.blocks_pinned,
        "blocks_cached": f.blocks_cached, "evictions": f.evictions,
        "computed_tokens": f.computed_tokens, "decoded_tokens": f.decoded_tokens,
    })
}

fn overview(app: &App, tenant: &TenantId, status: Option<Status>) -> Table {
    let history = &app.console.history;
    let minutes = history.last(300);
    let control = match status {
        Some(Ok(s)) => json!({
            "leader": s.leader, "term": s.term, "members": s.members.len(),
            "reachable": s.members.iter().filter(|m| m.reachable).count(), "drift": s.index_drift,
        }),
        Some(Err(problem)) => json!({"problem": problem}),
        None => Value::Null,
    };
    let mut reasons = app.workers.troubles();
    reasons.truncate(REASONS_MAX);
    let routable = app.workers.routable_count();
    if routable == 0 {
        reasons.push("no worker can take a request".to_owned());
    }
    let (workers, pins, own_pins) = app.replica.read(|m| {
        let own = m.pins().filter(|p| p.is_live() && p.request.tenant == *tenant).count();
        (m.workers().filter(|w| w.is_live()).count(), m.live_pin_count(), own)
    });
    let (_, indexed) = app.replica.held(&[]);
    let [count, prompt, placed, best] = app.placement.overlaps();
    let row = json!({
        "last_5_minutes": {"gateway": sums(&minutes), "fleet": fleet_json(&minutes)},
        "placements": {
            "count": count, "prompt_blocks": prompt, "held_where_placed": placed, "held_somewhere": best,
        },
        "workers": {"live": workers, "routable": routable},
        "pins": {"live": pins, "own": own_pins},
        "index_blocks": indexed,
        "control": control,
        "reasons": reasons,
        "requests_in_flight": app.requests_max.saturating_sub(app.permits.available_permits()),
        "models": app.workers.model_names(),
    });
    let uptime = u64::try_from(app.console.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let about = json!({
        "tenant": tenant.as_str(), "program_version": env!("CARGO_PKG_VERSION"),
        "region": app.region.as_str(), "policy": app.console.settings["policy"],
        "requests_max": app.requests_max,
        // To the second before, or it would be news on every look.
        "started_unix_ms": unix_ms().saturating_sub(uptime) / 1_000 * 1_000,
    });
    Table { rows: vec![("now".to_owned(), row)], has_more: false, about }
}

fn workers(app: &App) -> Table {
    let mut known: Vec<Worker> = app.replica.read(|m| m.workers().cloned().collect());
    // Who lives by name, then who went, the latest first.
    known.sort_by(|a, b| (!a.is_live(), &a.name).cmp(&(!b.is_live(), &b.name)));
    let live = known.iter().filter(|w| w.is_live()).count();
    known[live..].sort_by_key(|w| std::cmp::Reverse(w.changed_index));
    let has_more = known.len() > live + GONE_WORKERS_MAX;
    known.truncate(live + GONE_WORKERS_MAX);
    let ids: Vec<WorkerId> = known.iter().map(|w| w.id).collect();
    let (held, indexed) = app.replica.held(&ids);
    let census = census(app);
    let mut entries = app.workers.all();
    entries.sort_by_key(|e| e.id);
    let entry = |worker: &Worker| {
        let at = entries.binary_search_by_key(&worker.id, |e| e.id).ok()?;
        Some(&*entries[at]).filter(|e| e.epoch == worker.epoch)
    };
    let row = |(worker, held): (&Worker, &u64)| {
        (worker.id.0.to_string(), worker_json(worker, entry(worker), *held, &census))
    };
    let about = json!({
        "index_blocks": indexed, "live": live,
        "classes_counted": census.of(WorkerId(0)).is_some(), "entries_max": super::blocks::ENTRIES_MAX,
    });
    Table { rows: known.iter().zip(&held).map(row).collect(), has_more, about }
}

fn worker_json(worker: &Worker, entry: Option<&WorkerEntry>, held: u64, census: &Census) -> Value {
    let (load, heard) = entry.map(WorkerEntry::load).unwrap_or_default();
    json!({
        "id": worker.id.0, "name": worker.name, "address": worker.address,
        "region": worker.region.as_str(), "model": worker.model.name, "epoch": worker.epoch.0,
        "state": worker.state.name(), "changed_index": worker.changed_index.0,
        "routable": entry.is_some_and(WorkerEntry::routable), "heard": heard.is_some(),
        "draining": load.draining, "running": load.running, "waiting": load.waiting,
        "waiting_prefill_tokens": load.waiting_prefill_tokens,
        "blocks_total": worker.blocks_total, "blocks_used": load.blocks_used,
        "blocks_pinned": load.blocks_pinned, "blocks_cached": load.blocks_cached,
        "blocks_indexed": held, "tiers": census.of(worker.id).map(tiers_json),
        "hit_tokens": load.hit_tokens, "query_tokens": load.query_tokens,
        "evictions": load.evictions, "computed_tokens": load.prefill_tokens,
        "decoded_tokens": load.decode_tokens,
        "prefill_us_per_token": (f64::from(load.prefill_us_per_token) * 10.0).round() / 10.0,
        "decode_us_per_step": f64::from(load.decode_us_per_step).round(),
    })
}

fn pins(machine: &Machine, tenant: &TenantId, cluster_ms: u64) -> Table {
    let own = || machine.pins().filter(|p| p.request.tenant == *tenant);
    let mut live: Vec<&Pin> = own().filter(|p| p.is_live()).collect();
    let mut ended: Vec<&Pin> = own().filter(|p| !p.is_live()).collect();
    let count = live.len();
    live.sort_by_key(|p| (p.expires_ms, p.request.id));
    ended.sort_by_key(|p| std::cmp::Reverse((p.changed_index, p.request.id)));
    let has_more = count > PINS_MAX;
    live.truncate(PINS_MAX);
    ended.truncate(ENDED_PINS_MAX);
    let row = |p: &Pin| (format!("p-{:032x}", p.request.id.0), pin_json(machine, p));
    let about = json!({
        "live": count, "pinned_blocks": machine.tenant_pinned_blocks(tenant),
        // The cluster's clock to the second, by which pins end; a page that needs it finer has its own.
        "cluster_ahead_ms": clock_difference(cluster_ms, unix_ms()),
    });
    Table { rows: live.into_iter().chain(ended).map(row).collect(), has_more, about }
}

/// How far the cluster's clock is ahead of this machine's, without what a tick of it amounts to.
fn clock_difference(cluster_ms: u64, unix_ms: u64) -> i64 {
    const TICK_MS: i64 = 1_000;
    let ahead = i64::try_from(cluster_ms).unwrap_or(i64::MAX);
    let ahead = ahead.saturating_sub(i64::try_from(unix_ms).unwrap_or(i64::MAX));
    if ahead.abs() < TICK_MS { 0 } else { ahead / TICK_MS * TICK_MS }
}

fn pin_json(machine: &Machine, pin: &Pin) -> Value {
    let request = &pin.request;
    let holders: Vec<Value> = pin
        .holders
        .iter()
        .map(|(id, blocks)| json!({"worker": machine.worker_name(*id), "worker_id": id.0, "blocks_held": blocks}))
        .collect();
    let last = request.blocks.last().map(|hash| format!("{:08x}", hash.0 >> 96));
    json!({
        "state": pin.state.name(), "reason": pin.reason, "owner": request.owner.as_ref().map_or("", SessionId::as_str),
        "prefix_tokens": request.prefix_tokens, "blocks": request.blocks.len(),
        // Enough of it to tell two prefixes apart.
        "last_block": last, "ttl_ms": request.ttl_ms, "created_unix_ms": pin.created_ms,
        "expires_unix_ms": pin.expires_ms, "priority": request.priority,
        "copies_min": request.copies_min, "copies": pin.copies(),
        "recompute": request.tokens.is_some(), "orders": pin.keeping.orders.len(),
        "scope": request.scope.to_string(), "holders": holders,
    })
}

fn sessions_of(app: &App, tenant: &TenantId) -> Table {
    let (now_unix_ms, views, has_more) = app.sessions.list_at(tenant, SESSIONS_MAX);
    let name = |id: WorkerId| app.replica.read(|m| m.worker(id).map(|w| w.name.clone()));
    let row = |view: SessionView| {
        let lane = app.sessions.lanes().of(tenant, &view.key).unwrap_or_default();
        let mut row = sessions::session_json(&view);
        if let Some(row) = row.as_object_mut() {
            // Ages change by themselves.
            row.shift_remove("age_ms");
            row.shift_remove("last_seen_ms_ago");
            row.shift_remove("object");
        }
        row["started_unix_ms"] = now_unix_ms.saturating_sub(view.age_ms).into();
        row["seen_unix_ms"] = now_unix_ms.saturating_sub(view.seen_ms_ago).into();
        (row["lane"], row["marks"]) = lane_json(&lane, &name);
        (view.key, row)
    };
    let rows: Vec<_> = views.into_iter().map(row).collect();
    let of = |state: &str| rows.iter().filter(|(_, row)| row["state"] == state).count();
    let about = json!({
        "active": of("active"), "paused": of("paused"), "waiting": of("waiting"), "ended": of("ended"),
    });
    Table { rows, has_more, about }
}

/// The latest turns and marks.
fn lane_json(lane: &Lane, name: &impl Fn(WorkerId) -> Option<String>) -> (Value, Value) {
    let turn = |turn: &Turn| {
        json!({
            "request": turn.request.to_string(), "worker": turn.worker.and_then(name),
            "began_unix_ms": turn.began_ms, "first_unix_ms": turn.first_ms,
            "ended_unix_ms": turn.ended_ms, "end": turn.end.name(), "aside": turn.aside,
            "cold": turn.cold, "again_tokens": turn.again_tokens,
            "prompt_tokens": turn.prompt_tokens, "cached_tokens": turn.cached_tokens,
            "completion_tokens": turn.completion_tokens,
        })
    };
    let mark =
        |mark: &Mark| json!({"at_unix_ms": mark.at_ms, "change": mark.change, "why": mark.why});
    let skip = |all: usize| all.saturating_sub(TURNS_MAX);
    let turns = lane.turns.iter().skip(skip(lane.turns.len())).map(turn);
    let marks = lane.marks.iter().skip(skip(lane.marks.len())).map(mark);
    (turns.collect(), marks.collect())
}

fn decisions(app: &App, tenant: &TenantId) -> Table {
    let row = |mut explained: Explained| {
        let considered = explained.decision.considered;
        explained.decision.candidates.truncate(CANDIDATES_MAX);
        let mut row = explain_json(app, &explained);
        row["at_unix_ms"] = explained.at_unix_ms.into();
        row["considered"] = considered.into();
        (format!("{}@{}", explained.request, explained.at_unix_ms), row)
    };
    let rows = app.placement.recent(tenant).into_iter().map(row).collect();
    Table { rows, has_more: false, about: json!({"policy": app.console.settings["policy"]}) }
}

fn members(status: Option<Status>) -> Result<Table, ApiError> {
    let absent = || "no member was asked".to_owned();
    let s: Arc<_> = status.unwrap_or_else(|| Err(absent())).map_err(|problem| {
        let text = format!("the control plane does not answer, try again: {problem}");
        ApiError::new(ErrorKind::Unavailable, text)
    })?;
    let row = |m| {
        let mut row = admin::member_json(m);
        row["leads"] = (m.id == s.leader && m.reachable).into();
        (m.id.to_string(), row)
    };
    let about = json!({
        "asked": s.node, "leader": s.leader, "term": s.term, "last_log_index": s.last_log_index,
        "applied_index": s.applied_index, "drift": s.index_drift, "cluster_version": s.cluster_version,
    });
    Ok(Table { rows: s.members.iter().map(row).collect(), has_more: false, about })
}
