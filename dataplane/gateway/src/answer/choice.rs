//! One of the answers to a request: tokens become text, and text becomes events. Chat may ask for several, which run
//! side by side and end each in its own time.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use mainstay_chat::{ApiError, ErrorKind, Finish, OutputEvent, OutputParser, TokenLogprob};
use mainstay_proto::v1;

use super::Turn;
use crate::generate::{Event, Generation};
use crate::model::Detokenizer;

/// What a generation's event comes to.
pub(super) enum Step {
    Output(Vec<OutputEvent>),
    End(Vec<OutputEvent>, Finish),
}

/// One answer being made.
pub(super) struct Choice {
    parser: OutputParser,
    detokenizer: Detokenizer,
    thinking: bool,
    pub(super) completion_tokens: u64,
    pub(super) reasoning_tokens: u64,
}

impl Choice {
    pub(super) fn new(turn: &Turn) -> Self {
        let thinking = turn.prompt.thinking_open;
        let tokenizer = Arc::clone(&turn.card.tokenizer);
        Self {
            parser: OutputParser::new(
                turn.request.output_options(thinking, turn.card.spelling.family),
            ),
            detokenizer: Detokenizer::new(tokenizer, turn.card.end_tokens.clone()),
            thinking,
            completion_tokens: 0,
            reasoning_tokens: 0,
        }
    }

    pub(super) fn take(&mut self, event: Event, turn: &Turn) -> Step {
        match event {
            Event::Tokens { tokens, logprobs } => {
                turn.spending.answer(tokens.len() as u64);
                let mut out = Vec::new();
                for (at, token) in tokens.iter().enumerate() {
                    self.completion_tokens += 1;
                    let text = self.detokenizer.push(*token);
                    let events = match logprob(turn, at, &text, &logprobs) {
                        Some(logprob) => self.parser.push_token(&text, logprob),
                        None => self.parser.push(&text),
                    };
                    self.count_reasoning();
                    out.extend(events);
                    if let Some(stop) = self.parser.stopped().map(str::to_owned) {
                        out.extend(self.parser.finish());
                        return Step::End(out, Finish::StopString(stop));
                    }
                }
                Step::Output(out)
            }
            Event::Done { finish, .. } => {
                let rest = self.detokenizer.finish();
                let mut out = self.parser.push(&rest);
                out.extend(self.parser.finish());
                let finish = match (self.parser.stopped(), finish) {
                    (Some(stop), _) => Finish::StopString(stop.to_owned()),
                    (None, v1::Finish::Length) => Finish::Length,
                    (None, v1::Finish::Cancelled) => Finish::Cancelled,
                    (None, _) => Finish::Stop,
                };
                Step::End(out, finish)
            }
            Event::Failed(error) => Step::End(self.parser.finish(), Finish::Error(error)),
        }
    }

    /// A token counts as reasoning from the opening of a thought to its close, both tags included.
    fn count_reasoning(&mut self) {
        let was = std::mem::replace(&mut self.thinking, self.parser.is_thinking());
        self.reasoning_tokens += u64::from(was || self.thinking);
    }
}

fn logprob(turn: &Turn, at: usize, text: &str, all: &[v1::Logprob]) -> Option<TokenLogprob> {
    let mine = || all.iter().filter(|l| l.position as usize == at);
    let chosen = mine().find(|l| l.rank == 0)?;
    let name = |token: u32| turn.card.tokenizer.text_of(token);
    Some(TokenLogprob {
        token: text.to_owned(),
        logprob: f64::from(chosen.logprob),
        top: mine().filter(|l| l.rank > 0).map(|l| (name(l.token), f64::from(l.logprob))).collect(),
    })
}

/// The generations of a request's answers. Dropping it cancels those that still run.
pub(super) struct Generations {
    running: Vec<Option<Generation>>,
    /// Which is asked first, so that a quick one does not keep the others waiting.
    turn: usize,
    /// Prompt tokens that the first one found in a cache.
    pub(super) cached_tokens: u32,
}

impl Generations {
    pub(super) fn new(all: Vec<Generation>) -> Self {
        let cached_tokens = all.first().map_or(0, |g| g.cached_tokens);
        Self { running: all.into_iter().map(Some).collect(), turn: 0, cached_tokens }
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// The next event of any that still runs, and whose it is; `None` once all have ended. May be given up and asked
    /// again without loss.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        if self.running.iter().all(Option::is_none) {
            return None;
        }
        let next = poll_fn(|context| {
            let count = self.running.len();
            for at in (0..count).map(|step| (self.turn + step) % count) {
                let Some(generation) = &mut self.running[at] else { continue };
                if let Poll::Ready(event) = generation.events.as_mut().poll_next(context) {
                    self.turn = at + 1;
                    return Poll::Ready((at, event.unwrap_or_else(ended_early)));
                }
            }
            Poll::Pending
        });
        Some(next.await)
    }

    /// Ends one; true if it was the last.
    pub(super) fn end(&mut self, at: usize) -> bool {
        self.running[at] = None;
        self.running.iter().all(Option::is_none)
    }
}

fn ended_early() -> Event {
    Event::Failed(ApiError::new(ErrorKind::Internal, "the generation ended without an end"))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn token(token: u32) -> Event {
        Event::Tokens { tokens: vec![token], logprobs: Vec::new() }
    }

    #[tokio::test]
    async fn answers_take_turns_and_end_one_by_one() {
        let (long, first) = mpsc::channel(8);
        let (short, second) = mpsc::channel(8);
        for n in 0..3 {
            long.send(token(n)).await.expect("room");
        }
        short.send(token(9)).await.expect("room");
        let all = vec![Generation::of(first, 16), Generation::of(second, 32)];
        let mut generations = Generations::new(all);
        assert_eq!((generations.len(), generations.cached_tokens), (2, 16));
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(generations.next().await.expect("running").0);
        }
        assert_eq!(order, [0, 1, 0, 0]);
        // One that goes away without a word has failed.
        drop(short);
        let (at, event) = generations.next().await.expect("running");
        assert!(at == 1 && matches!(event, Event::Failed(_)), "{at} {event:?}");
        assert!(!generations.end(1));
        long.send(Event::Done { finish: v1::Finish::Stop, cached_tokens: None })
            .await
            .expect("room");
        let (at, event) = generations.next().await.expect("running");
        assert!(at == 0 && matches!(event, Event::Done { .. }), "{at} {event:?}");
        assert!(generations.end(0));
        assert!(generations.next().await.is_none());
    }
}
