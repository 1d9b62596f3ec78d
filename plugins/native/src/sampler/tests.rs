//! Filters, penalties, seeds and probabilities of the sampler.

use proptest::prelude::*;

use super::*;

fn settings() -> Sampling {
    Sampling { temperature: 1.0, tokens_max: 1_000_000, seed: Some(1), ..Sampling::default() }
}

fn sampler(settings: Sampling) -> Sampler {
    Sampler::new(settings, &[], &[], 0, 0)
}

fn choose(sampler: &mut Sampler, logits: &[f32]) -> u32 {
    sampler.choose(&mut logits.to_vec()).unwrap().token
}

/// Shares of each token over many draws.
fn shares(settings: Sampling, logits: &[f32]) -> Vec<f64> {
    const DRAWS: u32 = 20_000;
    let mut sampler = sampler(settings);
    let mut counts = vec![0u32; logits.len()];
    for _ in 0..DRAWS {
        counts[choose(&mut sampler, logits) as usize] += 1;
    }
    counts.iter().map(|n| f64::from(*n) / f64::from(DRAWS)).collect()
}

fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

#[test]
fn temperature_zero_takes_the_likeliest() {
    let mut greedy = sampler(Sampling { temperature: 0.0, ..settings() });
    assert_eq!(choose(&mut greedy, &[0.1, 3.0, -1.0, 2.9]), 1);
}

#[test]
fn draws_follow_the_probabilities() {
    let wanted = [0.5, 0.25, 0.125, 0.125];
    let got = shares(settings(), &logits_of(&wanted));
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((got - wanted).abs() < 0.015, "{got} {wanted}");
    }
    let cold = shares(Sampling { temperature: 0.5, ..settings() }, &logits_of(&wanted));
    let total: f64 = wanted.iter().map(|p| p * p).sum();
    for (got, wanted) in cold.iter().zip(wanted.map(|p| p * p / total)) {
        assert!((got - wanted).abs() < 0.015, "{got} {wanted}");
    }
}

#[test]
fn filters_leave_what_they_should() {
    let logits = logits_of(&[0.05, 0.4, 0.3, 0.15, 0.1]);
    let left = |settings: Sampling| -> Vec<usize> {
        let shares = shares(settings, &logits);
        (0..logits.len()).filter(|i| shares[*i] > 0.0).collect()
    };
    assert_eq!(left(Sampling { top_k: 2, ..settings() }), [1, 2]);
    assert_eq!(left(Sampling { top_p: 0.69, ..settings() }), [1, 2]);
    assert_eq!(left(Sampling { top_p: 0.71, ..settings() }), [1, 2, 3]);
    assert_eq!(left(Sampling { min_p: 0.3, ..settings() }), [1, 2, 3]);
    assert_eq!(left(Sampling { top_k: 3, top_p: 0.9, min_p: 0.3, ..settings() }), [1, 2, 3]);
    assert_eq!(left(Sampling { top_k: 1, ..settings() }), [1]);
    assert_eq!(left(Sampling { top_p: 1e-6, ..settings() }), [1]);
}

#[test]
fn top_p_of_a_flat_row_goes_past_the_first_selection() {
    let mut candidates: Vec<(f32, u32)> = (0..10_000).map(|i| (1.0, i)).collect();
    keep_top_p(&mut candidates, 0.5);
    assert_eq!(candidates.len(), 5_000);
    assert!(candidates.iter().enumerate().all(|(i, c)| c.1 == i as u32));
}

#[test]
fn penalties_count_prompt_and_drawn_tokens_as_they_should() {
    let greedy = Sampling { temperature: 0.0, ..settings() };
    let logits = [2.0, 1.9, 1.8];
    let repetition = Sampling { repetition_penalty: 2.0, ..greedy.clone() };
    assert_eq!(choose(&mut Sampler::new(repetition, &[], &[0], 0, 0), &logits), 1);
    let frequency = Sampling { frequency_penalty: 0.06, ..greedy.clone() };
    let mut sampler = Sampler::new(frequency, &[], &[0, 0, 0, 0], 0, 0);
    let tokens: Vec<u32> = (0..7).map(|_| choose(&mut sampler, &logits)).collect();
    assert_eq!(tokens, [0, 0, 1, 0, 1, 0, 2], "the prompt does not count, each use does");
    let presence = Sampling { presence_penalty: 0.15, ..greedy };
    let mut sampler = Sampler::new(presence, &[], &[], 0, 0);
    let tokens: Vec<u32> = (0..4).map(|_| choose(&mut sampler, &logits)).collect();
    assert_eq!(tokens, [0, 1, 0, 0]);
}

