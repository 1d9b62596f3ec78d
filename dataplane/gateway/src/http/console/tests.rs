//! The console's answers: who is let in, who sees what, what a stream tells and when it ends.

use futures::StreamExt;
use mainstay_types::{
    Command, KeyId, ModelSpec, NamespaceId, PinId, PinRequest, PinScope, Quota, Region, SecretHash,
    SequenceHash,
};

use super::events::{EventsQuery, Pace};
use super::*;
use crate::testing::{self, SOON};

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a name")
}

fn pin(id: u128, owner: &str) -> Command {
    Command::PutPin(PinRequest {
        id: PinId(id),
        tenant: tenant(owner),
        namespace: NamespaceId(id),
        owner: None,
        blocks: vec![SequenceHash(0xfeed_0000_0000_0000_0000_0000_0000_0001); 2],
        prefix_tokens: 32,
        ttl_ms: 60_000,
        priority: 50,
        copies_min: 1,
        tokens: None,
        scope: PinScope::Region(Region::default()),
    })
}

fn worker(name: &str) -> Command {
    Command::RegisterWorker {
        name: name.to_owned(),
        address: "127.0.0.1:9".to_owned(),
        incarnation: 7,
        model: ModelSpec {
            name: "demo".to_owned(),
            revision: "1".to_owned(),
            block_tokens: 16,
            context_tokens_max: 8_192,
        },
        blocks_total: 512,
        region: Region::default(),
    }
}

/// A gateway that knows a worker and pins of two tenants.
fn app() -> (App, tokio::sync::watch::Sender<bool>) {
    let (app, stop) = testing::app(4);
    for command in [worker("w1"), pin(1, "acme"), pin(2, "zeta")] {
        app.replica.test_apply(command);
    }
    (app, stop)
}

async fn json_of(response: Response) -> Value {
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

async fn ok(answer: Result<Response, AdminError>) -> Value {
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    assert_eq!(response.status(), StatusCode::OK);
    json_of(response).await
}

fn status_of(answer: Result<Response, AdminError>) -> StatusCode {
    answer.unwrap_or_else(IntoResponse::into_response).status()
}

fn with_key(key: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(key))])
}

#[tokio::test]
async fn a_tenant_sees_its_own_pins_and_nobody_elses() {
    let (app, _stop) = app();
    let body = ok(pins(State(app), testing::headers()).await).await;
    let rows = body["data"].as_array().expect("rows");
    assert_eq!(rows.len(), 1, "{body}");
    assert_eq!(rows[0]["key"], format!("p-{:032x}", 1));
    assert_eq!((&rows[0]["blocks"], &rows[0]["last_block"]), (&json!(2), &json!("feed0000")));
    assert_eq!(body["about"]["live"], 1);
    assert!(!body.to_string().contains("zeta"), "{body}");
}

#[tokio::test]
async fn everybody_sees_workers_and_a_table_says_where_it_stands() {
    let (app, _stop) = app();
    let body = ok(workers(State(app.clone()), testing::headers()).await).await;
    assert_eq!((&body["topic"], &body["has_more"]), (&json!("workers"), &json!(false)));
    assert_eq!(body["log_index"], app.replica.read(|m| m.applied().0));
    let row = &body["data"][0];
    assert_eq!((&row["name"], &row["state"]), (&json!("w1"), &json!("live")));
    assert_eq!((&row["routable"], &row["blocks_total"]), (&json!(false), &json!(512)));
    assert_eq!(row["tiers"], json!([]));
    let id = row["id"].to_string();
    let map = ok(blocks(State(app.clone()), testing::headers(), Path(id)).await).await;
    assert_eq!((&map["name"], &map["runs"]), (&json!("w1"), &json!([])));
    for id in ["99", "w1", "-1", "99999999999999999999"] {
        let answer = blocks(State(app.clone()), testing::headers(), Path(id.to_owned())).await;
        assert_eq!(status_of(answer), StatusCode::NOT_FOUND, "{id}");
    }
}

