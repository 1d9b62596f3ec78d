//! The stream of changes: each stream looks at its topics once a second and sends what differs from what it sent.
//!
//! There is no queue of changes, so none can overflow: who reads slowly gets fewer pictures, not older ones, and who
//! takes nothing for ten seconds is cut off. Streams are few, overall and for each tenant, and rest for much longer than
//! a look took. The caller's key is looked at again each time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use mainstay_chat::{ApiError, ErrorKind};
use mainstay_types::TenantId;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::topics::{self, Table, Topic};
use super::{AdminError, App, Params, caller};
use crate::history::unix_ms;
use crate::http::door;

/// Streams of a gateway, and of one of its tenants.
const STREAMS_MAX: usize = 32;
const STREAMS_PER_TENANT_MAX: usize = 8;
/// Frames on their way to one reader.
const FRAMES_MAX: usize = 4;
/// How quick a stream is.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Between two looks.
    pub(super) look: Duration,
    /// A reader that takes nothing for this long is cut off.
    pub(super) stall: Duration,
}

const USUAL: Pace = Pace { look: Duration::from_secs(1), stall: Duration::from_secs(10) };
/// A look is followed by a rest of this many times its length.
const REST_FACTOR: u32 = 20;
/// A rest at most: a member that does not answer makes looks long, and they cost nothing then.
const REST_MAX: Duration = Duration::from_secs(5);
/// Silence after which a comment is sent, so that both ends know of each other.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE: &str = ": alive\n\n";

/// How many streams there are, by tenant.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<HashMap<TenantId, usize>>>);

/// One stream's place; given back when it ends.
struct Place {
    streams: Streams,
    tenant: TenantId,
}

impl Streams {
    fn enter(&self, tenant: &TenantId) -> Result<Place, ApiError> {
        let mut open = self.0.lock();
        let (own, all) = (open.get(tenant).copied().unwrap_or(0), open.values().sum::<usize>());
        if own >= STREAMS_PER_TENANT_MAX || all >= STREAMS_MAX {
            let text = format!(
                "{own} consoles of this tenant and {all} in all are open here; close one, or open another gateway's"
            );
            return Err(ApiError::new(ErrorKind::RateLimited, text).with_retry_after_s(5));
        }
        *open.entry(tenant.clone()).or_default() += 1;
        Ok(Place { streams: self.clone(), tenant: tenant.clone() })
    }
}

#[cfg(test)]
impl Streams {
    pub(super) fn count(&self) -> usize {
        self.0.lock().values().sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock();
        match open.get_mut(&self.tenant) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.tenant)),
        }
    }
}

#[derive(serde::Deserialize)]
pub(in crate::http) struct EventsQuery {
    pub(super) topics: Option<String>,
}

