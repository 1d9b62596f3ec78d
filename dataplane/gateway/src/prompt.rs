//! From a parsed request to what a worker needs: tokens, block hashes, sampling, and the pins it wishes for.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use mainstay_chat::template::RenderOptions;
use mainstay_chat::{ApiError, Request, Thoughts};
use mainstay_proto::tokens::unpack;
use mainstay_proto::v1;
use mainstay_types::{
    BlockHashKey, HashKey, KeptTokens, NamespaceId, PinScope, Region, SequenceHash, SessionId,
    TenantId,
};

use crate::config::Recompute;
use crate::model::{ModelCard, ModelError, Naming, Prepared};
use crate::pins::{Wish, scope_of};
use crate::random;
use crate::retention::{Keeping, Parts, Retainer};
use crate::sessions::Life;

/// A prompt, named block by block.
pub(crate) struct Prompt {
    /// How many tokens it has.
    pub(crate) tokens: usize,
    /// The tokens as a worker is told them.
    pub(crate) packed: Bytes,
    pub(crate) blocks: Arc<[SequenceHash]>,
    pub(crate) namespace: NamespaceId,
    /// Tokens of system prompt and tools, where that was asked for.
    pub(crate) head_tokens: u32,
    pub(crate) block_tokens: u32,
    /// What becomes of the model's thoughts in later prompts.
    thoughts: Thoughts,
    hash_key: HashKey,
    pub(crate) thinking_open: bool,
    /// Prefixes to keep: how many full blocks, and how long.
    pub(crate) kept: Vec<(usize, u64)>,
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        Self::new(mainstay_chat::ErrorKind::Internal, error.to_string())
    }
}

/// How a tenant's prompt is to be rendered.
pub(crate) fn options_of(request: &Request, tenant: &TenantId) -> RenderOptions {
    /// Its keys are this process's, so that nobody can find two tenants of one hash.
    static ASKERS: LazyLock<ahash::RandomState> = LazyLock::new(ahash::RandomState::new);
    RenderOptions { asker: ASKERS.hash_one(tenant.as_str()), ..RenderOptions::of(request) }
}

/// Where a tenant's prompts for a model are cached.
pub(crate) fn namespace_of(
    key: &BlockHashKey,
    tenant: &TenantId,
    card: &ModelCard,
    salt: &str,
) -> NamespaceId {
    let model = format!("{}@{}", card.name, card.revision);
    key.namespace(tenant.as_str(), &model, salt, card.block_tokens)
}

/// Renders, tokenises and hashes. Pure computation, milliseconds for a long prompt.
pub(crate) fn prepare(
    request: &Request,
    options: RenderOptions,
    card: &ModelCard,
    tenant: &TenantId,
    key: HashKey,
) -> Result<Prompt, ApiError> {
    let rendered = card.template.render_with_breakpoints(&request.conversation, options)?;
    let differed = card.template.part_counts().differed;
    if differed > 0 {
        metrics::counter!("mainstay_gateway_template_differences_total", "model" => card.name.clone())
            .absolute(differed);
    }
    let mut marks: Vec<(usize, Option<u64>)> =
        rendered.breakpoints.iter().map(|b| (b.end_bytes, Some(b.ttl_ms))).collect();
    // What other sessions begin with too ends here; only a session's lease wants to know.
    if request.session.key().is_some() {
        let head = card.template.head_end(&request.conversation, options, &rendered);
        marks.extend(head.map(|end_bytes| (end_bytes, None)));
    }
    marks.sort_unstable();
    let offsets: Vec<usize> = marks.iter().map(|m| m.0).collect();
    let salt = request.hints.cache_salt.as_deref().unwrap_or_default();
    let hash_key = key;
    let key = BlockHashKey::new(key);
    let namespace = namespace_of(&key, tenant, card, salt);
    let naming = Naming { key: &key, namespace, block_tokens: card.block_tokens };
    let prepared = card.tokenizer.prepare(tenant.as_str(), rendered.text, &offsets, &naming)?;
    let Prepared { tokens, packed, blocks, tokens_before } = prepared;
    let block_tokens = card.block_tokens as usize;
    let head = tokens_before.iter().zip(&marks).find(|(_, mark)| mark.1.is_none());
    let head_tokens = head.map_or(0, |(tokens, _)| u32::try_from(*tokens).unwrap_or(u32::MAX));
    let mut kept: Vec<(usize, u64)> = tokens_before
        .iter()
        .zip(&marks)
        .filter_map(|(tokens, (_, ttl_ms))| Some((tokens / block_tokens, (*ttl_ms)?)))
        .collect();
    if let Some(cache) = request.hints.cache_control {
        kept.push((blocks.len(), cache.ttl_ms));
    }
    Ok(Prompt {
        tokens,
        packed,
        blocks,
        namespace,
        head_tokens,
        block_tokens: card.block_tokens,
        thoughts: card.template.thoughts(),
        hash_key,
        thinking_open: rendered.thinking_open,
        kept: deepest(kept),
    })
}

