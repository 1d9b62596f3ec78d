//! Requests at the executor: what a response means for its request. Pure.

use std::collections::HashMap;
use std::time::Instant;

use mainstay_engine_abi::sdk::{Code, Finish, Output};

use crate::bridge::Said;

const END_ID: u8 = 1;
const STOP_WORDS: u8 = 2;
const LENGTH: u8 = 3;
const TIMED_OUT: u8 = 4;
const CANCELLED: u8 = 5;

/// A request at the executor.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Its number there, once that is known.
    pub(crate) native: Option<u64>,
    pub(crate) prompt: u32,
    pub(crate) tokens_max: u32,
    /// What of its prompt is cached, as far as is known.
    pub(crate) cached: u32,
    pub(crate) end_id: Option<u32>,
    pub(crate) began: Instant,
    /// Tokens that came.
    pub(crate) said: u32,
    /// Something came.
    pub(crate) has_begun: bool,
}

/// A response, understood.
#[derive(Debug, PartialEq)]
pub(crate) struct Landed {
    pub(crate) output: Output,
    pub(crate) finish: Option<Finish>,
    /// Of one that has ended: its prompt, what of it was cached, and whether it ran at all.
    pub(crate) prompt: u32,
    pub(crate) cached: u32,
    pub(crate) had_begun: bool,
    /// It has ended here and not there: a number that has to be cancelled.
    pub(crate) left_over: Option<u64>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: HashMap<u64, Flight>,
    begun: usize,
}

impl Flights {
    pub(crate) fn enter(&mut self, id: u64, flight: Flight) {
        self.flights.insert(id, flight);
    }

    /// The executor's number of a request has come, unless its end was quicker.
    pub(crate) fn number(&mut self, id: u64, native: u64) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.native = Some(native);
        }
    }

    pub(crate) fn native(&self, id: u64) -> Option<u64> {
        self.flights.get(&id)?.native
    }

    pub(crate) fn natives(&self) -> Vec<u64> {
        self.flights.values().filter_map(|flight| flight.native).collect()
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        self.begun -= usize::from(flight.has_begun);
        Some(flight)
    }

    /// How many have said something.
    pub(crate) const fn begun(&self) -> usize {
        self.begun
    }

    /// Takes a response in. `None` for a request that is not here.
    pub(crate) fn land(&mut self, said: Said, vocab: u32, block_tokens: u32) -> Option<Landed> {
        let id = said.client;
        let flight = self.flights.get_mut(&id).filter(|_| said.has_client)?;
        if let Ok(blocks) = u32::try_from(said.reused_blocks) {
            // The last token is always computed, whatever the executor counts.
            let most = flight.prompt.saturating_sub(1) / block_tokens * block_tokens;
            flight.cached = blocks.saturating_mul(block_tokens).min(most);
        }
        let had_begun = flight.has_begun;
        let is_sound = said.tokens.iter().all(|token| *token < vocab);
        let finish = if is_sound { finish(&said) } else { Some(nonsense()) };
        let mut tokens = if is_sound { said.tokens } else { Vec::new() };
        let is_missing = |end: &u32| tokens.last() != Some(end);
        if said.finish == END_ID
            && let Some(end) = flight.end_id.filter(is_missing)
            && flight.said as usize + tokens.len() < flight.tokens_max as usize
        {
            // The token that ends an answer is in the answer.
            tokens.push(end);
        }
        flight.said += tokens.len() as u32;
        let first = !had_begun && !tokens.is_empty();
        if first {
            flight.has_begun = true;
            self.begun += 1;
        }
        let prefill_us = flight.began.elapsed().as_micros().saturating_sub(said.queue_us.into());
        let output = Output {
            id,
            tokens,
            first,
            cached_tokens: flight.cached,
            queue_us: said.queue_us,
            prefill_us: u64::try_from(prefill_us).unwrap_or(u64::MAX),
            ..Output::default()
        };
        let left_over = if is_sound { None } else { flight.native };
        let (prompt, cached, had_begun) = (flight.prompt, flight.cached, flight.has_begun);
        if finish.is_some() {
            self.remove(id);
        }
        Some(Landed { output, finish, prompt, cached, had_begun, left_over })
    }
}

