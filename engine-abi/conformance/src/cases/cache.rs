//! What the cache says of itself, against what it does.

use mainstay_engine_abi::sdk::caps;
use mainstay_engine_abi::sdk::types_of_mainstay::{BlockHasher, HashKey};

use crate::session::{NAMESPACE_OF_ALL, Session};
use crate::{Context, Ended, Stop};

fn with_events(context: &Context) -> Result<Session, Stop> {
    let session = Session::new(context)?;
    session.driver.needs(caps::KV_EVENTS, "KV_EVENTS")?;
    Ok(session)
}

pub(super) fn events(context: &Context) -> Ended {
    let mut session = with_events(context)?;
    let shared = session.prompt_of_blocks(1);
    let block = session.info().block_tokens as usize;
    for _ in 0..60 {
        let most = (session.blocks_of_a_prompt().min(3) * block) as u64;
        let own = session.rng.below(most) as usize + 1;
        let tail = session.prompt(own);
        let kept = session.rng.below(shared.len() as u64) as usize;
        let prompt = [&shared[..kept], &tail].concat();
        let tokens_max = 1 + session.rng.below(most.min(2 * block as u64)) as u32;
        let request = session.request(prompt, tokens_max);
        session.submit(&request)?;
    }
    session.finish_all()?;
    session.settle()?;
    if session.cache.held.is_empty() {
        return Err("60 prompts were computed, and no block was ever told".to_owned().into());
    }
    room(&session)?;
    Ok(vec![("blocks told".into(), session.cache.held.len().to_string())])
}

/// Never more blocks than the engine has.
pub(super) fn room(session: &Session) -> Result<(), String> {
    let (most, total) = (session.cache.device_most, session.info().blocks_total);
    if most > total {
        Err(format!("{most} blocks were told to be held of {total}"))
    } else {
        Ok(())
    }
}

pub(super) fn hit(context: &Context) -> Ended {
    let mut session = with_events(context)?;
    let block = session.info().block_tokens as usize;
    let prompt = session.prompt_of_blocks(4);
    let whole = (prompt.len() - 1) / block * block;
    if prompt.len() <= block + block / 2 {
        return Err(Stop::NotOffered("a context of two blocks, or a cache of eight".into()));
    }
    let first = session.tell(&prompt, 1)?;
    if first.cached_tokens != 0 {
        let cached = first.cached_tokens;
        return Err(format!("{cached} tokens of a new prompt were cached").into());
    }
    session.settle()?;
    let second = session.tell(&prompt, 1)?;
    if second.cached_tokens as usize != whole {
        let cached = second.cached_tokens;
        return Err(format!("{cached} tokens were cached where {whole} are whole blocks").into());
    }
    // A prompt that parts in its second block shares the first alone.
    let mut other = prompt.clone();
    let vocab = session.info().vocab;
    other[block + block / 2] = (other[block + block / 2] + 1) % vocab;
    let parted = session.tell(&other, 1)?;
    let shared = if whole >= block { block } else { 0 };
    if parted.cached_tokens as usize > shared + block / 2
        || (parted.cached_tokens as usize) < shared
    {
        let cached = parted.cached_tokens;
        return Err(format!("a prompt that shares {shared} tokens in blocks hit {cached}").into());
    }
    Ok(vec![("cached".into(), format!("{whole} of {}", prompt.len()))])
}

pub(super) fn truth(context: &Context) -> Ended {
    let mut session = with_events(context)?;
    let block = session.info().block_tokens as usize;
    let mut prompts: Vec<(Vec<u32>, Vec<u128>)> = Vec::new();
    let blocks = session.blocks_of_a_prompt().min(4);
    for _ in 0..12 {
        let prompt = session.prompt_of_blocks(blocks);
        let chain = session.blocks_of(&prompt)?;
        prompts.push((prompt, chain));
    }
    for (prompt, chain) in &prompts {
        session.settle()?;
        let held = chain.iter().take_while(|b| session.cache.held.contains_key(*b)).count();
        let told = session.tell(prompt, 1)?;
        let due = (held * block).min((prompt.len() - 1) / block * block);
        if told.cached_tokens as usize != due {
            let cached = told.cached_tokens;
            return Err(
                format!("events say {due} tokens are held, the request hit {cached}").into()
            );
        }
    }
    Ok(vec![("prompts".into(), prompts.len().to_string())])
}

pub(super) fn names(context: &Context) -> Ended {
    let mut session = with_events(context)?;
    session.driver.needs(caps::CANONICAL_HASH, "CANONICAL_HASH")?;
    let prompt = session.prompt_of_blocks(3);
    let told = session.blocks_of(&prompt)?;
    let due = canonical(&context.config_json, &prompt, session.info().block_tokens);
    if told != due {
        return Err(format!(
            "its first block is {:032x}, Mainstay's name for it {:032x}",
            told.first().copied().unwrap_or_default(),
            due.first().copied().unwrap_or_default()
        )
        .into());
    }
    Ok(Vec::new())
}

/// Mainstay's names of a prompt's whole blocks, by the configuration's `hash_key`.
fn canonical(config_json: &str, tokens: &[u32], block_tokens: u32) -> Vec<u128> {
    let config: serde_json::Value = serde_json::from_str(config_json).unwrap_or_default();
    let key = config.get("hash_key").and_then(|key| key.as_str()).and_then(HashKey::from_hex);
    let names = BlockHasher::hash_prompt(
        key.unwrap_or(HashKey([0; 16])),
        NAMESPACE_OF_ALL,
        block_tokens,
        tokens,
    );
    names.into_iter().map(|name| name.0).collect()
}

pub(super) fn namespaces(context: &Context) -> Ended {
    let mut session = with_events(context)?;
    let prompt = session.prompt_of_blocks(3);
    let mine = session.blocks_of(&prompt)?;
    let mut others = session.request(prompt.clone(), 1);
    others.namespace += 1;
    let told = session.generate(&others)?;
    if told.cached_tokens != 0 {
        let cached = told.cached_tokens;
        return Err(format!("another namespace's request hit {cached} tokens").into());
    }
    session.settle()?;
    let theirs = session.cache.held.values().filter(|held| held.namespace == others.namespace);
    if theirs.count() < mine.len() {
        return Err("the same prompt in another namespace has no blocks of its own"
            .to_owned()
            .into());
    }
    let again = session.tell(&prompt, 1)?;
    if again.cached_tokens == 0 {
        return Err("its own namespace's prompt was lost by that".to_owned().into());
    }
    Ok(Vec::new())
}

pub(super) fn snapshot(context: &Context) -> Ended {
    let mut session = with_events(context)?;
    session.driver.needs(caps::KV_SNAPSHOT, "KV_SNAPSHOT")?;
    for _ in 0..10 {
        let prompt = session.prompt_of_blocks(3);
        session.tell(&prompt, 3)?;
    }
    session.settle()?;
    let before = session.cache.held.clone();
    session.snapshot()?;
    let after = &session.cache.held;
    let lost = before.keys().filter(|block| !after.contains_key(*block)).count();
    let new = after.keys().filter(|block| !before.contains_key(*block)).count();
    if lost + new > 0 || before != *after {
        return Err(format!(
            "a snapshot of {} blocks at rest lacks {lost} of {} and has {new} that were not told",
            after.len(),
            before.len()
        )
        .into());
    }
    Ok(vec![("blocks".into(), after.len().to_string())])
}
