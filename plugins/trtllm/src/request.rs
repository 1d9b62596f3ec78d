//! A request in the executor's words. Pure.

use mainstay_engine_abi::sdk::{Request, RetentionRange};

use crate::bridge::{Ask, Span};

/// What blocks are worth there of which nobody said anything, and what those become whose time is over.
const PRIORITY_DEFAULT: u8 = 35;

/// Settings that every request has.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    /// The tokens that end an answer.
    pub(crate) ends: Vec<u32>,
    pub(crate) allotted_ms: u64,
    /// Of prompt and answer together.
    pub(crate) context_tokens_max: u32,
}

fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Any priority as a number between 0 and 1, in the same order; 0 is in the middle, where theirs begins.
fn priority(value: i32) -> f32 {
    let value = f64::from(value);
    (0.5 + 0.5 * value / (1.0 + value.abs())) as f32
}

/// A stretch's worth: the greater is the better claim.
type Worth = (u8, u32);

/// How the executor can say a range: what falls back would rise, where it was worth less than is usual.
fn worth(range: &RetentionRange) -> Worth {
    let is_kept = range.priority <= PRIORITY_DEFAULT || range.after == Some(range.priority);
    let duration = if is_kept { 0 } else { range.duration_ms };
    // No limit is the longest.
    (range.priority, if duration == 0 { u32::MAX } else { duration })
}

const fn said((_, duration): Worth) -> u32 {
    if duration == u32::MAX { 0 } else { duration }
}

