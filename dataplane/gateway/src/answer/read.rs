//! A body and its headers, read into a request.
//!
//! Long bodies are worked on away from the threads that serve streams, so that one client's history does not make
//! the others' tokens late.

use axum::http::HeaderMap;
use mainstay_chat::{ApiError, Endpoint, ErrorKind, ParseOptions, Request};

/// Bodies larger than this are parsed and tokenised away from the threads that serve streams.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// The headers that are text, owned: they go to another thread with the body.
pub(super) fn names(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .filter_map(|(k, v)| Some((k.as_str().to_owned(), v.to_str().ok()?.to_owned())))
        .collect()
}

/// Reads a body, and what its headers say beside it.
pub(super) fn request(
    endpoint: Endpoint,
    body: &[u8],
    parsing: ParseOptions,
    names: &[(String, String)],
    request_id: &str,
) -> Result<Request, ApiError> {
    let mut request = mainstay_chat::parse(endpoint, body, parsing)?;
    request.apply_headers(names.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    for warning in &request.warnings {
        tracing::debug!(request = %request_id, warning, "request accepted with a warning");
    }
    Ok(request)
}

/// Runs `work` inline when the body is small, on a thread for blocking work otherwise.
pub(crate) async fn compute<T: Send + 'static>(
    body_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if body_bytes <= INLINE_BYTES_MAX {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::new(ErrorKind::Internal, "the request could not be prepared"))?
}

/// The same for work with a place in the gateway. What is held goes with the work and comes back with its outcome: a
/// thread cannot be called off, so a caller that leaves must not free its place while one still works for it.
pub(crate) async fn compute_held<T: Send + 'static, H: Send + 'static>(
    held: H,
    body_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, H), ApiError> {
    compute(body_bytes, move || {
        let done = work()?;
        Ok((done, held))
    })
    .await
}