fn nonsense() -> Finish {
    let message = "the executor said a token that is none of its model's".to_owned();
    Finish::Error { rc: Code::Internal.rc(), message }
}

fn finish(said: &Said) -> Option<Finish> {
    let error = |rc: Code, message: String| Some(Finish::Error { rc: rc.rc(), message });
    if said.has_error {
        return error(Code::Internal, format!("TensorRT-LLM: {}", said.error));
    }
    if !said.is_final {
        return None;
    }
    match said.finish {
        END_ID | STOP_WORDS => Some(Finish::Stop),
        LENGTH => Some(Finish::Length),
        CANCELLED => Some(Finish::Cancelled),
        TIMED_OUT => {
            error(Code::Exhausted, "the request took longer than request_seconds_max".to_owned())
        }
        other => error(Code::Internal, format!("the executor ended it for no reason ({other})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 4;

    fn flights() -> Flights {
        let mut flights = Flights::default();
        let (prompt, tokens_max, cached, end_id) = (9, 5, 4, Some(7));
        let began = Instant::now();
        let flight = Flight {
            native: Some(1),
            prompt,
            tokens_max,
            cached,
            end_id,
            began,
            said: 0,
            has_begun: false,
        };
        flights.enter(3, flight);
        flights
    }

    fn said(tokens: &[u32], finish: u8) -> Said {
        let (tokens, is_final) = (tokens.to_vec(), finish != 0);
        Said {
            has_client: true,
            client: 3,
            tokens,
            is_final,
            finish,
            reused_blocks: -1,
            ..Said::default()
        }
    }

    #[test]
    fn all_tokens_of_a_response_are_taken_and_the_first_is_first() {
        let mut flights = flights();
        let one = flights.land(said(&[1, 2], 0), 10, BLOCK).unwrap();
        assert_eq!(
            (&one.output.tokens[..], one.output.first, one.finish),
            (&[1, 2][..], true, None)
        );
        assert_eq!((one.output.cached_tokens, flights.begun()), (4, 1));
        let reused = Said { reused_blocks: 9, ..said(&[3, 4, 5], LENGTH) };
        let last = flights.land(reused, 10, BLOCK).unwrap();
        assert_eq!((last.output.tokens.len(), last.output.first), (3, false));
        assert_eq!((last.finish, last.output.cached_tokens), (Some(Finish::Length), 8));
        assert_eq!((flights.begun(), flights.native(3)), (0, None));
        assert_eq!(flights.land(said(&[1], 0), 10, BLOCK), None, "it has ended");
    }

    #[test]
    fn an_end_token_that_is_left_out_is_put_back() {
        for (tokens, due) in
            [(&[1][..], &[1, 7][..]), (&[1, 7], &[1, 7]), (&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5])]
        {
            let landed = flights().land(said(tokens, END_ID), 10, BLOCK).unwrap();
            assert_eq!((&landed.output.tokens[..], landed.finish), (due, Some(Finish::Stop)));
        }
    }

    #[test]
    fn every_end_has_its_name() {
        let end = |said: Said| flights().land(said, 10, BLOCK).unwrap().finish;
        assert_eq!(end(said(&[1], STOP_WORDS)), Some(Finish::Stop));
        assert_eq!(end(said(&[], CANCELLED)), Some(Finish::Cancelled));
        let code = |said: Said| match end(said) {
            Some(Finish::Error { rc, .. }) => rc,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(said(&[], TIMED_OUT)), Code::Exhausted.rc());
        assert_eq!(code(said(&[], 9)), Code::Internal.rc());
        let failed = Said { has_error: true, error: "words".to_owned(), ..said(&[], 0) };
        assert_eq!(code(failed), Code::Internal.rc());
        assert_eq!(code(Said { is_final: true, ..said(&[1], 0) }), Code::Internal.rc());
    }

    #[test]
    fn a_token_that_is_none_ends_the_request_here_and_there() {
        let landed = flights().land(said(&[1, 10], 0), 10, BLOCK).unwrap();
        assert_eq!((landed.finish, landed.left_over), (Some(nonsense()), Some(1)));
        assert!(landed.output.tokens.is_empty());
    }
}
