//! As much HTTP as a double needs: one request after the other, bodies by length, streams by chunks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};

use super::cache::Table;
use super::{END, Kind, State, Wanted, llamacpp_double, next_token, sglang_double, vllm_double};

/// The client's end of an answer.
pub(crate) struct Out(OwnedWriteHalf);

/// The client has gone, or the double fails on purpose.
pub(crate) struct Gone;

impl Out {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.0.write_all(bytes).await.map_err(|_| Gone)
    }

    pub(crate) async fn whole(&mut self, status: u16, kind: &str, body: &str) -> Result<(), Gone> {
        let len = body.len();
        let head =
            format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len}\r\n\r\n");
        self.write(&[head.as_bytes(), body.as_bytes()].concat()).await
    }

    pub(crate) async fn json(&mut self, status: u16, body: &Value) -> Result<(), Gone> {
        self.whole(status, "application/json", &body.to_string()).await
    }

    pub(crate) async fn begin_stream(&mut self) -> Result<(), Gone> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        self.write(head.as_bytes()).await
    }

    pub(crate) async fn event(&mut self, data: &str) -> Result<(), Gone> {
        let text = format!("data: {data}\n\n");
        self.write(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
    }

    pub(crate) async fn end_stream(&mut self) -> Result<(), Gone> {
        self.write(b"0\r\n\r\n").await
    }
}

pub(crate) async fn serve(address: SocketAddr, state: Arc<State>) -> SocketAddr {
    let listener = TcpListener::bind(address).await.expect("the server's port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, Arc::clone(&state)));
        }
    });
    address
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let (mut read, write) = stream.into_split();
    let mut out = Out(write);
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            match read.read_buf(&mut buffer).await {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
        while buffer.len() < end + length {
            match read.read_buf(&mut buffer).await {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        }
        let body = serde_json::from_slice(&buffer[end..end + length]).unwrap_or(Value::Null);
        buffer.drain(..end + length);
        let mut byte = [0];
        let answered = tokio::select! {
            answered = answer(&state, &path, body, &mut out) => answered,
            // The client says nothing before it has its answer: it has gone.
            _ = read.read(&mut byte) => {
                state.left.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        if answered.is_err() {
            return;
        }
    }
}

async fn answer(state: &Arc<State>, path: &str, body: Value, out: &mut Out) -> Result<(), Gone> {
    if state.faults.is_overloaded.load(Ordering::Relaxed) {
        return out.json(503, &serde_json::json!({"error": {"message": "overloaded"}})).await;
    }
    match state.setting.kind {
        Kind::Vllm | Kind::VllmOld => vllm_double::answer(state, path, &body, out).await,
        Kind::Sglang => sglang_double::answer(state, path, &body, out).await,
        Kind::LlamaCpp => llamacpp_double::answer(state, path, &body, out).await,
    }
}

/// A request that runs: its blocks are given back when it is dropped.
pub(crate) struct Run<'a> {
    state: &'a State,
    pub(crate) wanted: Wanted,
    table: Table,
    pub(crate) said: Vec<u32>,
    _permit: tokio::sync::SemaphorePermit<'a>,
}

impl<'a> Run<'a> {
    /// Waits for its turn and for room in the cache.
    pub(crate) async fn begin(state: &'a State, wanted: Wanted) -> Result<Run<'a>, Gone> {
        let permit = state.running.acquire().await.map_err(|_| Gone)?;
        let table = loop {
            let has_room = state.room.notified();
            let table = {
                let mut cache = state.cache();
                let table = cache.admit(&wanted.salt, &wanted.prompt, wanted.tokens_max);
                publish(state, &mut cache);
                table
            };
            match table {
                Some(table) => break table,
                None => has_room.await,
            }
        };
        state.queried.fetch_add(wanted.prompt.len() as u64, Ordering::Relaxed);
        state.hit.fetch_add(table.cached_tokens as u64, Ordering::Relaxed);
        let mut run = Run { state, wanted, table, said: Vec::new(), _permit: permit };
        run.computed();
        Ok(run)
    }

    pub(crate) fn cached_tokens(&self) -> usize {
        self.table.cached_tokens
    }

    fn computed(&mut self) {
        let tokens = [self.wanted.prompt.as_slice(), &self.said].concat();
        // The last token that was said is not computed yet.
        let known = tokens.len() - usize::from(!self.said.is_empty());
        let mut cache = self.state.cache();
        cache.computed(&mut self.table, &self.wanted.salt, &tokens[..known]);
        publish(self.state, &mut cache);
    }

    /// Says the next token; the second is the reason if it is the last.
    pub(crate) async fn step(&mut self) -> (u32, Option<&'static str>) {
        if self.state.setting.decode.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(self.state.setting.decode).await;
        }
        let token = next_token(&self.wanted, &self.said, self.state.setting.vocab);
        self.said.push(token);
        self.computed();
        let ends = !self.wanted.ignores_end && token == END;
        if ends || self.wanted.stops.contains(&token) {
            return (token, Some("stop"));
        }
        let len = self.wanted.prompt.len() + self.said.len();
        let is_full =
            self.said.len() >= self.wanted.tokens_max || len >= self.state.setting.context;
        (token, is_full.then_some("length"))
    }

    /// Whether the answer breaks off here, on purpose.
    pub(crate) async fn fails(&self, out: &mut Out) -> bool {
        let faults = &self.state.faults;
        if self.state.fails(&faults.garbage_after, self.said.len()) {
            let _ = out.event("{\"choices\": [{\"token_ids\": \"so\0many\"").await;
            return true;
        }
        self.state.fails(&faults.breaks_after, self.said.len())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.state.cache().release(&self.table);
        self.state.room.notify_waiters();
    }
}

/// Tells what changed, in one batch.
pub(crate) fn publish(state: &State, cache: &mut super::cache::Cache) {
    let changes = std::mem::take(&mut cache.changes);
    let is_lost = state.faults.loses_events.load(Ordering::Relaxed);
    state.publisher.publish(&state.setting, &changes, is_lost);
}

/// `value[key]` as a number.
pub(crate) fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// `value[key]` as tokens.
pub(crate) fn tokens(value: &Value, key: &str) -> Vec<u32> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|token| Some(token.as_u64()? as u32)).collect()
}
