//! The form of an answer on its way to a worker, where the model's engine can hold an answer to one.
//!
//! Clients send `strict` by habit, so that an engine without the capability answers all the same; the header
//! `mainstay-hints` tells that the form is not enforced. What is wrong with a wish is wrong whatever the engine.

use mainstay_chat::{ApiError, ConstraintKind, Request, constraint};
use mainstay_proto::v1;

use crate::model::ModelCard;

/// What a worker is sent for a request.
pub(crate) fn guided(
    request: &mut Request,
    card: &ModelCard,
    thinking_open: bool,
) -> Result<Option<v1::Guided>, ApiError> {
    let Some(form) = constraint(request, &card.spelling, thinking_open)? else { return Ok(None) };
    if !card.takes_guided {
        request.tell("form-not-enforced-by-this-engine");
        return Ok(None);
    }
    let kind = match form.kind {
        ConstraintKind::JsonSchema => 1,
        ConstraintKind::Regex => 2,
        ConstraintKind::Lark => 3,
    };
    Ok(Some(v1::Guided { kind, spec: form.spec }))
}