/// The ranges that lie in the prompt as ranges that do not overlap: of several the greatest worth counts.
fn spans(ranges: &[RetentionRange], prompt: u32) -> Vec<Span> {
    let mut edges: Vec<u32> =
        ranges.iter().flat_map(|range| [range.start.min(prompt), range.end.min(prompt)]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut spans: Vec<Span> = Vec::new();
    for edge in edges.windows(2) {
        let (start, end) = (edge[0], edge[1]);
        let over = ranges.iter().filter(|range| range.start <= start && range.end >= end);
        let Some(best) = over.map(worth).max() else { continue };
        let span = Span {
            start: number(start),
            end: number(end),
            priority: i32::from(best.0),
            duration_ms: said(best),
        };
        match spans.last_mut() {
            Some(last)
                if last.end == span.start
                    && (last.priority, last.duration_ms) == (span.priority, span.duration_ms) =>
            {
                last.end = span.end;
            }
            _ => spans.push(span),
        }
    }
    spans
}

/// As many tokens as are asked for and have room behind the prompt.
pub(crate) fn tokens_max(request: &Request, manner: &Manner) -> u32 {
    let prompt = u32::try_from(request.tokens.len()).unwrap_or(u32::MAX);
    request.sampling.tokens_max.min(manner.context_tokens_max.saturating_sub(prompt)).max(1)
}

/// The request, under the salt of its namespace.
pub(crate) fn ask(request: &Request, salt: u64, manner: &Manner) -> Ask {
    let sampling = &request.sampling;
    let prompt = u32::try_from(request.tokens.len()).unwrap_or(u32::MAX);
    let ends: &[u32] = if sampling.ignore_eos { &[] } else { &manner.ends };
    let behind = request.ranges.iter().filter(|range| range.end > prompt).map(worth).max();
    let stops = ends.iter().skip(1).chain(&sampling.stop_tokens);
    Ask {
        client: request.id,
        salt,
        tokens: request.tokens.iter().map(|token| number(*token)).collect(),
        tokens_max: number(tokens_max(request, manner)),
        tokens_min: number(sampling.tokens_min),
        has_end: !ends.is_empty(),
        end_id: ends.first().map_or(0, |end| number(*end)),
        stop_tokens: stops.map(|token| number(*token)).collect(),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: number(sampling.top_k),
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        has_seed: sampling.seed.is_some(),
        seed: sampling.seed.unwrap_or(0),
        priority: priority(request.priority),
        has_retention: !request.ranges.is_empty(),
        ranges: spans(&request.ranges, prompt),
        decode_priority: behind.map_or(i32::from(PRIORITY_DEFAULT), |worth| i32::from(worth.0)),
        decode_duration_ms: behind.map_or(0, said),
        allotted_ms: manner.allotted_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine_abi::sdk::{Sampling, TOKENS_TO_END};

    fn range(start: u32, end: u32, priority: u8, duration_ms: u32) -> RetentionRange {
        RetentionRange { start, end, priority, duration_ms, ..RetentionRange::default() }
    }

    fn span(start: i32, end: i32, priority: i32, duration_ms: u32) -> Span {
        Span { start, end, priority, duration_ms }
    }

    #[test]
    fn priorities_keep_their_order_and_their_bounds() {
        let all = [i32::MIN, -2000, -100, -1, 0, 1, 2, 100, 101, 2000, i32::MAX].map(priority);
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        assert!(all[0] >= 0.0 && all[10] <= 1.0);
        assert_eq!(priority(0), 0.5);
    }

    #[test]
    fn ranges_that_overlap_become_ranges_that_do_not() {
        let ranges = [range(0, 10, 50, 0), range(4, 6, 90, 500), range(8, TOKENS_TO_END, 50, 0)];
        assert_eq!(
            spans(&ranges, 20),
            [span(0, 4, 50, 0), span(4, 6, 90, 500), span(6, 20, 50, 0)]
        );
        // A hole is nobody's, and what lies behind the prompt is no part of it.
        assert_eq!(
            spans(&[range(2, 4, 60, 9), range(6, 7, 60, 9), range(30, 40, 99, 0)], 20).len(),
            2
        );
        assert_eq!(spans(&[range(5, 5, 60, 0)], 20), []);
        assert_eq!(spans(&[], 20), []);
    }

    #[test]
    fn what_would_rise_when_its_time_is_over_has_no_time() {
        assert_eq!(spans(&[range(0, 4, 10, 500)], 4), [span(0, 4, 10, 0)]);
        let stays = RetentionRange { after: Some(80), ..range(0, 4, 80, 500) };
        assert_eq!(spans(&[stays], 4), [span(0, 4, 80, 0)]);
        let falls = RetentionRange { after: Some(10), ..range(0, 4, 80, 500) };
        assert_eq!(spans(&[falls], 4), [span(0, 4, 80, 500)]);
    }

    #[test]
    fn a_request_says_all_that_it_has() {
        let sampling =
            Sampling { stop_tokens: vec![7], tokens_max: 9, seed: Some(3), ..Sampling::default() };
        let request = Request {
            id: 5,
            tokens: vec![1, 2, 3],
            priority: 4,
            ranges: vec![range(0, TOKENS_TO_END, 70, 100), range(0, 2, 90, 0)],
            sampling,
            ..Request::default()
        };
        let manner = Manner { ends: vec![11, 12], allotted_ms: 60, context_tokens_max: 100 };
        let said = ask(&request, 77, &manner);
        assert_eq!((said.client, said.salt, said.tokens_max, said.allotted_ms), (5, 77, 9, 60));
        assert_eq!((said.has_end, said.end_id, &said.stop_tokens[..]), (true, 11, &[12, 7][..]));
        assert_eq!(said.ranges, [span(0, 2, 90, 0), span(2, 3, 70, 100)]);
        assert_eq!((said.decode_priority, said.decode_duration_ms), (70, 100));
        assert!(said.has_seed && said.seed == 3 && said.priority > 0.5);
        let ignoring = Sampling { ignore_eos: true, ..request.sampling.clone() };
        let said = ask(&Request { sampling: ignoring, ranges: vec![], ..request }, 77, &manner);
        assert_eq!(
            (said.has_end, &said.stop_tokens[..], said.has_retention),
            (false, &[7][..], false)
        );
        assert_eq!(said.decode_priority, 35);
        let short = Manner { context_tokens_max: 8, ..manner };
        assert_eq!(ask(&request_of(3, 9), 1, &short).tokens_max, 5, "what has room");
    }

    fn request_of(tokens: usize, tokens_max: u32) -> Request {
        let sampling = Sampling { tokens_max, ..Sampling::default() };
        Request { tokens: vec![1; tokens], sampling, ..Request::default() }
    }

    proptest::proptest! {
        /// Token by token, what is said is the greatest worth of the ranges over it.
        #[test]
        fn each_token_is_worth_its_best_range(
            ranges in proptest::collection::vec((0..24_u32, 0..24_u32, 0..4_u8, 0..3_u32), 0..8),
        ) {
            let ranges: Vec<RetentionRange> =
                ranges.iter().map(|(a, b, p, d)| range(*a.min(b), *a.max(b), 36 + p, *d)).collect();
            let said = spans(&ranges, 20);
            proptest::prop_assert!(said.windows(2).all(|pair| pair[0].end <= pair[1].start));
            for token in 0..20_u32 {
                let due = ranges.iter().filter(|r| (r.start..r.end).contains(&token)).map(worth).max();
                let over = said.iter().find(|s| (s.start..s.end).contains(&(token as i32)));
                let got = over.map(|s| (s.priority as u8, if s.duration_ms == 0 { u32::MAX } else { s.duration_ms }));
                proptest::prop_assert_eq!(got, due, "token {}", token);
            }
        }
    }
}
