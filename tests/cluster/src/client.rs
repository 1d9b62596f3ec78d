//! A plain HTTP client for tests: JSON in and out, and streams read event by event.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde_json::{Value, json};

/// An answer with its status.
pub struct Reply {
    pub status: u16,
    pub body: Value,
    pub retry_after: Option<String>,
    /// `mainstay-index-age-ms`.
    pub age_ms: Option<u64>,
    /// `mainstay-log-index`.
    pub log_index: Option<u64>,
}

/// A stream, read to its end.
#[derive(Debug)]
pub struct Streamed {
    pub text: String,
    pub events: Vec<Value>,
    pub ttft: Duration,
}

/// Talks to one gateway.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of the gateway at `base`, such as `http://127.0.0.1:8000`.
    pub fn new(base: &str) -> Self {
        Self { http: reqwest::Client::new(), base: base.to_owned() }
    }

    /// A client that shows an API key.
    pub fn with_key(base: &str, key: &str) -> Result<Self> {
        Self::with_header(base, "authorization", &format!("Bearer {key}"))
    }

    /// A client of the same gateway that sends this header instead of what this one sends.
    pub fn and_header(&self, name: &'static str, value: &str) -> Result<Self> {
        Self::with_header(&self.base, name, value)
    }

    /// A client that sends this header with each request.
    pub fn with_header(base: &str, name: &'static str, value: &str) -> Result<Self> {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert(name, value.parse()?);
        let http = reqwest::Client::builder().default_headers(headers).build()?;
        Ok(Self { http, base: base.to_owned() })
    }

    /// A GET.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        read(self.http.get(format!("{}{path}", self.base)).send().await?).await
    }

    /// A POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        read(self.http.post(format!("{}{path}", self.base)).json(body).send().await?).await
    }

    /// A PATCH with JSON.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Reply> {
        read(self.http.patch(format!("{}{path}", self.base)).json(body).send().await?).await
    }

    /// A DELETE.
    pub async fn delete(&self, path: &str) -> Result<Reply> {
        read(self.http.delete(format!("{}{path}", self.base)).send().await?).await
    }

    /// A POST of raw bytes.
    pub async fn post_raw(&self, path: &str, body: Vec<u8>) -> Result<Reply> {
        let request = self.http.post(format!("{}{path}", self.base));
        read(request.header("content-type", "application/json").body(body).send().await?).await
    }

    /// A chat completion at temperature 0 of these messages; the answer must be 200.
    pub async fn chat(&self, messages: &Value, max_tokens: u32) -> Result<Value> {
        let body = json!({"model": "demo", "temperature": 0, "max_tokens": max_tokens, "messages": messages});
        let reply = self.post("/v1/chat/completions", &body).await?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        Ok(reply.body)
    }

    /// A streamed chat completion. `on_event` sees each event as it comes, with how many came before.
    pub async fn stream_chat(
        &self,
        body: &Value,
        mut on_event: impl FnMut(usize, &Value),
    ) -> Result<Streamed> {
        let started = Instant::now();
        let url = format!("{}/v1/chat/completions", self.base);
        let reply = self.http.post(url).json(body).send().await?;
        ensure!(reply.status() == 200, "{}: {}", reply.status(), reply.text().await?);
        let mut streamed =
            Streamed { text: String::new(), events: Vec::new(), ttft: Duration::ZERO };
        let mut stream = reply.bytes_stream();
        let mut rest = String::new();
        while let Some(chunk) = stream.next().await {
            rest.push_str(&String::from_utf8_lossy(&chunk?));
            while let Some(end) = rest.find("\n\n") {
                let frame: String = rest.drain(..end + 2).collect();
                let Some(data) = frame.lines().find_map(|l| l.strip_prefix("data: ")) else {
                    continue;
                };
                if data == "[DONE]" {
                    return Ok(streamed);
                }
                let event: Value = serde_json::from_str(data).context("an event is JSON")?;
                if let Some(delta) =
                    event.pointer("/choices/0/delta/content").and_then(Value::as_str)
                {
                    if streamed.ttft.is_zero() && !delta.is_empty() {
                        streamed.ttft = started.elapsed();
                    }
                    streamed.text.push_str(delta);
                }
                on_event(streamed.events.len(), &event);
                streamed.events.push(event);
            }
        }
        anyhow::bail!("the stream ended without [DONE] after {} events", streamed.events.len())
    }

    /// Waits until `probe` finds what it looks for in `GET path`.
    pub async fn wait_for<T>(
        &self,
        path: &str,
        limit: Duration,
        probe: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            let last = self.get(path).await;
            if let Ok(reply) = &last
                && let Some(found) = probe(&reply.body)
            {
                return Ok(found);
            }
            if started.elapsed() > limit {
                anyhow::bail!("{path} after {limit:?}: {:?}", last.map(|r| r.body));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn read(reply: reqwest::Response) -> Result<Reply> {
    let status = reply.status().as_u16();
    let retry_after =
        reply.headers().get("retry-after").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let number = |name: &str| reply.headers().get(name)?.to_str().ok()?.parse().ok();
    let (age_ms, log_index) = (number("mainstay-index-age-ms"), number("mainstay-log-index"));
    let text = reply.text().await?;
    Ok(Reply {
        status,
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        retry_after,
        age_ms,
        log_index,
    })
}