/// The topics asked for, each once; all of them if nobody says.
fn parse_topics(text: Option<&str>) -> Result<Vec<Topic>, ApiError> {
    let Some(text) = text else { return Ok(Topic::ALL.to_vec()) };
    let mut topics = Vec::new();
    for name in text.split(',') {
        let topic = Topic::from_name(name.trim()).ok_or_else(|| {
            let names: Vec<&str> = Topic::ALL.iter().map(|t| t.name()).collect();
            ApiError::invalid("topics", &format!("expected some of {}", names.join(",")))
        })?;
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    Ok(topics)
}

/// `GET /api/v1/console/events`
pub(in crate::http) async fn events(
    State(app): State<App>,
    headers: HeaderMap,
    Params(query): Params<EventsQuery>,
) -> Result<Response, AdminError> {
    stream(app, headers, query, USUAL)
}

/// Opens a stream, if there is room for one.
pub(super) fn stream(
    app: App,
    headers: HeaderMap,
    query: EventsQuery,
    pace: Pace,
) -> Result<Response, AdminError> {
    let tenant = caller(&app, &headers)?;
    let topics = parse_topics(query.topics.as_deref())?;
    let place = app.console.streams.enter(&tenant)?;
    let (frames, reader) = mpsc::channel(FRAMES_MAX);
    let stream = Stream {
        app,
        headers,
        place,
        frames,
        pace,
        sent: topics.into_iter().map(|topic| (topic, Sent::default())).collect(),
    };
    tokio::spawn(stream.run());
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(reader)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What a reader has of a topic: a hash of each row, of what was said of all, or of the problem that came instead.
#[derive(Default)]
struct Sent {
    begun: bool,
    rows: HashMap<String, u64>,
    about: u64,
    problem: Option<String>,
}

/// Hashes of this process, so that nobody can make two rows look equal.
fn hash_of(value: &Value) -> u64 {
    static KEY: std::sync::LazyLock<ahash::RandomState> =
        std::sync::LazyLock::new(ahash::RandomState::new);
    KEY.hash_one(value.to_string())
}

impl Sent {
    /// What a reader lacks, or `None` if that is nothing.
    fn news(&mut self, topic: Topic, table: Table) -> Option<Value> {
        let Table { rows, has_more, about } = table;
        let first = !self.begun || self.problem.is_some();
        if first {
            *self = Self { begun: true, ..Self::default() };
        }
        let (mut set, mut now) = (Map::new(), HashMap::with_capacity(rows.len()));
        for (key, row) in rows {
            let hash = hash_of(&row);
            if self.rows.get(&key) != Some(&hash) {
                set.insert(key.clone(), row);
            }
            now.insert(key, hash);
        }
        let gone: Vec<String> =
            self.rows.keys().filter(|key| !now.contains_key(*key)).cloned().collect();
        self.rows = now;
        let about_hash = hash_of(&about) ^ u64::from(has_more);
        let about_changed = std::mem::replace(&mut self.about, about_hash) != about_hash;
        if !first && set.is_empty() && gone.is_empty() && !about_changed {
            return None;
        }
        Some(json!({
            "topic": topic.name(), "now_unix_ms": unix_ms(), "whole": first, "has_more": has_more,
            "about": about, "rows": set, "gone": gone,
        }))
    }

    /// A problem, once.
    fn trouble(&mut self, topic: Topic, error: &ApiError) -> Option<Value> {
        if self.problem.as_ref() == Some(&error.message) {
            return None;
        }
        (self.begun, self.problem) = (true, Some(error.message.clone()));
        Some(json!({"topic": topic.name(), "now_unix_ms": unix_ms(), "problem": error.message}))
    }
}

/// One reader's stream.
struct Stream {
    app: App,
    headers: HeaderMap,
    place: Place,
    frames: mpsc::Sender<Result<Bytes, Infallible>>,
    pace: Pace,
    sent: Vec<(Topic, Sent)>,
}

impl Stream {
    async fn run(mut self) {
        let mut stopped = self.app.stopped.clone();
        let mut said = Instant::now();
        loop {
            let began = Instant::now();
            let mut text = match self.look().await {
                Ok(text) => text,
                Err(end) => {
                    let _ = self.say(event("end", &json!({"reason": end.message}))).await;
                    return;
                }
            };
            if text.is_empty() && said.elapsed() >= KEEPALIVE_AFTER {
                text.push_str(KEEPALIVE);
            }
            let rest = began.elapsed().saturating_mul(REST_FACTOR).clamp(self.pace.look, REST_MAX);
            if !text.is_empty() {
                said = Instant::now();
                if !self.say(text).await {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.frames.closed() => return,
                () = door::ends(&mut stopped) => {
                    let reason = "this gateway ends; another one will answer";
                    let _ = self.say(event("end", &json!({"reason": reason}))).await;
                    return;
                }
            }
        }
    }

    /// What has changed, as frames; empty if nothing has.
    async fn look(&mut self) -> Result<String, ApiError> {
        let tenant = self.app.tenants.of(&self.headers)?;
        if tenant != self.place.tenant {
            let text = "this key stands for another tenant now; open the console anew";
            return Err(ApiError::new(ErrorKind::Authentication, text));
        }
        let mut text = String::new();
        for (topic, sent) in &mut self.sent {
            let news = match topics::look(&self.app, &tenant, *topic).await {
                Ok(table) => sent.news(*topic, table),
                Err(error) => sent.trouble(*topic, &error),
            };
            text.extend(news.map(|news| event("rows", &news)));
        }
        Ok(text)
    }

    /// Whether the reader is still there.
    async fn say(&self, text: String) -> bool {
        self.frames.send_timeout(Ok(Bytes::from(text)), self.pace.stall).await.is_ok()
    }
}

/// One event. JSON has no line breaks of its own.
fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, u64)]) -> Table {
        let rows = rows.iter().map(|(key, value)| ((*key).to_owned(), json!({"v": value})));
        Table { rows: rows.collect(), ..Table::default() }
    }

    #[test]
    fn a_reader_gets_all_first_and_then_what_differs() {
        let mut sent = Sent::default();
        let news = sent.news(Topic::Pins, table(&[("a", 1), ("b", 1)])).expect("all of it");
        assert_eq!((&news["whole"], &news["rows"]["b"]["v"]), (&json!(true), &json!(1)));
        assert_eq!(sent.news(Topic::Pins, table(&[("a", 1), ("b", 1)])), None);
        let news = sent.news(Topic::Pins, table(&[("b", 2), ("c", 1)])).expect("something");
        assert_eq!((&news["whole"], &news["gone"]), (&json!(false), &json!(["a"])));
        assert_eq!(news["rows"], json!({"b": {"v": 2}, "c": {"v": 1}}));
        let more = Table { has_more: true, ..table(&[("b", 2), ("c", 1)]) };
        assert_eq!(sent.news(Topic::Pins, more).expect("there are more")["has_more"], json!(true));
    }

    #[test]
    fn an_empty_topic_is_told_once() {
        let mut sent = Sent::default();
        assert!(sent.news(Topic::Pins, Table::default()).is_some(), "there are none");
        assert!(sent.news(Topic::Pins, Table::default()).is_none());
    }

    #[test]
    fn a_problem_is_told_once_and_all_rows_after_it() {
        let mut sent = Sent::default();
        sent.news(Topic::Members, table(&[("a", 1)]));
        let error = ApiError::new(ErrorKind::Unavailable, "nobody answers");
        let problem = sent.trouble(Topic::Members, &error).expect("news");
        assert_eq!(problem["problem"], "nobody answers");
        assert_eq!(sent.trouble(Topic::Members, &error), None);
        let news = sent.news(Topic::Members, table(&[("a", 1)])).expect("all of it");
        assert_eq!((&news["whole"], &news["rows"]["a"]["v"]), (&json!(true), &json!(1)));
    }

    #[test]
    fn topics_are_named_and_unknown_ones_refused() {
        let parsed = parse_topics(Some("pins, workers,pins")).expect("known");
        assert_eq!(parsed, [Topic::Pins, Topic::Workers]);
        assert_eq!(parse_topics(None).expect("all"), Topic::ALL);
        let error = parse_topics(Some("pins,prompts")).expect_err("unknown");
        assert!(error.message.contains("overview"), "{}", error.message);
        assert!(parse_topics(Some("")).is_err());
    }

    #[test]
    fn streams_are_few_and_places_come_back() {
        let streams = Streams::default();
        let tenant = |n: usize| TenantId::new(&format!("t{n}")).expect("a name");
        let own: Vec<_> = (0..STREAMS_PER_TENANT_MAX).map(|_| streams.enter(&tenant(0))).collect();
        assert!(own.iter().all(Result::is_ok));
        let refused = streams.enter(&tenant(0)).err().expect("one too many");
        assert_eq!(refused.kind, ErrorKind::RateLimited);
        let others: Vec<_> = (1..=STREAMS_MAX).map(|n| streams.enter(&tenant(n))).collect();
        let let_in = others.iter().filter(|place| place.is_ok()).count();
        assert_eq!(let_in, STREAMS_MAX - STREAMS_PER_TENANT_MAX);
        drop((own, others));
        assert!(streams.0.lock().is_empty() && streams.enter(&tenant(0)).is_ok());
    }
}
