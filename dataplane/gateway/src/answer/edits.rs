//! Edits of a context, with the tokens that a prompt really has.

use mainstay_chat::template::RenderOptions;
use mainstay_chat::{Conversation, Request, apply_edits};
use mainstay_types::TenantId;

use crate::model::ModelCard;

/// Makes the edits that the request asks for. A prompt that cannot be rendered counts as empty here, so nothing is
/// cleared; preparing it tells the client why.
pub(super) fn apply(
    request: &mut Request,
    options: RenderOptions,
    card: &ModelCard,
    tenant: &TenantId,
) {
    let Some(context) = &mut request.context else { return };
    let tokens = |conversation: &Conversation| {
        let text = card.template.render(conversation, options).unwrap_or_default();
        card.tokenizer
            .encode(tenant.as_str(), &text, &[])
            .map_or(0, |encoded| encoded.tokens.len() as u64)
    };
    context.applied = apply_edits(&mut request.conversation, &context.edits, tokens);
}

/// The tokens of the prompt before its edits, if any were asked for.
pub(super) fn original_tokens(request: &Request, prompt_tokens: u64) -> Option<u64> {
    let context = request.context.as_ref()?;
    let cleared: u64 = context.applied.iter().map(|edit| edit.cleared_tokens).sum();
    Some(prompt_tokens.saturating_add(cleared))
}
