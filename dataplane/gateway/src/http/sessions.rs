//! A tenant's sessions, as this gateway sees them: `GET /v1/sessions`, one of them by its key, and what its client has
//! to say of it.
//!
//! Another tenant's session is told as missing, whatever its key: whether it exists is none of the caller's business.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use mainstay_chat::{ApiError, EndCause, ErrorKind, SessionView};
use mainstay_types::TenantId;
use serde_json::{Value, json};
use tonic::Code;

use super::admin::AdminError;
use super::params::Params;
use super::{App, span_of};
use crate::answer::Admitted;
use crate::retention::Missed;

/// Sessions in one answer at most.
const SHOWN_MAX: usize = 1_000;

#[derive(serde::Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    all: bool,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(app): State<App>,
    headers: HeaderMap,
    Params(query): Params<ListQuery>,
) -> Result<Json<Value>, AdminError> {
    let admitted = app.admit(&headers)?;
    let most = query.limit.unwrap_or(SHOWN_MAX).min(SHOWN_MAX);
    let (sessions, has_more) = app.sessions.list(&admitted.tenant, query.all, most);
    Ok(Json(list_json(&sessions, has_more)))
}

pub(super) async fn show(
    State(app): State<App>,
    headers: HeaderMap,
    Path(key): Path<String>,
) -> Result<Json<Value>, AdminError> {
    let admitted = app.admit(&headers)?;
    let session = app.sessions.get(&admitted.tenant, &key).ok_or_else(unknown)?;
    Ok(Json(session_json(&session)))
}

fn unknown() -> ApiError {
    let message = "no such session here; GET /v1/sessions lists those that this gateway served";
    ApiError::new(ErrorKind::NotFound, message).with_code("session_not_found")
}

/// The key that a name stands for: itself, or that of the only agent of a session of that name.
pub(super) fn key_of(app: &App, tenant: &TenantId, name: &str) -> Result<Arc<str>, ApiError> {
    let mut named = app.sessions.named(tenant, name, 2);
    if named.len() > 1 {
        let message = "several agents of this session are known; name one by its key, as GET /v1/sessions has it";
        return Err(
            ApiError::new(ErrorKind::InvalidRequest, message).with_code("ambiguous_session")
        );
    }
    named.pop().ok_or_else(unknown)
}

/// A session that somebody who may ask for it names in the path.
pub(super) struct Named {
    admitted: Admitted,
    key: Arc<str>,
}

impl FromRequestParts<App> for Named {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, AdminError> {
        let admitted = app.admit(&parts.headers)?;
        let name = Path::<String>::from_request_parts(parts, app).await;
        let Path(name) = name.map_err(|_| unknown())?;
        let key = key_of(app, &admitted.tenant, &name)?;
        Ok(Self { admitted, key })
    }
}

/// Brings a session's last known prefix back to where its next turn will run.
pub(super) async fn prefetch(
    State(app): State<App>,
    Named { admitted, key }: Named,
) -> Result<Json<Value>, AdminError> {
    let done = app.retainer.prefetch(&app.placement, admitted.tenant.as_str(), &key).await;
    let outcome =
        |outcome: &str| json!({"object": "session.prefetch", "key": *key, "outcome": outcome});
    match done {
        Ok(done) => {
            let mut told = outcome(done.ended());
            told["worker"] = json!(done.worker.name);
            told["blocks"] = json!(done.prefix.blocks.len());
            told["block_tokens"] = json!(done.prefix.block_tokens);
            told["held_blocks"] = json!(done.held);
            told["brought_blocks"] = json!(done.brought);
            Ok(Json(told))
        }
        Err(Missed::UnderWay) => Ok(Json(outcome("under_way"))),
        Err(Missed::CalledOff) => Ok(Json(outcome("called_off"))),
        Err(missed) => Err(refusal(&app, missed).into()),
    }
}

/// Why a prefetch came to nothing, and what to do about it.
fn refusal(app: &App, missed: Missed) -> ApiError {
    let unavailable = |message: &str| ApiError::new(ErrorKind::Unavailable, message);
    match missed {
        Missed::Unknown if !app.retainer.is_on() => {
            let message = "this gateway remembers no prefixes: it runs with --lifecycle=off";
            ApiError::new(ErrorKind::NotFound, message).with_code("prefix_unknown")
        }
        Missed::Unknown | Missed::UnderWay | Missed::CalledOff => {
            let message = "what this session's prompt was is not known here (it has had no turn, has ended, or was forgotten for want of room); its next request will compute it";
            ApiError::new(ErrorKind::NotFound, message).with_code("prefix_unknown")
        }
        Missed::Crowded => {
            let message = "too many prefetches are under way; try again";
            ApiError::new(ErrorKind::Overloaded, message)
        }
        Missed::Nobody => unavailable("no worker takes requests now; try again"),
        Missed::Late => unavailable("the worker took too long to bring the prefix in; try again"),
        Missed::Refused(status) => match status.code() {
            Code::ResourceExhausted => ApiError::new(ErrorKind::Overloaded, status.message()),
            Code::Unimplemented => ApiError::new(ErrorKind::InvalidRequest, status.message())
                .with_code("prefetch_unsupported"),
            _ => unavailable(&format!("the worker refused: {}; try again", status.message())),
        },
    }
}

