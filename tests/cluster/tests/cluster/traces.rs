//! One request is one trace, over all hops: HTTP, queue, router, gRPC, engine, tiers and another worker.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::collector::collect;
use mainstay_cluster_tests::{Client, Cluster, Process, Shape, free_port};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;

use crate::transfer::{by_turns, first_token};
use crate::{cached, filler, prompt_tokens, user};

const SHAPE: Shape = Shape { members: 1, gateways: 1, workers: 2, blocks: 3_000 };
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const UNWANTED: &str = "1af7651916cd43dd8448eb211c80319c";
/// How long spans may take to arrive: they go once a second.
const ARRIVAL: Duration = Duration::from_secs(15);

/// A span with the name of its service.
#[derive(Clone, Debug)]
struct Got {
    service: String,
    span: Span,
}

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Got>>>);

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|a| a.key == key)?.value.clone()?;
    match value {
        AnyValue { value: Some(Value::StringValue(text)) } => Some(text),
        AnyValue { value: Some(Value::IntValue(number)) } => Some(number.to_string()),
        _ => None,
    }
}

impl Collector {
    /// Listens; the address to send to.
    async fn start(&self) -> Result<String> {
        let kept = Arc::clone(&self.0);
        collect(move |request| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            for resource in request.resource_spans {
                let of = resource.resource.unwrap_or_default();
                let service = text(&of.attributes, "service.name").unwrap_or_default();
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                kept.extend(spans.map(|span| Got { service: service.clone(), span }));
            }
        })
        .await
    }

    fn of(&self, trace: &str) -> Vec<Got> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|got| hex(&got.span.trace_id) == trace).cloned().collect()
    }

    /// The trace, once it has so many spans of that name.
    async fn wait_for(&self, trace: &str, name: &str) -> Result<Vec<Got>> {
        let deadline = tokio::time::Instant::now() + ARRIVAL;
        loop {
            let spans = self.of(trace);
            if spans.iter().any(|got| got.span.name == name) {
                return Ok(spans);
            }
            ensure!(tokio::time::Instant::now() < deadline, "no span `{name}`: {spans:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whose part each span is, by names.
fn edges(spans: &[Got]) -> BTreeMap<(String, String), String> {
    let named = |id: &[u8]| {
        spans.iter().find(|got| got.span.span_id == id).map_or("", |got| got.span.name.as_str())
    };
    let edge = |got: &Got| {
        let parent = named(&got.span.parent_span_id).to_owned();
        ((got.service.clone(), got.span.name.clone()), parent)
    };
    spans.iter().map(edge).collect()
}

#[tokio::test]
async fn one_request_is_one_trace_over_all_hops() -> Result<()> {
    let collector = Collector::default();
    let address = collector.start().await?;
    let cluster = Cluster::start_with(&SHAPE, &["--traces", &address])?;
    let flags = ["--traces", &address, "--router-queue-threshold", "1000"];
    let (_gateway, client) = by_turns(&cluster, &flags)?;
    let traced = client.and_header("traceparent", &format!("00-{TRACE}-{CALLER}-01"))?;
    let unwanted = client.and_header("traceparent", &format!("00-{UNWANTED}-{CALLER}-00"))?;
    let prompt = filler(70_000, 330);
    let (first, _) = first_token(&unwanted, &prompt).await?;
    ensure!(cached(&first) == 0, "{first}");
    // The index hears of the blocks within moments.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (second, _) = first_token(&traced, &prompt).await?;
    let tokens = prompt_tokens(&second);
    ensure!(cached(&second) + 32 >= tokens, "from the other worker: {second}");
    // The gateway's span and the exporting worker's are the last to come, in either order.
    collector.wait_for(TRACE, "export").await?;
    collector.wait_for(TRACE, "serve").await?;
    let spans = collector.wait_for(TRACE, "POST /v1/chat/completions").await?;
    let root = spans.iter().find(|got| got.span.name.starts_with("POST")).context("a root")?;
    assert_eq!(hex(&root.span.parent_span_id), CALLER, "the client's own span is its parent");
    let (gateway, worker) = ("mainstay-gateway", "mainstay-worker");
    let edge = |service: &str, name: &str| (service.to_owned(), name.to_owned());
    let wanted = BTreeMap::from([
        (edge(gateway, "POST /v1/chat/completions"), String::new()),
        (edge(gateway, "prepare"), "POST /v1/chat/completions".to_owned()),
        (edge(gateway, "queue"), "POST /v1/chat/completions".to_owned()),
        (edge(gateway, "route"), "POST /v1/chat/completions".to_owned()),
        (edge(gateway, "generate"), "POST /v1/chat/completions".to_owned()),
        (edge(worker, "serve"), "generate".to_owned()),
        (edge(worker, "load"), "serve".to_owned()),
        (edge(worker, "export"), "load".to_owned()),
        (edge(worker, "engine"), "serve".to_owned()),
    ]);
    assert_eq!(edges(&spans), wanted, "a tree without loose ends");
    let ids: HashSet<&[u8]> = spans.iter().map(|got| got.span.span_id.as_slice()).collect();
    assert_eq!(ids.len(), spans.len(), "each span is told once");
    let of = |name: &str, key: &str| {
        let got = spans.iter().find(|got| got.span.name == name)?;
        text(&got.span.attributes, key)
    };
    assert_eq!(of("load", "mainstay.from").as_deref(), Some("peer"));
    assert_eq!(of("engine", "mainstay.cached_tokens"), Some(cached(&second).to_string()));
    assert_eq!(of("prepare", "mainstay.prompt_tokens"), Some(tokens.to_string()));
    assert_eq!(of("generate", "mainstay.worker"), of("route", "mainstay.worker"));
    assert!(collector.of(UNWANTED).is_empty(), "its client wants no trace of it");
    Ok(())
}

#[tokio::test]
async fn a_pins_way_through_the_log_is_in_its_requests_trace() -> Result<()> {
    let collector = Collector::default();
    let address = collector.start().await?;
    let shape = Shape { members: 3, gateways: 0, workers: 1, blocks: 500 };
    let flags = ["--traces", &address];
    let cluster = Cluster::start_traced(&shape, &flags)?;
    let listen = format!("127.0.0.1:{}", free_port());
    let control = cluster.member_addresses.join(",");
    let gateway = ["gateway", "--control", &control, "--listen", &listen, "--traces", &address];
    let mut gateway = Process::start("gateway", &gateway.map(str::to_owned))?;
    gateway.wait_ready()?;
    let client = Client::new(&format!("http://{listen}"));
    let traced = client.and_header("traceparent", &format!("00-{TRACE}-{CALLER}-01"))?;
    let unwanted = client.and_header("traceparent", &format!("00-{UNWANTED}-{CALLER}-00"))?;
    let ask = |text: String| {
        json!({
            "model": "demo", "temperature": 0, "max_tokens": 4, "messages": [user(&text)],
            "cache_control": {"type": "ephemeral", "ttl": "5m"},
        })
    };
    for (client, seed) in [(&unwanted, 1), (&traced, 2)] {
        let reply = client.post("/v1/chat/completions", &ask(filler(seed, 20))).await?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
    }
    // The leader's are told within a second, as all are; whose are last is nobody's promise.
    for name in ["apply", "write pin", "pin", "serve", "POST /v1/chat/completions"] {
        collector.wait_for(TRACE, name).await?;
    }
    let spans = collector.of(TRACE);
    let (gateway, worker, member) = ("mainstay-gateway", "mainstay-worker", "mainstay-control");
    let edge = |service: &str, name: &str| (service.to_owned(), name.to_owned());
    let root = "POST /v1/chat/completions";
    let wanted = BTreeMap::from([
        (edge(gateway, root), String::new()),
        (edge(gateway, "prepare"), root.to_owned()),
        (edge(gateway, "route"), root.to_owned()),
        (edge(gateway, "generate"), root.to_owned()),
        (edge(worker, "serve"), "generate".to_owned()),
        (edge(worker, "engine"), "serve".to_owned()),
        (edge(gateway, "pin"), root.to_owned()),
        (edge(member, "write pin"), "pin".to_owned()),
        (edge(member, "queue"), "write pin".to_owned()),
        (edge(member, "commit"), "write pin".to_owned()),
        (edge(member, "apply"), "write pin".to_owned()),
    ]);
    // Whoever was asked before the leader was known says so in a span of its own.
    assert_eq!(edges(&spans), wanted, "a tree without loose ends");
    let status = client.get("/api/v1/status").await?.body;
    let writes = spans.iter().filter(|got| got.span.name == "write pin");
    let of_leader =
        writes.map(|got| &got.span.attributes).find(|of| text(of, "mainstay.term").is_some());
    let write = of_leader.context("the leader's")?;
    assert_eq!(text(write, "mainstay.term"), Some(status["term"].to_string()));
    assert_eq!(text(write, "mainstay.member"), Some(status["leader"].to_string()));
    assert_eq!(text(write, "mainstay.change").as_deref(), Some("put"));
    let index: u64 = text(write, "mainstay.log_index").context("an index")?.parse()?;
    assert!(index > 0 && Some(index) <= status["applied_index"].as_u64(), "{index}: {status}");
    let time = |name: &str| {
        let got = spans.iter().find(|got| got.span.name == name);
        got.map(|got| (got.span.start_time_unix_nano, got.span.end_time_unix_nano))
    };
    // The member's own queue: the gateway has none here.
    let (queue, commit, apply) = (time("queue"), time("commit"), time("apply"));
    let steps = [queue, commit, apply].map(|step| step.unwrap_or_default());
    assert!(steps.iter().all(|(from, to)| *from > 0 && from <= to), "{steps:?}");
    assert!(steps.is_sorted(), "one after another: {steps:?}");
    assert!(collector.of(UNWANTED).is_empty(), "its client wants no trace of it");
    Ok(())
}
