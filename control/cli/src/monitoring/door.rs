//! HTTP for operators' tools, of roles that have no HTTP interface of their own or must not mix it with their clients'.
//!
//! Small and bounded: so many connections at a time, one answer each, so long for it. What is beyond waits in the
//! system's queue. No keys: who may connect may read.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 16;
/// What a client may take to say what it wants.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// The longest head of a request, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 8 << 10;
/// Between two attempts to accept when the process has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

pub(crate) type Answer = Response<Full<Bytes>>;

/// An answer whose body is `kind`, a media type.
pub(crate) fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Answers every request at `listener` by `respond`, with `patience` from a connection to the last byte of its answer.
pub(crate) async fn accept<F, R>(listener: TcpListener, patience: Duration, respond: F)
where
    F: Fn(Method, Uri) -> R + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let respond = Arc::new(respond);
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "an operator's connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let respond = Arc::clone(&respond);
        tokio::spawn(async move {
            let _place = place;
            if tokio::time::timeout(patience, serve(stream, respond)).await.is_err() {
                tracing::debug!("an operator's client was too slow");
            }
        });
    }
}

async fn serve<F, R>(stream: TcpStream, respond: Arc<F>)
where
    F: Fn(Method, Uri) -> R,
    R: Future<Output = Answer>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method().clone(), request.uri().clone());
        async move { Ok::<_, Infallible>(response.await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an operator's connection failed");
    }
}
