//! A tenant's sessions, as this gateway sees them: `GET /v1/sessions` and one of them by its key.
//!
//! Another tenant's session is told as missing, whatever its key: whether it exists is none of the caller's business.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use mainstay_chat::{ApiError, EndCause, ErrorKind, SessionView};
use serde_json::{Value, json};

use super::App;
use super::admin::AdminError;
use super::params::Params;

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
    let session = app.sessions.get(&admitted.tenant, &key).ok_or_else(|| {
        let message = "no such session here; GET /v1/sessions lists those that this gateway served";
        ApiError::new(ErrorKind::NotFound, message)
    })?;
    Ok(Json(session_json(&session)))
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
