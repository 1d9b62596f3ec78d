//! A tenant's sessions, as this gateway sees them: `GET /v1/sessions` and one of them by its key.
//!
//! Another tenant's session is told as missing, whatever its key: whether it exists is none of the caller's business.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use mainstay_chat::{ApiError, EndCause, ErrorKind, SessionState, SessionView};
use serde_json::{Value, json};

use super::App;
use super::admin::AdminError;

/// Sessions in one answer at most.
const SHOWN_MAX: usize = 1_000;
/// Children shown of one session in a list; by its key it shows all of them.
const CHILDREN_LISTED_MAX: usize = 16;

#[derive(serde::Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    all: bool,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(app): State<App>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, AdminError> {
    let tenant = app.tenants.of(&headers)?;
    Ok(Json(list_json(app.sessions.list(&tenant), query.all, query.limit)))
}

pub(super) async fn show(
    State(app): State<App>,
    headers: HeaderMap,
    Path(key): Path<String>,
) -> Result<Json<Value>, AdminError> {
    let tenant = app.tenants.of(&headers)?;
    let session = app.sessions.get(&tenant, &key).ok_or_else(|| {
        let message = "no such session here; GET /v1/sessions lists those that this gateway served";
        ApiError::new(ErrorKind::NotFound, message)
    })?;
    Ok(Json(session_json(&session, usize::MAX)))
}

fn list_json(sessions: Vec<SessionView>, all: bool, limit: Option<usize>) -> Value {
    let shown = |session: &&SessionView| all || session.state != SessionState::Ended;
    let limit = limit.unwrap_or(SHOWN_MAX).min(SHOWN_MAX);
    let wanted = sessions.iter().filter(shown);
    let data: Vec<Value> =
        wanted.clone().take(limit).map(|s| session_json(s, CHILDREN_LISTED_MAX)).collect();
    let has_more = wanted.count() > data.len();
    json!({"object": "list", "data": data, "has_more": has_more})
}

fn session_json(session: &SessionView, children_max: usize) -> Value {
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
        "children": session.children.iter().take(children_max).collect::<Vec<_>>(),
        "children_count": session.children.len(),
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
    fn views() -> Vec<SessionView> {
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
        lives.list(1_000, "t")
    }

    #[test]
    fn a_list_shows_the_living_unless_all_are_asked_for() {
        let living = list_json(views(), false, None);
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
        let all = list_json(views(), true, None);
        let child = &all["data"][0];
        assert_eq!(
            (&child["key"], &child["parent"], &child["ended"]),
            (&json!("c"), &json!("p"), &json!("final"))
        );
        let first = list_json(views(), true, Some(1));
        assert_eq!(
            (first["data"].as_array().map(Vec::len), &first["has_more"]),
            (Some(1), &json!(true))
        );
        assert_eq!(session_json(&views()[1], 0)["children"], json!([]));
    }
}
