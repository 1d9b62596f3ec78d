//! One request at the server: what it is told, what comes back, and how it ends.
//!
//! Dropping a flight closes its connection, which is how all three servers are told to stop. Where the host does
//! not keep up, the answer is left in the socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{Code, EngineError, Finish, Output, Request};
use reqwest::Response;
use tokio::sync::Notify;

use mainstay_engine_proxy::Desk;

use crate::dialect::{self, Delta, End, Manner, Reader, nonsense};
use crate::http::{self, Client};
use crate::options::Server;
use crate::probe::Facts;
use crate::sse::Events;

/// How often a full OUT lane is looked at again.
const HELD_WAIT: Duration = Duration::from_millis(1);
/// The tokens that llama.cpp is asked for at once, where its stream left some out: a character has at most four
/// bytes, and a token one at least.
const AT_ONCE: u32 = 4;
const AT_ONCE_MAX: u32 = 64;
/// An answer that came at once.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A request on its way.
pub(crate) struct Flight {
    pub(crate) client: Client,
    pub(crate) facts: Arc<Facts>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) manner: Manner,
    pub(crate) request: Request,
    pub(crate) cancel: Arc<Notify>,
    /// What the mirror says is held of the prompt, for servers that say it themselves only at the end.
    pub(crate) held_tokens: u32,
    pub(crate) began: Instant,
}

/// How it ended.
pub(crate) struct Landed {
    pub(crate) last: Output,
    pub(crate) finish: Finish,
    /// The answer, if the server has made no more than that.
    pub(crate) said: Option<Vec<u32>>,
    pub(crate) said_tokens: u64,
    /// The server was not reached.
    pub(crate) is_lost: bool,
}

/// How one HTTP answer ended.
enum Part {
    Ended(End),
    /// The rest has to be asked for in the other manner.
    GoesOn,
}

/// What has come so far.
struct Progress {
    said: Vec<u32>,
    cached_tokens: Option<u32>,
    has_begun: bool,
    /// Tokens with the end, which is told as one output.
    last: Output,
    /// A stop token has come, and the server may not know that it is one.
    stopped: bool,
    /// The server may have made more than has come.
    is_cut: bool,
}

impl Flight {
    /// Serves the request to its end.
    pub(crate) async fn fly(self) -> Landed {
        let mut progress = Progress {
            said: Vec::new(),
            cached_tokens: None,
            has_begun: false,
            last: Output { id: self.request.id, ..Output::default() },
            stopped: false,
            is_cut: false,
        };
        let cancel = Arc::clone(&self.cancel);
        let served = tokio::select! {
            biased;
            () = cancel.notified() => None,
            served = self.serve(&mut progress) => Some(served),
        };
        let (finish, is_lost) = match served {
            None => (Finish::Cancelled, false),
            Some(Ok(End::Length)) => (Finish::Length, false),
            Some(Ok(End::Stop(_))) => (Finish::Stop, false),
            Some(Ok(End::Failed(error)) | Err(error)) => {
                let is_lost = error.rc == Code::Unavailable;
                (Finish::Error { rc: error.rc.rc(), message: error.message }, is_lost)
            }
        };
        let is_whole = matches!(finish, Finish::Length | Finish::Stop) && !progress.is_cut;
        let mut last = progress.last;
        if matches!(finish, Finish::Cancelled | Finish::Error { .. }) {
            // What was held back for the end has not been said.
            last = Output { id: last.id, ..Output::default() };
        } else if !progress.has_begun {
            last.first = true;
            last.prefill_us = self.began.elapsed().as_micros() as u64;
        }
        let cached = progress.cached_tokens.unwrap_or(self.held_tokens);
        last.cached_tokens = cached.min(self.request.tokens.len() as u32);
        let said_tokens = progress.said.len() as u64;
        let said = is_whole.then_some(progress.said);
        Landed { last, finish, said, said_tokens, is_lost }
    }

    async fn serve(&self, progress: &mut Progress) -> Result<End, EngineError> {
        let mut manner = self.manner.clone();
        let mut at_once = AT_ONCE;
        loop {
            let rest = self.rest(progress, manner.at_once.then_some(at_once));
            let call = dialect::call(self.facts.server, &rest, &manner);
            let response = self.client.post(call.path, call.body.to_string()).await?;
            let part = if manner.at_once {
                self.take_whole(response, progress).await?
            } else {
                self.take_stream(response, progress).await?
            };
            match part {
                Part::Ended(end) => return Ok(end),
                // What lies in the slot is this very request's now.
                Part::GoesOn => {
                    if manner.at_once {
                        // Where many characters are in parts, each change of manner would cost more than it saves.
                        at_once = (at_once * 2).min(AT_ONCE_MAX);
                    }
                    (manner.at_once, manner.reuse) = (!manner.at_once, true);
                }
            }
        }
    }

