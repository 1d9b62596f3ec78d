//! `--metrics-listen`: `/metrics`, `/livez` and `/readyz` of roles that have no HTTP interface of their own.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use http::{Method, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::door::{self, Answer};

/// From a connection to the last byte of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The flag of a role.
#[derive(clap::Args)]
pub(crate) struct MetricsArgs {
    /// Serve /metrics, /livez and /readyz over HTTP there, such as 127.0.0.1:9400; plain text, without keys [default: off]
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<SocketAddr>,
}

type Trouble = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What a role says of itself once it has started: why it is not ready, or `None` when it is.
#[derive(Clone, Default)]
pub(crate) struct Readiness(Arc<OnceLock<Trouble>>);

impl Readiness {
    /// The role has started.
    pub(crate) fn started(&self, trouble: impl Fn() -> Option<String> + Send + Sync + 'static) {
        // A role starts once.
        let _ = self.0.set(Box::new(trouble));
    }

    fn trouble(&self) -> Option<String> {
        self.0.get().map_or_else(|| Some("starting".to_owned()), |trouble| trouble())
    }
}

impl MetricsArgs {
    /// Listens, before the role starts: an address that is taken is told at once, and a probe gets its answer from the
    /// first moment on. Without the flag nothing listens and nothing is recorded.
    pub(crate) async fn listen(&self, role: &'static str) -> anyhow::Result<Readiness> {
        let readiness = Readiness::default();
        let Some(address) = self.metrics_listen else { return Ok(readiness) };
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for metrics; choose another with --metrics-listen")
        })?;
        tokio::spawn(accept(listener, super::install(role)?, readiness.clone()));
        Ok(readiness)
    }
}

async fn accept(listener: TcpListener, handle: PrometheusHandle, ready: Readiness) {
    door::accept(listener, PATIENCE, move |method, uri| {
        std::future::ready(respond(&method, uri.path(), &handle, &ready))
    })
    .await;
}

fn respond(method: &Method, path: &str, handle: &PrometheusHandle, ready: &Readiness) -> Answer {
    let (status, kind, text) = match (method == Method::GET || method == Method::HEAD, path) {
        (false, _) => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "use GET\n".to_owned()),
        (true, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4", handle.render()),
        (true, "/livez") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (true, "/readyz") => match ready.trouble() {
            None => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n")),
        },
        (true, _) => {
            let there = "there is /metrics, /livez and /readyz\n".to_owned();
            (StatusCode::NOT_FOUND, "text/plain", there)
        }
    };
    door::answer(status, kind, text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::super::door::{CONNECTIONS_MAX, HEAD_BYTES_MAX};
    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// A listener with a recorder of its own; the process has only one place for a global one.
    async fn serve(why: Option<&'static str>) -> SocketAddr {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::counter!("x_total").increment(7));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let readiness = Readiness::default();
        assert_eq!(readiness.trouble().as_deref(), Some("starting"));
        readiness.started(move || why.map(str::to_owned));
        tokio::spawn(accept(listener, handle, readiness));
        address
    }

    #[tokio::test]
    async fn three_paths_answer_and_others_say_which() {
        let address = serve(Some("no leader")).await;
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let metrics = ask(address, &get("/metrics")).await;
        assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("x_total 7"), "{metrics}");
        assert!(ask(address, &get("/livez")).await.starts_with("HTTP/1.1 200"));
        let ready = ask(address, &get("/readyz")).await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("no leader\n"), "{ready}");
        let other = ask(address, &get("/")).await;
        assert!(other.starts_with("HTTP/1.1 404") && other.contains("/metrics"), "{other}");
        let post = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
        assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
        let ready = serve(None).await;
        assert!(ask(ready, &get("/readyz")).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn silent_clients_hold_their_places_for_a_while_only() {
        let address = serve(None).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // The next one waits until they are let go, and gets its answer.
        let text = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
        let limit = PATIENCE + Duration::from_secs(10);
        let reply = tokio::time::timeout(limit, ask(address, text)).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        let huge = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
        let reply = ask(address, &huge).await;
        assert!(reply.starts_with("HTTP/1.1 431"), "{reply}");
    }
}
