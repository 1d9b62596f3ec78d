//! Stored responses by their ids, and compaction: `/v1/responses/...` beside the answering itself.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Request, header};
use axum::response::{IntoResponse, Response};
use mainstay_chat::{ApiError, Endpoint};
use mainstay_types::TenantId;
use serde_json::{Value, json};

use super::params::Params;
use super::{App, begin_span, failure, new_request_id, read_body, with_request_id};
use crate::answer::Incoming;

/// Items in one answer, and how many it has where the client does not say.
const ITEMS_MAX: usize = 100;
const ITEMS_USUAL: usize = 20;

fn answered(outcome: Result<Response, ApiError>, request_id: &str) -> Response {
    let response = outcome.unwrap_or_else(|e| failure(&e, Endpoint::Responses, request_id));
    with_request_id(response, request_id)
}

/// What a tenant is told of a stored response.
async fn told(
    app: &App,
    headers: &HeaderMap,
    tell: impl AsyncFnOnce(TenantId) -> Result<Value, ApiError>,
) -> Response {
    let outcome = async { tell(app.tenants.of(headers)?).await };
    answered(outcome.await.map(|body| Json(body).into_response()), &new_request_id())
}

/// What a client asks of a stored response.
#[derive(serde::Deserialize)]
pub(super) struct GetQuery {
    #[serde(default)]
    stream: Option<String>,
}

pub(super) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(query): Params<GetQuery>,
    headers: HeaderMap,
) -> Response {
    told(&app, &headers, async |tenant| {
        if query.stream.is_some_and(|stream| stream == "true") {
            let problem = "a stored response is not streamed; get it without `stream`";
            return Err(ApiError::invalid("stream", problem));
        }
        Ok(app.stored.get(&tenant, &id).await?.response)
    })
    .await
}

pub(super) async fn delete(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    told(&app, &headers, async |tenant| {
        app.stored.delete(&tenant, &id).await?;
        Ok(json!({"id": id, "object": "response", "deleted": true}))
    })
    .await
}

pub(super) async fn cancel(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    told(&app, &headers, async |tenant| {
        app.stored.cancel(&tenant, &id).await?;
        Ok(app.stored.get(&tenant, &id).await?.response)
    })
    .await
}

/// Which items a client wants to see.
#[derive(serde::Deserialize)]
pub(super) struct ItemsQuery {
    limit: Option<usize>,
    order: Option<String>,
    after: Option<String>,
}

pub(super) async fn input_items(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(query): Params<ItemsQuery>,
    headers: HeaderMap,
) -> Response {
    told(&app, &headers, async |tenant| {
        list(&id, app.stored.get(&tenant, &id).await?.input, &query)
    })
    .await
}

/// A page of a response's input, the last items first unless asked otherwise.
fn list(id: &str, mut items: Vec<Value>, query: &ItemsQuery) -> Result<Value, ApiError> {
    let limit = query.limit.unwrap_or(ITEMS_USUAL);
    if !(1..=ITEMS_MAX).contains(&limit) {
        return Err(ApiError::invalid("limit", &format!("must be 1 to {ITEMS_MAX}, got {limit}")));
    }
    let base = id.strip_prefix("resp_").unwrap_or(id);
    for (at, item) in items.iter_mut().enumerate().filter(|(_, item)| item.is_object()) {
        if item.get("id").and_then(Value::as_str).is_none() {
            item["id"] = format!("item_{base}_{at}").into();
        }
        if item.get("type").is_none() {
            item["type"] = "message".into();
        }
    }
    match query.order.as_deref() {
        Some("asc") => {}
        None | Some("desc") => items.reverse(),
        Some(_) => return Err(ApiError::invalid("order", "expected `asc` or `desc`")),
    }
    let of = |item: &Value| item.get("id").and_then(Value::as_str).map(str::to_owned);
    if let Some(after) = &query.after {
        let place = items.iter().position(|item| of(item).as_deref() == Some(after));
        let place = place.ok_or_else(|| ApiError::invalid("after", "no item has this id"))?;
        items.drain(..=place);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let (first, last) = (items.first().and_then(of), items.last().and_then(of));
    Ok(json!({
        "object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more,
    }))
}

pub(super) async fn compact(State(app): State<App>, request: Request<Body>) -> Response {
    let request_id = new_request_id();
    let outcome = async {
        let admitted = app.admit(request.headers())?;
        let (headers, body, admitted) = read_body(request, admitted).await?;
        let (endpoint, request_id) = (Endpoint::Responses, &request_id);
        let span = &begin_span(endpoint, &headers);
        let incoming = Incoming { endpoint, headers: &headers, body, request_id, span, last: None };
        let body = app.compact(admitted, incoming).await?;
        let mut response = Response::new(Body::from(body));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        Ok::<_, ApiError>(response)
    };
    let outcome = outcome.await;
    metrics::counter!("mainstay_gateway_requests_total", "endpoint" => "compact").increment(1);
    if let Err(error) = &outcome {
        tracing::info!(request = %request_id, kind = ?error.kind, "compaction refused");
    }
    answered(outcome, &request_id)
}

#[cfg(test)]
mod tests {
    use mainstay_chat::ErrorKind;

    use super::*;

    fn page(
        limit: Option<usize>,
        order: Option<&str>,
        after: Option<&str>,
    ) -> Result<Value, ApiError> {
        let items = vec![json!({"id": "a"}), json!({"role": "user"}), json!({"id": "c"})];
        let (order, after) = (order.map(str::to_owned), after.map(str::to_owned));
        list("resp_7", items, &ItemsQuery { limit, order, after })
    }

    fn ids(page: &Value) -> Vec<&str> {
        page["data"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn items_come_in_pages_and_all_have_ids() {
        let all = page(None, None, None).unwrap();
        assert_eq!(ids(&all), ["c", "item_7_1", "a"]);
        assert_eq!((&all["first_id"], &all["has_more"]), (&json!("c"), &json!(false)));
        let first = page(Some(2), Some("asc"), None).unwrap();
        assert_eq!((ids(&first), &first["has_more"]), (vec!["a", "item_7_1"], &json!(true)));
        assert_eq!(ids(&page(Some(2), Some("asc"), Some("item_7_1")).unwrap()), ["c"]);
        for bad in [
            page(Some(0), None, None),
            page(Some(101), None, None),
            page(None, Some("up"), None),
            page(None, None, Some("z")),
        ] {
            assert_eq!(bad.unwrap_err().kind, ErrorKind::InvalidRequest);
        }
    }
}
