//! What the tokens are.

use mainstay_engine_abi::sdk::{Code, Finish, Guided, GuidedKind, Request, Sampling, caps};

use crate::session::Session;
use crate::{Context, Ended};

pub(super) fn one_final(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let mut asked = Vec::new();
    for _ in 0..40 {
        let length = 1 + session.rng.below(80) as usize;
        let tokens_max = 1 + session.rng.below(12) as u32;
        let prompt = session.prompt(length);
        let request = session.request(prompt, tokens_max);
        session.submit(&request)?;
        asked.push((request.id, tokens_max));
    }
    session.finish_all()?;
    session.settle()?;
    for (id, tokens_max) in asked {
        let told = session.ledger.take(id).unwrap_or_default();
        if told.finish != Some(Finish::Length) || told.tokens.len() != tokens_max as usize {
            let (got, finish) = (told.tokens.len(), told.finish);
            return Err(format!(
                "request {id} asked for {tokens_max} tokens without a stop: {got} came, {finish:?}"
            )
            .into());
        }
    }
    Ok(Vec::new())
}

pub(super) fn duplicate(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let prompt = session.prompt(10);
    let tokens_max = (session.info().context_tokens_max / 2).clamp(1, 2000);
    let request = session.request(prompt.clone(), tokens_max);
    session.submit(&request)?;
    match session.driver.submit_raw(&request, |_| {}) {
        Err(error) if error.rc == Code::Exists => {}
        // It may have ended meanwhile, where a step takes no time at all.
        other => {
            session.pump(std::time::Duration::ZERO)?;
            if !session.ledger.has_ended(request.id) {
                return Err(format!("a live id was answered by {other:?}, not EXISTS").into());
            }
        }
    }
    session.driver.cancel(request.id);
    session.read_until("the end", |s| s.ledger.has_ended(request.id))?;
    session.settle()?;
    session.ledger.take(request.id);
    let again = Request { sampling: Sampling { tokens_max: 2, ..request.sampling }, ..request };
    session.generate(&again)?;
    Ok(Vec::new())
}

fn same(one: &[u32], other: &[u32], what: &str) -> Result<(), String> {
    if one == other {
        return Ok(());
    }
    let at = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    Err(format!("{what} differs from token {at} on: {:?} and {:?}", one.get(at), other.get(at)))
}

pub(super) fn greedy(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let prompt = session.prompt_of_blocks(3);
    let first = session.tell(&prompt, 12)?;
    let second = session.tell(&prompt, 12)?;
    same(&first.tokens, &second.tokens, "a greedy answer over a cached prompt")?;
    let longer = [prompt.as_slice(), &first.tokens].concat();
    let one = session.tell(&longer, 8)?;
    let other = session.tell(&longer, 8)?;
    same(&one.tokens, &other.tokens, "a greedy answer over a longer cached prompt")?;
    Ok(vec![("cached tokens".into(), second.cached_tokens.to_string())])
}

pub(super) fn batched(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let prompts: Vec<Vec<u32>> = (0..6).map(|n| session.prompt(20 + 7 * n)).collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(session.tell(prompt, 10)?.tokens);
    }
    let mut ids = Vec::new();
    for prompt in &prompts {
        let request = session.request(prompt.clone(), 10);
        session.submit(&request)?;
        ids.push(request.id);
    }
    session.finish_all()?;
    for (id, alone) in ids.into_iter().zip(&alone) {
        let told = session.ledger.take(id).unwrap_or_default();
        same(alone, &told.tokens, "a greedy answer among others")?;
    }
    Ok(Vec::new())
}

pub(super) fn seeded(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let prompt = session.prompt(25);
    let mut request = session.request(prompt, 16);
    request.sampling.temperature = 1.0;
    request.sampling.seed = Some(context.seed | 1);
    let first = session.generate(&request)?;
    request.id = session.id();
    let second = session.generate(&request)?;
    same(&first.tokens, &second.tokens, "a seeded answer")?;
    Ok(Vec::new())
}

