//! Responses over WebSocket: one connection, one turn at a time, the events of the stream as text messages.
//!
//! The connection remembers its last response, stored or not, so that the next turn need only send what is new; a
//! turn that continues it and fails takes it away. A request takes its place in the gateway as it comes, so that what
//! waits in memory is bounded for all connections together; where there is no room, it is let go at once and refused in
//! its turn. Requests that come while one is answered wait, a few of them; what comes beyond stays unread. A client that
//! goes ends the generation, and so does one that reads nothing for a minute. A gateway that ends answers what has come.
//! A gateway that was told not to speak it, and a request that is no handshake, get a 426: clients go on by POST then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use mainstay_chat::{ApiError, Endpoint, ErrorKind};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{App, BODY_BYTES_MAX, begin_span, door, failure, new_request_id};
use crate::answer::{AnswerForm, Incoming};
use crate::stored::LastTurn;

/// Connections at a time, busy or not.
const SOCKETS_MAX: u32 = 4_096;
/// What the protocol gives a connection.
const LIFE_MAX: Duration = Duration::from_secs(60 * 60);
/// Requests that wait for the one that is answered.
const WAITING_MAX: usize = 4;
/// Their bytes; with more in hand nothing is read.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Silence after which a peer is asked whether it is there.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Silence after which it is not.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// A peer that reads nothing for this long is cut off.
const SEND_MAX: Duration = Duration::from_secs(60);
/// How long a peer may take to say goodbye, too.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// Room for connections; none where they are switched off.
#[derive(Clone)]
pub(crate) struct Sockets(Option<Arc<Semaphore>>);

impl Sockets {
    pub(super) fn new(on: bool) -> Self {
        Self(on.then(|| Arc::new(Semaphore::new(SOCKETS_MAX as usize))))
    }

    /// Resolves once no connection is left.
    pub(super) async fn gone(&self) {
        if let Some(room) = &self.0 {
            // It is never closed; if it were, nobody would be in.
            let _ = room.acquire_many(SOCKETS_MAX).await;
        }
    }
}

/// Takes a connection over, or says why not.
pub(super) async fn connect(
    State(app): State<App>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let (Ok(upgrade), Some(room)) = (upgrade, app.sockets.0.clone()) else {
        return StatusCode::UPGRADE_REQUIRED.into_response();
    };
    let refused = |error: ApiError| failure(&error, Endpoint::Responses, &new_request_id());
    if !same_origin(&headers) {
        let text = "a page of another origin may not open a WebSocket here";
        return refused(ApiError::new(ErrorKind::Permission, text));
    }
    if let Err(error) = app.tenants.of(&headers) {
        return refused(error);
    }
    let Ok(permit) = room.try_acquire_owned() else {
        let text = "this gateway has no room for another connection";
        return refused(ApiError::new(ErrorKind::Overloaded, text).with_retry_after_s(1));
    };
    upgrade
        .max_message_size(BODY_BYTES_MAX)
        .max_frame_size(BODY_BYTES_MAX)
        .on_upgrade(move |socket| Connection::new(app, headers, socket, permit).run())
}

/// Whether no browser asks, or one with a page of ours: browsers let any page open a WebSocket and read from it, and
/// where no keys are asked for nothing else would stop it.
fn same_origin(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str());
    match (text(header::ORIGIN), text(header::HOST)) {
        (None, _) => true,
        (Some(Ok(origin)), Some(Ok(host))) => {
            origin.split_once("://").is_some_and(|(_, from)| from == host)
        }
        _ => false,
    }
}

/// The end of a connection: its peer went, or fell silent, or its time is over.
struct Gone;

/// A request whose turn has not come.
enum Waiting {
    /// With its place in the gateway.
    Taken(Bytes, OwnedSemaphorePermit),
    /// One that found no place, and why.
    Refused(ApiError),
}

