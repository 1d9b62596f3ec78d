//! Agents whose sessions grow turn by turn over all three APIs, streamed and not, some of them pinned; and what came of it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::Client;
use mainstay_cluster_tests::rng::Rng;
use serde_json::{Value, json};

use crate::rolling::either;
use crate::{filler, usage, user};

/// Of a session.
const TURNS_MAX: u64 = 14;
const OUTPUT_TOKENS: u32 = 24;
/// Errors whose text is kept.
const ERRORS_MAX: usize = 20;
/// Turns that may be begun at once after nobody could begin one.
const BURST_MAX: f64 = 8.0;

/// How often it is looked whether a turn may begin.
const STEP: Duration = Duration::from_millis(5);

/// What the agents did.
#[derive(Default)]
pub(super) struct Tally {
    turns: AtomicU64,
    sessions: AtomicU64,
    pins: AtomicU64,
    elsewhere: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    failed: AtomicU64,
    errors: Mutex<VecDeque<String>>,
}

impl Tally {
    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The first errors.
    pub(super) fn errors(&self) -> Vec<String> {
        self.errors.lock().expect("no holder panics").iter().cloned().collect()
    }

    pub(super) fn row(&self) -> String {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let prompt = of(&self.prompt_tokens).max(1);
        format!(
            "{} turns of {} sessions, {} pins, {} failed, {} connections refused and made elsewhere, {:.1} % of {} \
             prompt tokens cached",
            of(&self.turns),
            of(&self.sessions),
            of(&self.pins),
            of(&self.failed),
            of(&self.elsewhere),
            of(&self.cached_tokens) as f64 / prompt as f64 * 100.0,
            prompt
        )
    }

    fn fail(&self, error: &anyhow::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock().expect("no holder panics");
        if errors.len() < ERRORS_MAX {
            println!("error: {error:#}");
            errors.push_back(format!("{error:#}"));
        }
    }
}

/// How fast turns begin, in all.
pub(super) struct Pace {
    /// Turns a second; none is as fast as they end.
    rate: Mutex<Option<f64>>,
    free: Mutex<f64>,
    ended: AtomicBool,
}

impl Pace {
    pub(super) fn unlimited() -> Self {
        let (rate, free) = (Mutex::new(None), Mutex::new(0.0));
        Self { rate, free, ended: AtomicBool::new(false) }
    }

    pub(super) fn set(&self, per_second: f64) {
        *self.rate.lock().expect("no holder panics") = Some(per_second);
    }

    /// No turn begins from here on.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether a turn may begin now.
    fn takes(&self) -> bool {
        if self.rate.lock().expect("no holder panics").is_none() {
            return true;
        }
        let mut free = self.free.lock().expect("no holder panics");
        let takes = *free >= 1.0;
        *free -= f64::from(u8::from(takes));
        takes
    }

    /// Waits until a turn may begin, or none may any more.
    async fn turn(&self) {
        while !self.has_ended() && !self.takes() {
            tokio::time::sleep(STEP).await;
        }
    }

    /// Lets turns begin as time goes on.
    async fn run(&self) {
        let mut last = tokio::time::Instant::now();
        while !self.has_ended() {
            tokio::time::sleep(STEP).await;
            let rate = self.rate.lock().expect("no holder panics").unwrap_or_default();
            let mut free = self.free.lock().expect("no holder panics");
            *free = (*free + rate * last.elapsed().as_secs_f64()).min(BURST_MAX);
            last = tokio::time::Instant::now();
        }
    }
}

/// Runs all, until the pace has ended.
pub(super) async fn run(count: u64, clients: &[Client], pace: &Pace, tally: &Tally, rng: &mut Rng) {
    let agents = (0..count).map(|_| Agent { clients, pace, tally, rng: rng.fork() }.run());
    let agents: Vec<_> = agents.collect();
    tokio::join!(pace.run(), futures::future::join_all(agents));
}