pub(super) fn stop(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let prompt = session.prompt(25);
    let free = session.tell(&prompt, 8)?;
    let wanted = free.tokens[3];
    let until = free.tokens.iter().position(|token| *token == wanted).unwrap_or(3) + 1;
    let mut request = session.request(prompt, 8);
    request.sampling.ignore_eos = false;
    request.sampling.stop_tokens = vec![wanted];
    let told = session.generate(&request)?;
    // The end of sequence may come before, where the engine has one.
    let is_before = told.finish == Some(Finish::Stop) && told.tokens.len() < until;
    if told.finish != Some(Finish::Stop) || (told.tokens != free.tokens[..until] && !is_before) {
        return Err(format!(
            "stop token {wanted}: {:?} and {:?} where {:?} was due",
            told.tokens,
            told.finish,
            &free.tokens[..until]
        )
        .into());
    }
    Ok(Vec::new())
}

pub(super) fn migrated(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    let prompt = session.prompt(33);
    // An engine that stands for a server elsewhere may begin its random numbers anew.
    let is_exact = session.driver.caps & caps::RESUME != 0;
    for temperature in if is_exact { &[0.0, 1.0][..] } else { &[0.0] }.iter().copied() {
        let mut whole = session.request(prompt.clone(), 12);
        whole.sampling.temperature = temperature;
        whole.sampling.seed = Some(context.seed | 1);
        let told = session.generate(&whole)?;
        let mut rest = whole.clone();
        rest.id = session.id();
        rest.tokens.extend(&told.tokens[..5]);
        rest.sampled_before = 5;
        rest.sampling.tokens_max = 7;
        let after = session.generate(&rest)?;
        let what = format!("a request that moved after 5 tokens, at temperature {temperature},");
        same(&told.tokens[5..], &after.tokens, &what)?;
    }
    Ok(vec![("sampled ones, too".into(), if is_exact { "yes" } else { "not offered" }.into())])
}

pub(super) fn logprobs(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    session.driver.needs(caps::LOGPROBS, "LOGPROBS")?;
    let prompt = session.prompt(20);
    let mut request = session.request(prompt, 6);
    request.sampling.logprobs = 4;
    let told = session.generate(&request)?;
    for (at, token) in told.tokens.iter().enumerate() {
        let mut of: Vec<_> =
            told.logprobs.iter().filter(|(p, _)| *p as usize == at).map(|(_, l)| *l).collect();
        of.sort_by_key(|l| l.rank);
        let chosen = of.first().filter(|l| l.rank == 0 && l.token == *token);
        if chosen.is_none() || of.len() < 4 {
            let got = of.len();
            return Err(format!("token {at} has {got} logprobs, or not its own first").into());
        }
        let likeliest = of
            .iter()
            .skip(1)
            .map(|l| l.logprob)
            .fold(f32::INFINITY, |before, now| if now <= before { now } else { f32::NAN });
        if likeliest.is_nan() || of.iter().any(|l| l.logprob.is_nan() || l.logprob > 1e-4) {
            return Err(format!("token {at}: logprobs above 0 or out of order: {of:?}").into());
        }
    }
    Ok(Vec::new())
}

pub(super) fn guided(context: &Context) -> Ended {
    let mut session = Session::new(context)?;
    if session.driver.caps & caps::GUIDED == 0 {
        let prompt = session.prompt(8);
        let mut request = session.request(prompt, 4);
        let spec = "a*".into();
        request.guided = Some(Guided { kind: GuidedKind::Regex, spec });
        let result = session.driver.submit_raw(&request, |_| {});
        super::boundary::refused(
            result,
            "a form, by an engine without GUIDED",
            &[Code::Unimplemented, Code::Invalid, Code::TooNew],
        )?;
        return Ok(vec![("refused without GUIDED".into(), "yes".into())]);
    }
    for (kind, spec) in [
        (GuidedKind::JsonSchema, "{\"type\": 7"),
        (GuidedKind::Regex, "(unclosed"),
        (GuidedKind::Lark, "start: : :"),
    ] {
        let prompt = session.prompt(8);
        let mut request = session.request(prompt, 4);
        request.guided = Some(Guided { kind, spec: spec.into() });
        if let Err(error) = session.try_submit(&request)? {
            if error.rc != Code::Invalid {
                return Err(format!("{spec:?} was refused as {:?}", error.rc).into());
            }
            continue;
        }
        session.finish_all()?;
        let told = session.ledger.take(request.id).unwrap_or_default();
        let invalid = Code::Invalid.rc();
        let is_invalid = matches!(told.finish, Some(Finish::Error { rc, .. }) if rc == invalid);
        if !is_invalid || !told.tokens.is_empty() {
            return Err(format!("{spec:?} ended as {:?}", told.finish).into());
        }
    }
    Ok(Vec::new())
}