#[test]
fn a_migrated_request_goes_on_as_if_it_had_stayed() {
    let settings = Sampling {
        repetition_penalty: 1.3,
        frequency_penalty: 0.2,
        presence_penalty: 0.1,
        top_p: 0.95,
        ..settings()
    };
    let row = |step: u32| -> Vec<f32> {
        (0..50).map(|i| ((i * 7 + step * 13) % 31) as f32 * 0.1).collect()
    };
    let prompt = [1, 2, 3];
    let mut stayed = Sampler::new(settings.clone(), &[], &prompt, 0, 0);
    let tokens: Vec<u32> = (0..20).map(|step| choose(&mut stayed, &row(step))).collect();
    let mut moved_prompt = prompt.to_vec();
    moved_prompt.extend(&tokens[..8]);
    let mut moved = Sampler::new(settings, &[], &moved_prompt, 8, 99);
    let rest: Vec<u32> = (8..20).map(|step| choose(&mut moved, &row(step))).collect();
    assert_eq!(rest, tokens[8..]);
}

#[test]
fn ends_wait_for_the_least_length() {
    let settings = Sampling {
        temperature: 0.0,
        tokens_min: 2,
        tokens_max: 3,
        stop_tokens: vec![2],
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(settings.clone(), &[1], &[], 0, 0);
    let step = |sampler: &mut Sampler| sampler.choose(&mut [0.0, 9.0, 8.0]).unwrap();
    assert_eq!((step(&mut sampler).token, step(&mut sampler).token), (0, 0));
    assert!(!sampler.exhausted());
    let third = step(&mut sampler);
    assert!(third.token == 1 && third.ends && sampler.exhausted());
    let mut ignoring =
        Sampler::new(Sampling { ignore_eos: true, tokens_min: 0, ..settings }, &[1], &[], 0, 0);
    assert!(!step(&mut ignoring).ends, "end-of-sequence is ignored");
}

#[test]
fn logprobs_are_the_models_own() {
    let settings =
        Sampling { temperature: 0.0, logprobs: 3, repetition_penalty: 50.0, ..settings() };
    let mut sampler = Sampler::new(settings, &[], &[0], 0, 0);
    let mut logits = logits_of(&[0.5, 0.3, 0.2]);
    logits.iter_mut().for_each(|l| *l += 4.0);
    let choice = sampler.choose(&mut logits).unwrap();
    let got: Vec<(u32, u32)> = choice.logprobs.iter().map(|l| (l.rank, l.token)).collect();
    assert_eq!(choice.token, 1, "token 0 is penalised");
    assert_eq!(got, [(0, 1), (1, 0), (2, 1)]);
    for (logprob, p) in choice.logprobs.iter().zip([0.3f32, 0.5, 0.3]) {
        assert!((logprob.logprob - p.ln()).abs() < 1e-5);
    }
}

#[test]
fn rows_that_are_not_finite_are_errors() {
    for row in [vec![], vec![f32::NAN; 4], vec![f32::NEG_INFINITY; 4], vec![f32::INFINITY, 0.0]] {
        let mut sampler = sampler(settings());
        assert_eq!(sampler.choose(&mut row.clone()), Err(NotFinite.into()));
    }
    assert_eq!(choose(&mut sampler(settings()), &[f32::NAN, 1.0, f32::NEG_INFINITY]), 1);
}

proptest! {
    #[test]
    fn any_row_and_settings_choose_a_token_of_the_row(
        logits in prop::collection::vec(-50f32..50.0, 1..200),
        (temperature, top_p, min_p) in (0f32..3.0, 0.001f32..=1.0, 0f32..=1.0),
        (top_k, seed, penalty) in (0u32..300, any::<u64>(), 0.1f32..3.0),
    ) {
        let settings = Sampling {
            temperature, top_p, min_p, top_k, repetition_penalty: penalty, seed: Some(seed), logprobs: 4, ..settings()
        };
        let run = || {
            let mut sampler = Sampler::new(settings.clone(), &[], &[0, 1], 1, 0);
            (0..4).map(|_| choose(&mut sampler, &logits)).collect::<Vec<_>>()
        };
        let tokens = run();
        prop_assert!(tokens.iter().all(|t| (*t as usize) < logits.len()));
        prop_assert_eq!(tokens, run());
    }
}
