//! Sums become samples, samples become minutes, rings stay as long as they are.

use super::*;

fn second(at_s: u64, requests: u64) -> Sample {
    Sample { at_unix_ms: at_s * 1_000, requests, ..Sample::default() }
}

#[test]
fn quantiles_are_right_to_within_a_bucket() {
    let tally = Tally::default();
    let before = tally.read();
    for ms in 1..=1_000 {
        tally.first_token(Duration::from_millis(ms));
    }
    let sample = Sample::between(&before, &tally.read(), 0, Fleet::default());
    for (share, true_ms) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (0.0, 1.0), (1.0, 1_000.0)]
    {
        let ms = sample.times.quantile(share).expect("there are some");
        assert!((ms / true_ms).max(true_ms / ms) <= BUCKET_GROWTH, "{share}: {ms} for {true_ms}");
    }
    assert_eq!(Times::default().quantile(0.5), None);
}

#[test]
fn times_of_any_length_have_a_bucket() {
    for ms in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e30, 44_999.0] {
        assert!(bucket(ms) < BUCKETS);
    }
    assert_eq!((bucket(1.0), bucket(1.1), bucket(1e9)), (0, 1, BUCKETS - 1));
}

#[test]
fn a_sample_is_what_came_since_the_one_before() {
    let tally = Tally::default();
    tally.asked();
    let before = tally.read();
    tally.asked();
    tally.refused();
    tally.used(&Usage {
        prompt_tokens: 9,
        cached_tokens: 4,
        completion_tokens: 2,
        ..Usage::default()
    });
    let sample = Sample::between(&before, &tally.read(), 5, Fleet::default());
    assert_eq!((sample.requests, sample.refused, sample.prompt_tokens), (1, 1, 9));
    assert_eq!((sample.cached_tokens, sample.completion_tokens), (4, 2));
}

#[test]
fn rings_keep_a_quarter_of_an_hour_and_a_day() {
    let history = History::default();
    for at in 0..(MERGED * (MINUTES_MAX + 3)) as u64 {
        history.push(second(at, 1));
    }
    let (short, long) = (history.columns(Span::Short), history.columns(Span::Long));
    let step = usize::try_from(SHOWN_STEP_MS / 1_000).expect("small");
    // All but the first and the last, which may lack seconds.
    assert_eq!(short["requests"].as_array().map(Vec::len), Some(SECONDS_MAX / step - 2));
    assert_eq!(short["requests"][3], step, "a step is the sum of its seconds");
    assert_eq!(long["requests"].as_array().map(Vec::len), Some(MINUTES_MAX));
    assert_eq!(long["requests"][7], MERGED, "a minute is the sum of its seconds");
    assert_eq!(history.last(10).requests, 10);
    assert_eq!(history.last(10_000).requests, SECONDS_MAX as u64);
}

#[test]
fn counters_of_a_worker_that_began_anew_begin_anew() {
    let load = |epoch, evictions| v1::Load { epoch, evictions, running: 2, ..v1::Load::default() };
    let mut heard = HashMap::new();
    let mut fleet = |epoch, evictions| {
        fleet_of(std::iter::once((WorkerId(1), load(epoch, evictions))), &mut heard).evictions
    };
    // What came before this gateway is not its business.
    assert_eq!([fleet(1, 500), fleet(1, 520), fleet(2, 3), fleet(2, 3)], [0, 20, 3, 0]);
    assert_eq!(fleet_of(std::iter::empty(), &mut heard), Fleet::default());
    assert!(heard.is_empty(), "who left is forgotten");
}