struct Connection {
    app: App,
    headers: HeaderMap,
    socket: WebSocket,
    last: LastTurn,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    heard: Instant,
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

/// What a message is about, before it is read as a request.
#[derive(serde::Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: Option<String>,
    previous_response_id: Option<String>,
    background: Option<bool>,
    /// False prepares a turn and leaves it unanswered, so that the next one that continues it begins sooner.
    generate: Option<bool>,
}

impl Connection {
    fn new(app: App, headers: HeaderMap, socket: WebSocket, permit: OwnedSemaphorePermit) -> Self {
        let heard = Instant::now();
        Self {
            app,
            headers,
            socket,
            last: LastTurn::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            heard,
            until: heard + LIFE_MAX,
            _permit: permit,
        }
    }

    async fn run(mut self) {
        metrics::gauge!("mainstay_gateway_websockets").increment(1.0);
        // Whoever is gone needs no farewell.
        let _ = self.serve().await;
        let _ = tokio::time::timeout(FAREWELL_MAX, self.close()).await;
        metrics::gauge!("mainstay_gateway_websockets").decrement(1.0);
    }

    /// Says goodbye and waits for the same: a connection that is dropped with something unread is reset, and the peer
    /// may lose what it was sent last.
    async fn close(&mut self) {
        let reason = "this gateway ends; open another connection".into();
        let away = || CloseFrame { code: close_code::AWAY, reason };
        let frame = self.stopped().then(away);
        if self.socket.send(Message::Close(frame)).await.is_ok() {
            while let Some(Ok(_)) = self.socket.recv().await {}
        }
    }

    fn stopped(&self) -> bool {
        *self.app.stopped.borrow()
    }

    async fn serve(&mut self) -> Result<(), Gone> {
        loop {
            if Instant::now() >= self.until {
                let text = "this connection is 60 minutes old; open another";
                let error = ApiError::new(ErrorKind::InvalidRequest, text);
                return self.tell(&error.with_code("websocket_connection_limit_reached")).await;
            }
            match self.waiting.pop_front() {
                Some(Waiting::Taken(message, permit)) => {
                    self.waiting_bytes -= message.len();
                    self.answer(message, permit).await?;
                }
                Some(Waiting::Refused(error)) => self.tell(&error).await?,
                None if self.stopped() => return Ok(()),
                None => {
                    let left = self.until.saturating_duration_since(Instant::now());
                    let mut stopped = self.app.stopped.clone();
                    tokio::select! {
                        // What has come already is answered.
                        biased;
                        heard = self.listen(PING_AFTER.min(left)) => heard?,
                        () = door::ends(&mut stopped) => {}
                    }
                }
            }
        }
    }

    /// Waits for the peer's next message, or until it is time for a sign of life.
    async fn listen(&mut self, wait: Duration) -> Result<(), Gone> {
        match tokio::time::timeout(wait, self.socket.recv()).await {
            Ok(message) => self.take(message),
            Err(_) => self.ping().await,
        }
    }