#[tokio::test]
async fn nobody_comes_in_without_a_key() {
    let (app, _stop) = app();
    for headers in [HeaderMap::new(), with_key("Bearer nonsense")] {
        assert_eq!(
            status_of(pins(State(app.clone()), headers.clone()).await),
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(
            status_of(config(State(app.clone()), headers.clone()).await),
            StatusCode::UNAUTHORIZED
        );
        let query = || Params(serde_json::from_str("{}").expect("no query"));
        let answer = events(State(app.clone()), headers.clone(), query()).await;
        assert_eq!(status_of(answer), StatusCode::UNAUTHORIZED);
        // The page holds nothing, and is what asks for the key.
        assert_eq!(status_of(page(State(app.clone()), headers).await), StatusCode::OK);
    }
}

#[tokio::test]
async fn settings_tell_no_secret() {
    let (app, _stop) = app();
    let body = ok(config(State(app), testing::headers()).await).await;
    assert_eq!(
        (&body["tenant"]["name"], &body["gateway"]["configured_keys"]),
        (&json!("acme"), &json!(1))
    );
    assert_eq!(body["gateway"]["policy"], "kv");
    assert!(!body.to_string().contains("\"key\""), "the only key is `key`: {body}");
}

#[tokio::test]
async fn an_overview_says_what_is_wrong() {
    let (app, _stop) = app();
    let body = ok(overview(State(app), testing::headers()).await).await;
    let now = &body["data"][0];
    assert_eq!((&now["pins"]["live"], &now["pins"]["own"]), (&json!(2), &json!(1)));
    assert_eq!(now["workers"], json!({"live": 1, "routable": 0}));
    assert!(now["reasons"].to_string().contains("no worker can take a request"), "{now}");
    assert!(now["control"]["problem"].is_string(), "no member exists: {now}");
}

#[tokio::test]
async fn files_have_types_tags_and_a_policy() {
    let (app, _stop) = app();
    for asset in mainstay_console::ASSETS {
        let name = asset.name.to_owned();
        let answer = file(State(app.clone()), HeaderMap::new(), Path(name)).await;
        let response = answer.unwrap_or_else(IntoResponse::into_response);
        assert_eq!(response.status(), StatusCode::OK, "{}", asset.name);
        let told = response.headers().clone();
        assert_eq!(told[header::CONTENT_TYPE], asset.media_type());
        assert!(
            told[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .expect("text")
                .contains("default-src 'none'")
        );
        assert_eq!(told[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let known = HeaderMap::from_iter([(header::IF_NONE_MATCH, told[header::ETAG].clone())]);
        let again = file(State(app.clone()), known, Path(asset.name.to_owned())).await;
        assert_eq!(status_of(again), StatusCode::NOT_MODIFIED);
    }
    for name in ["../Cargo.toml", "nothing.js", ""] {
        let answer = file(State(app.clone()), HeaderMap::new(), Path(name.to_owned())).await;
        assert_eq!(status_of(answer), StatusCode::NOT_FOUND, "{name}");
    }
}

#[tokio::test]
async fn a_console_that_is_switched_off_is_not_there() {
    let mut config = testing::config(4);
    config.console = false;
    let (app, _stop) = testing::app_of(config);
    app.replica.test_apply(Command::Tick);
    assert_eq!(status_of(page(State(app.clone()), HeaderMap::new()).await), StatusCode::NOT_FOUND);
    assert_eq!(status_of(pins(State(app), testing::headers()).await), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn too_many_at_once_are_told_to_come_again() {
    let (app, _stop) = app();
    let all = app.console.reads.try_acquire_many(READS_MAX as u32).expect("all are free");
    let answer = pins(State(app.clone()), testing::headers()).await;
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    assert!(response.status().is_server_error(), "{}", response.status());
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    drop(all);
    assert_eq!(status_of(pins(State(app), testing::headers()).await), StatusCode::OK);
}

#[tokio::test]
async fn a_span_is_short_or_long() {
    let (app, _stop) = app();
    let asked = |span: Option<&str>| {
        let query = HistoryQuery { span: span.map(str::to_owned) };
        history(State(app.clone()), testing::headers(), Params(query))
    };
    assert_eq!(ok(asked(None).await).await["step_ms"], 5_000);
    assert_eq!(ok(asked(Some("24h")).await).await["step_ms"], 60_000);
    assert_eq!(status_of(asked(Some("1y")).await), StatusCode::BAD_REQUEST);
}

/// A stream of changes, as its reader has it.
struct Reader {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Reader {
    async fn open(app: &App, headers: HeaderMap, topics: &str) -> Self {
        let query = serde_json::from_value(json!({"topics": topics})).expect("a query");
        let answer = events(State(app.clone()), headers, Params(query)).await;
        let response = answer.unwrap_or_else(IntoResponse::into_response);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// The name and the data of the next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let Some((name, data)) = event.split_once("\ndata: ") else { continue };
                let name = name.trim_start_matches("event: ").to_owned();
                return Some((name, serde_json::from_str(data).expect("JSON")));
            }
            let chunk = tokio::time::timeout(SOON, self.body.next()).await.expect("in time")?;
            self.text.push_str(std::str::from_utf8(&chunk.expect("a chunk")).expect("text"));
        }
    }
}

#[tokio::test]
async fn a_stream_tells_all_and_then_what_changes() {
    let (app, _stop) = app();
    let mut reader = Reader::open(&app, testing::headers(), "pins").await;
    let (name, first) = reader.next().await.expect("all pins");
    assert_eq!(
        (name.as_str(), &first["topic"], &first["whole"]),
        ("rows", &json!("pins"), &json!(true))
    );
    assert_eq!(first["rows"].as_object().map(serde_json::Map::len), Some(1));
    app.replica.test_apply(pin(3, "zeta"));
    app.replica.test_apply(pin(4, "acme"));
    let (_, next) = reader.next().await.expect("a change");
    assert_eq!(next["whole"], false);
    let keys: Vec<&String> = next["rows"].as_object().expect("rows").keys().collect();
    assert_eq!(keys, [&format!("p-{:032x}", 4)], "another tenant's is not told");
    app.replica.test_apply(Command::ReleasePin { id: PinId(4) });
    let (_, next) = reader.next().await.expect("another change");
    assert_eq!(next["rows"][format!("p-{:032x}", 4)]["state"], "released");
}

#[tokio::test]
async fn a_stream_ends_with_its_key() {
    let (app, _stop) = app();
    let hash = SecretHash(mainstay_identity::sha256(b"later"));
    let key = KeyId::new("laptop").expect("a name");
    let named = tenant("zeta");
    app.replica.test_apply(Command::PutTenant { name: named.clone(), quota: Quota::default() });
    app.replica.test_apply(Command::PutKey { tenant: named.clone(), key: key.clone(), hash });
    let mut reader = Reader::open(&app, with_key("Bearer later"), "pins").await;
    let (_, first) = reader.next().await.expect("all pins");
    assert!(first["rows"].as_object().is_some_and(|rows| rows.len() == 1), "{first}");
    app.replica.test_apply(Command::RemoveKey { tenant: named, key });
    let (name, end) = reader.next().await.expect("an end");
    assert_eq!(name, "end", "{end}");
    assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("key")), "{end}");
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn a_stream_ends_with_the_gateway_and_gives_its_place_back() {
    let (app, stop) = app();
    let mut reader = Reader::open(&app, testing::headers(), "pins,workers").await;
    for topic in ["pins", "workers"] {
        assert_eq!(reader.next().await.expect("a topic").1["topic"], topic);
    }
    assert_eq!(app.console.streams.count(), 1);
    stop.send_replace(true);
    assert_eq!(reader.next().await.expect("an end").0, "end");
    assert!(reader.next().await.is_none());
    assert_eq!(app.console.streams.count(), 0);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let (app, _stop) = app();
    let pace = Pace { look: Duration::from_millis(5), stall: Duration::from_millis(100) };
    let topics = EventsQuery { topics: Some("pins".to_owned()) };
    let answer = events::stream(app.clone(), testing::headers(), topics, pace);
    assert!(answer.is_ok() && app.console.streams.count() == 1);
    let cut = async {
        for n in 0.. {
            app.replica.test_apply(pin(100 + n, "acme"));
            tokio::time::sleep(Duration::from_millis(10)).await;
            if app.console.streams.count() == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, cut).await.expect("its place is free again");
    drop(answer);
}