    /// The request from where it is now.
    fn rest(&self, progress: &Progress, at_once: Option<u32>) -> Request {
        let mut rest = self.request.clone();
        let said = progress.said.len() as u32;
        rest.tokens.extend(&progress.said);
        rest.sampled_before += said;
        rest.sampling.tokens_max -= said;
        if let Some(most) = at_once {
            rest.sampling.tokens_max = rest.sampling.tokens_max.min(most);
        }
        rest
    }

    async fn take_whole(
        &self,
        response: Response,
        progress: &mut Progress,
    ) -> Result<Part, EngineError> {
        let body = http::read(response, ANSWER_BYTES_MAX).await;
        let body = body.map_err(EngineError::unavailable)?;
        let delta = Reader::default().read(self.facts.server, &body)?;
        let end = delta.end.clone();
        let has_said = !delta.tokens.is_empty();
        self.take(delta, progress)?;
        match end {
            _ if progress.stopped => Ok(Part::Ended(End::Stop(None))),
            Some(End::Length) if progress.said.len() < self.tokens_max() && has_said => {
                Ok(Part::GoesOn)
            }
            Some(end) => Ok(Part::Ended(end)),
            None => Err(nonsense(self.facts.server, "an answer without an end")),
        }
    }

    async fn take_stream(
        &self,
        mut response: Response,
        progress: &mut Progress,
    ) -> Result<Part, EngineError> {
        let server = self.facts.server;
        let (mut events, mut reader) = (Events::default(), Reader::default());
        let mut end = None;
        loop {
            while !self.desk.has_room() {
                tokio::time::sleep(HELD_WAIT).await;
            }
            let Some(bytes) = response.chunk().await.map_err(|error| http::lost(&error))? else {
                let is_whole = events.is_between();
                return end.filter(|_| is_whole).map(Part::Ended).ok_or_else(|| {
                    EngineError::unavailable("the server's answer ends in the middle")
                });
            };
            let mut whole = Vec::new();
            events
                .feed(&bytes, |data| whole.push(data))
                .map_err(|error| nonsense(server, &error.to_string()))?;
            for data in whole {
                let had_stopped = progress.stopped;
                let delta = reader.read(server, &data)?;
                if delta.has_hole {
                    return Ok(Part::GoesOn);
                }
                if had_stopped && !delta.tokens.is_empty() {
                    // It goes on behind a stop token, which it does not know as one.
                    progress.is_cut = true;
                    return Ok(Part::Ended(End::Stop(None)));
                }
                let is_last = delta.is_last;
                end = delta.end.clone().or(end);
                self.take(delta, progress)?;
                if is_last {
                    return match end {
                        _ if progress.stopped => Ok(Part::Ended(End::Stop(None))),
                        Some(end) => Ok(Part::Ended(end)),
                        None => Err(nonsense(server, "an answer without an end")),
                    };
                }
            }
        }
    }

    fn tokens_max(&self) -> usize {
        self.request.sampling.tokens_max as usize
    }

    /// Takes what one event brought, and tells it.
    fn take(&self, mut delta: Delta, progress: &mut Progress) -> Result<(), EngineError> {
        let server = self.facts.server;
        progress.cached_tokens = delta.cached_tokens.or(progress.cached_tokens);
        if let Some(End::Stop(Some(stop))) = delta.end {
            let before = delta.tokens.last().or_else(|| progress.said.last());
            if before != Some(&stop) && progress.said.len() + delta.tokens.len() < self.tokens_max()
            {
                delta.tokens.push(stop);
            }
        }
        if server == Server::LlamaCpp {
            let stops = &self.request.sampling.stop_tokens;
            if let Some(at) = delta.tokens.iter().position(|token| stops.contains(token)) {
                delta.tokens.truncate(at + 1);
                progress.stopped = true;
            }
        }
        if delta.tokens.iter().any(|token| *token >= self.facts.vocab) {
            return Err(nonsense(server, "a token beyond the model's vocabulary"));
        }
        progress.said.extend(&delta.tokens);
        if progress.said.len() > self.tokens_max() {
            return Err(nonsense(server, "more tokens than it was asked for"));
        }
        if delta.tokens.is_empty() {
            return Ok(());
        }
        let is_first = !std::mem::replace(&mut progress.has_begun, true);
        let cached = progress.cached_tokens.unwrap_or(self.held_tokens);
        let prefill = if is_first { self.began.elapsed() } else { Duration::ZERO };
        self.desk.output(Output {
            id: self.request.id,
            tokens: delta.tokens,
            logprobs: delta.logprobs,
            first: is_first,
            cached_tokens: cached.min(self.request.tokens.len() as u32),
            prefill_us: prefill.as_micros() as u64,
            ..Output::default()
        });
        Ok(())
    }
}