    fn take(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), Gone> {
        self.heard = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => self.wait(text.into()),
            Some(Ok(Message::Binary(bytes))) => self.wait(bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Gone),
        }
        Ok(())
    }

    /// Queues a request. One without a place is not kept: its refusal comes in its turn, after what was asked before.
    fn wait(&mut self, message: Bytes) {
        let room = if self.stopped() {
            let text = "this gateway ends; open another connection";
            Err(ApiError::new(ErrorKind::Unavailable, text).with_retry_after_s(1))
        } else {
            self.app.room()
        };
        self.waiting.push_back(match room {
            Ok(permit) => {
                self.waiting_bytes += message.len();
                Waiting::Taken(message, permit)
            }
            Err(error) => Waiting::Refused(error),
        });
    }

    async fn ping(&mut self) -> Result<(), Gone> {
        if self.heard.elapsed() >= SILENCE_MAX {
            return Err(Gone);
        }
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        match tokio::time::timeout(SEND_MAX, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }

    /// Answers one message; a refusal is an event and leaves the connection as it is.
    async fn answer(&mut self, message: Bytes, permit: OwnedSemaphorePermit) -> Result<(), Gone> {
        metrics::counter!("mainstay_gateway_requests_total", "endpoint" => "websocket")
            .increment(1);
        self.app.meters.tally.asked();
        let envelope = serde_json::from_slice::<Envelope>(&message);
        let refused = match &envelope {
            Err(error) => Some(ApiError::invalid("", &format!("not a request ({error})"))),
            Ok(e) if e.kind.as_deref() != Some("response.create") => {
                Some(ApiError::invalid("type", "expected `response.create`"))
            }
            Ok(e) if e.background == Some(true) => {
                Some(ApiError::invalid("background", "send background requests by POST"))
            }
            Ok(_) => None,
        };
        let generate = envelope.as_ref().is_ok_and(|e| e.generate != Some(false));
        let outcome = match refused {
            Some(error) => {
                // A client that takes its time to read holds no place.
                drop(permit);
                Err(error)
            }
            None => self.turn(message, permit, generate).await?,
        };
        let Err(error) = outcome else { return Ok(()) };
        tracing::info!(kind = ?error.kind, "websocket request refused");
        self.app.meters.tally.refused();
        if let Some(previous) = envelope.ok().and_then(|e| e.previous_response_id) {
            self.last.take(&previous);
        }
        self.tell(&error).await
    }

    async fn turn(
        &mut self,
        body: Bytes,
        permit: OwnedSemaphorePermit,
        generate: bool,
    ) -> Result<Result<(), ApiError>, Gone> {
        let (app, headers, last) = (self.app.clone(), self.headers.clone(), self.last.clone());
        let answering = async move {
            let admitted = app.admit_with(&headers, permit)?;
            let (endpoint, request_id) = (Endpoint::Responses, &new_request_id());
            let last = Some(&last);
            let span = &begin_span(endpoint, &headers);
            let incoming = Incoming { endpoint, headers: &headers, body, request_id, span, last };
            if generate {
                app.answer(admitted, incoming).await
            } else {
                app.warm(admitted, incoming).await
            }
        };
        tokio::pin!(answering);
        let answer = loop {
            tokio::select! {
                answer = &mut answering => break answer,
                heard = self.listen_while_busy() => heard?,
            }
        };
        let mut frames = match answer.map(|answer| answer.form) {
            Ok(AnswerForm::Stream(frames)) => frames,
            Ok(AnswerForm::Json(_)) => {
                return Ok(Err(ApiError::new(ErrorKind::Internal, "the answer is no stream")));
            }
            Err(error) => return Ok(Err(error)),
        };
        loop {
            let frame = tokio::select! {
                frame = frames.recv() => frame,
                heard = self.listen_while_busy() => { heard?; continue }
            };
            let Some(Ok(frame)) = frame else { return Ok(Ok(())) };
            for data in events(&frame) {
                self.send(Message::Text(data.into())).await?;
            }
        }
    }

    /// Listens as long as there is room for what comes.
    async fn listen_while_busy(&mut self) -> Result<(), Gone> {
        if self.waiting.len() < WAITING_MAX && self.waiting_bytes < WAITING_BYTES_MAX {
            return self.listen(PING_AFTER).await;
        }
        tokio::time::sleep(PING_AFTER).await;
        self.send(Message::Ping(Bytes::new())).await
    }

    /// Tells a failure as an event.
    async fn tell(&mut self, error: &ApiError) -> Result<(), Gone> {
        let status = error.status(Endpoint::Responses);
        metrics::counter!("mainstay_gateway_errors_total", "status" => status.to_string())
            .increment(1);
        self.send(Message::Text(error_event(error, status).to_string().into())).await
    }
}

/// The event of a failure; its code is never null.
fn error_event(error: &ApiError, status: u16) -> Value {
    let body = error.body(Endpoint::Responses, "");
    let mut body = mainstay_chat::plain_json::from_str(&body).unwrap_or_default();
    let mut error = body["error"].take();
    if error["code"].is_null() {
        error["code"] = error["type"].clone();
    }
    json!({"type": "error", "status": status, "error": error})
}

/// The data of server-sent events; comments and names are not for messages.
fn events(frame: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(frame);
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