/// Ends a session as its client's last request could have done.
pub(super) async fn end(
    State(app): State<App>,
    Named { admitted, key }: Named,
) -> Result<Json<Value>, AdminError> {
    let session = app.sessions.end(&admitted.tenant, &key).ok_or_else(unknown)?;
    Ok(Json(session_json(&session)))
}

/// Ends a session, releases its pins and forgets it.
pub(super) async fn reset(
    State(app): State<App>,
    headers: HeaderMap,
    Named { admitted, key }: Named,
) -> Result<Json<Value>, AdminError> {
    let span = span_of("POST /v1/sessions/{key}/reset", &headers);
    let tenant = &admitted.tenant;
    let owned = |pin: &&mainstay_state::Pin| {
        let request = &pin.request;
        pin.is_live()
            && request.tenant == *tenant
            && request.owner.as_ref().is_some_and(|owner| owner.as_str() == &*key)
    };
    let pins: Vec<_> =
        app.replica.read(|m| m.pins().filter(owned).map(|pin| pin.request.id).collect());
    // Pins first: where they can't be released the session stays, and the call may come again.
    let mut released = 0_u64;
    for pin in pins {
        match app.pins.release(pin, &span).await {
            Ok(_) => released += 1,
            // It has ended meanwhile.
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    let session = app.sessions.reset(tenant, &key).ok_or_else(unknown)?;
    let mut told = session_json(&session);
    told["object"] = json!("session.reset");
    told["pins_released"] = json!(released);
    Ok(Json(told))
}

fn list_json(sessions: &[SessionView], has_more: bool) -> Value {
    let data: Vec<Value> = sessions.iter().map(session_json).collect();
    json!({"object": "list", "data": data, "has_more": has_more})
}

pub(super) fn session_json(session: &SessionView) -> Value {
    json!({
        "object": "session",
        "key": session.key,
        "client": session.client,
        "harness": session.harness.name(),
        "named_by": session.named_by,
        "session": session.session,
        "agent": session.agent,
        "parent": session.parent,
        "forked_from": session.forked_from,
        "children": session.children,
        "children_count": session.children_count,
        "state": session.state.name(),
        "waits_for": session.tools,
        "ended": session.ended.map(EndCause::name),
        "turns": session.turns,
        "side_requests": session.side_requests,
        "compactions": session.compactions,
        "prompt_tokens": session.prompt_tokens,
        "cached_tokens": session.cached_tokens,
        "completion_tokens": session.completion_tokens,
        "context_tokens": session.context_tokens,
        "age_ms": session.age_ms,
        "last_seen_ms_ago": session.seen_ms_ago,
    })
}

#[cfg(test)]
mod tests {
    use mainstay_chat::{Finish, Lifecycle, Outcome, Transcript, Usage, parse_chat};

    use super::*;

    /// Two sessions, the second a child of the first, of which one has ended.
    fn listed(all: bool, most: usize) -> Value {
        let mut lives = Lifecycle::default();
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
        let mut ask = |now_ms: u64, headers: &[(&str, &str)]| {
            let mut request = parse_chat(body).expect("a request");
            request.apply_headers(headers.iter().copied());
            let ticket = lives.asked(now_ms, "t", &request).ticket.expect("a session");
            let usage = Usage { prompt_tokens: 9, cached_tokens: 4, ..Usage::default() };
            let transcript = Transcript::default();
            let outcome = Outcome { transcript: &transcript, finish: &Finish::Stop, usage };
            lives.answered(now_ms + 5, ticket, &outcome);
        };
        ask(100, &[("x-session-id", "p"), ("user-agent", "check/1.0 x")]);
        ask(
            200,
            &[
                ("x-session-id", "c"),
                ("x-parent-session-id", "p"),
                ("x-dynamo-session-final", "true"),
            ],
        );
        let (sessions, has_more) = lives.list(1_000, "t", all, most);
        list_json(&sessions, has_more)
    }

    #[test]
    fn a_list_shows_the_living_unless_all_are_asked_for() {
        let living = listed(false, 9);
        assert_eq!(
            (living["data"].as_array().map(Vec::len), &living["has_more"]),
            (Some(1), &json!(false))
        );
        let parent = &living["data"][0];
        assert_eq!((&parent["key"], &parent["state"]), (&json!("p"), &json!("waiting")));
        assert_eq!((&parent["client"], &parent["harness"]), (&json!("check/1.0"), &Value::Null));
        assert_eq!((&parent["children"], &parent["children_count"]), (&json!(["c"]), &json!(1)));
        assert_eq!(
            (&parent["turns"], &parent["prompt_tokens"], &parent["cached_tokens"]),
            (&json!(1), &json!(9), &json!(4))
        );
        assert_eq!((&parent["age_ms"], &parent["last_seen_ms_ago"]), (&json!(900), &json!(895)));
        let all = listed(true, 9);
        let child = &all["data"][0];
        assert_eq!(
            (&child["key"], &child["parent"], &child["ended"]),
            (&json!("c"), &json!("p"), &json!("final"))
        );
        let first = listed(true, 1);
        assert_eq!(
            (first["data"].as_array().map(Vec::len), &first["has_more"]),
            (Some(1), &json!(true))
        );
    }
}