struct Agent<'a> {
    clients: &'a [Client],
    pace: &'a Pace,
    tally: &'a Tally,
    rng: Rng,
}

impl Agent<'_> {
    async fn run(mut self) {
        while !self.pace.has_ended() {
            if let Err(error) = self.session().await {
                self.tally.fail(&error);
            }
            self.tally.sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn session(&mut self) -> Result<()> {
        let name = format!("s{:x}", self.rng.draw());
        let mut messages = vec![user(&filler(self.rng.draw() >> 20, self.rng.pick(10..60)))];
        let pinned = self.rng.percent(20);
        for turn in 0..self.rng.pick(3..TURNS_MAX) {
            self.pace.turn().await;
            if self.pace.has_ended() {
                return Ok(());
            }
            let said = self.turn(&name, &messages).await;
            let said = said.with_context(|| format!("turn {turn} of {name}"))?;
            self.tally.turns.fetch_add(1, Ordering::Relaxed);
            messages.push(json!({"role": "assistant", "content": said}));
            messages.push(user(&filler(self.rng.draw() >> 20, self.rng.pick(1..8))));
            if pinned && turn == 1 {
                self.pin(&name, &messages).await.with_context(|| format!("the pin of {name}"))?;
            }
        }
        Ok(())
    }

    async fn turn(&mut self, session: &str, messages: &[Value]) -> Result<String> {
        let (first, kind) = (self.rng.pick(0..2) as usize, self.rng.pick(0..4));
        let common = json!({"model": "demo", "temperature": 0});
        let (path, more, text) = match kind {
            0 | 1 => (
                "/v1/chat/completions",
                json!({"messages": messages, "max_tokens": OUTPUT_TOKENS, "prompt_cache_key": session}),
                "/choices/0/message/content",
            ),
            2 => (
                "/v1/messages",
                json!({"messages": messages, "max_tokens": OUTPUT_TOKENS, "metadata": {"user_id": session}}),
                "/content/0/text",
            ),
            _ => (
                "/v1/responses",
                json!({"input": messages, "max_output_tokens": OUTPUT_TOKENS, "prompt_cache_key": session}),
                "/output/0/content/0/text",
            ),
        };
        let mut body = common;
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        if kind == 1 {
            return self.streamed(first, body).await;
        }
        let tally = &self.tally;
        let reply = either(self.clients, first, &tally.elsewhere, async |client| {
            client.post(path, &body).await
        });
        let reply = reply.await.context(path)?;
        ensure!(reply.status == 200, "{path}: {}: {}", reply.status, reply.body);
        self.count(usage(path, &reply.body)?);
        let said = reply.body.pointer(text).and_then(Value::as_str);
        said.map(str::to_owned).with_context(|| format!("{path}: no text in {}", reply.body))
    }

    async fn streamed(&self, first: usize, mut body: Value) -> Result<String> {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let streamed = either(self.clients, first, &self.tally.elsewhere, async |client| {
            client.stream_chat(&body, |_, _| {}).await
        });
        let streamed = streamed.await.context("a stream")?;
        let last = streamed.events.last().context("a stream has events")?;
        self.count(usage("/v1/chat/completions", last)?);
        ensure!(!streamed.text.is_empty(), "a stream without text: {:?}", streamed.events);
        Ok(streamed.text)
    }

    async fn pin(&self, session: &str, messages: &[Value]) -> Result<()> {
        let pin = json!({"model": "demo", "ttl": "1m", "session": session, "messages": messages});
        let reply = either(self.clients, 0, &self.tally.elsewhere, async |client| {
            client.post("/v1/pins", &pin).await
        });
        let reply = reply.await?;
        ensure!(reply.status < 300, "{}: {}", reply.status, reply.body);
        self.tally.pins.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn count(&self, (prompt, cached): (u64, u64)) {
        self.tally.prompt_tokens.fetch_add(prompt, Ordering::Relaxed);
        self.tally.cached_tokens.fetch_add(cached, Ordering::Relaxed);
    }
}