/// One pin per TTL, at its deepest breakpoint; a shorter prefix with no longer life adds nothing.
fn deepest(mut kept: Vec<(usize, u64)>) -> Vec<(usize, u64)> {
    kept.retain(|(blocks, _)| *blocks > 0);
    kept.sort_unstable_by(|a, b| b.cmp(a));
    let mut longest_ms = 0;
    kept.retain(|(_, ttl_ms)| {
        let adds = *ttl_ms > longest_ms;
        longest_ms = longest_ms.max(*ttl_ms);
        adds
    });
    kept
}

impl Prompt {
    /// One of so many blocks, for tests.
    #[cfg(test)]
    pub(crate) fn of_blocks(blocks: usize, block_tokens: u32) -> Self {
        Self {
            tokens: blocks * block_tokens as usize,
            packed: Bytes::new(),
            blocks: (0..blocks as u128).map(SequenceHash).collect(),
            namespace: NamespaceId(1),
            head_tokens: 0,
            block_tokens,
            thoughts: Thoughts::Stay,
            hash_key: HashKey([7; 16]),
            thinking_open: false,
            kept: Vec::new(),
        }
    }

    /// What the request's session wants kept, after the changes that the request itself has made were told.
    pub(crate) fn keeping(
        &self,
        retainer: &Retainer,
        request: &Request,
        tenant: &TenantId,
        life: &Life,
    ) -> Option<Keeping> {
        let parts = Parts {
            head: self.head_tokens,
            prompt: u32::try_from(self.tokens).unwrap_or(u32::MAX),
            thoughts: self.thoughts,
            open_loop: request.conversation.open_loop(),
        };
        let of = (self.namespace, self.hash_key, self.block_tokens);
        let who = (tenant, request.session.key());
        retainer.keeping(who, life.is_side(), of, (parts, &self.blocks))
    }

    /// The pins that the request asks for.
    pub(crate) fn wishes(
        &self,
        request: &Request,
        tenant: &TenantId,
        card: &ModelCard,
        (recompute, region): (Recompute, &Region),
    ) -> Vec<Wish> {
        let keeps = recompute.applies(request.hints.recompute, false);
        // What makes no sense was warned of when it was read.
        let scope = scope_of(request.hints.pin_scope.as_deref(), region)
            .unwrap_or_else(|| PinScope::Region(region.clone()));
        let owner = request.session.key().and_then(SessionId::new);
        let wish = |(blocks, ttl_ms): &(usize, u64)| Wish {
            tenant: tenant.clone(),
            namespace: self.namespace,
            owner: owner.clone(),
            blocks: self.blocks[..*blocks].to_vec(),
            prefix_tokens: self.prefix_tokens(*blocks, card),
            ttl_ms: *ttl_ms,
            copies_min: 1,
            tokens: keeps.then(|| self.kept_tokens(*blocks, card)),
            scope: scope.clone(),
        };
        self.kept.iter().map(wish).collect()
    }

    fn prefix_tokens(&self, blocks: usize, card: &ModelCard) -> u32 {
        u32::try_from(blocks).unwrap_or(u32::MAX).saturating_mul(card.block_tokens)
    }

    /// The tokens of the first `blocks`, to be kept with a pin.
    pub(crate) fn kept_tokens(&self, blocks: usize, card: &ModelCard) -> KeptTokens {
        // They were packed here.
        let mut tokens = unpack(&self.packed).unwrap_or_default();
        tokens.truncate(blocks * card.block_tokens as usize);
        KeptTokens::new(&card.name, &card.revision, &tokens)
    }
}

/// Sampling for the worker. What the client left open takes the values that mean "as the model says".
pub(crate) fn sampling(request: &Request, card: &ModelCard, prompt_tokens: usize) -> v1::Sampling {
    let s = &request.sampling;
    let room = (card.context_tokens_max as usize).saturating_sub(prompt_tokens);
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    v1::Sampling {
        temperature: s.temperature.map_or(1.0, narrow),
        top_p: s.top_p.map_or(1.0, narrow),
        min_p: s.min_p.map_or(0.0, narrow),
        top_k: s.top_k.unwrap_or(0),
        repetition_penalty: s.repetition_penalty.map_or(1.0, narrow),
        frequency_penalty: s.frequency_penalty.map_or(0.0, narrow),
        presence_penalty: s.presence_penalty.map_or(0.0, narrow),
        tokens_max: s.max_tokens.unwrap_or(room).min(room).max(1),
        tokens_min: 0,
        // Each request samples from a seed, chosen here if not by the client: a request that moves to another
        // worker must go on with the same one.
        seed: Some(s.seed.map_or_else(random::number, i64::cast_unsigned)),
        ignore_eos: s.ignore_eos,
        stop_tokens: if s.ignore_eos { Vec::new() } else { card.end_tokens.clone() },
        logprobs: s.logprobs.map_or(0, |n| n + 1),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a sampling parameter needs no more than f32")]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::deepest;

    #[test]
    fn a_shorter_prefix_is_kept_only_for_longer() {
        assert_eq!(deepest(vec![(3, 300), (9, 300), (5, 3600)]), vec![(9, 300), (5, 3600)]);
        assert_eq!(deepest(vec![(0, 300)]), vec![]);
        assert_eq!(deepest(vec![(9, 3600), (9, 300)]), vec![(9, 3600)]);
    }
}
