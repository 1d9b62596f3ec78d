//! A body and its headers, read into a request.
//!
//! Long bodies are worked on away from the threads that serve streams, so that one client's history does not make
//! the others' tokens late. One of which most is known takes a fraction of a millisecond, and going to another thread and
//! back, where memory is cold, would be a good part of that.

use axum::http::HeaderMap;
use mainstay_chat::{ApiError, Endpoint, ErrorKind, ParseOptions, Request};

/// Bodies of which more than this is new are parsed and tokenised away from the threads that serve streams.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Larger ones are in any case. That a body was read before does not prove that it was tokenised, or that its tokens are
/// still known, so this bounds what serving threads may have to do all the same: three times what they always may.
const INLINE_KNOWN_BYTES_MAX: usize = 192 << 10;

/// How much of a body has to be read anew, and most likely rendered and tokenised.
pub(super) fn new_bytes(endpoint: Endpoint, body: &[u8], parsing: &ParseOptions) -> usize {
    if (INLINE_BYTES_MAX..=INLINE_KNOWN_BYTES_MAX).contains(&body.len()) {
        body.len() - mainstay_chat::known_bytes(endpoint, body, parsing)
    } else {
        body.len()
    }
}

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

/// Runs `work` inline when little is new, on a thread for blocking work otherwise.
pub(crate) async fn compute<T: Send + 'static>(
    new_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if new_bytes <= INLINE_BYTES_MAX {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::new(ErrorKind::Internal, "the request could not be prepared"))?
}

/// The same for work with a place in the gateway. What is held goes with the work and comes back with its outcome: a
/// thread cannot be called off, so a caller that leaves must not free its place while one still works for it.
pub(crate) async fn compute_held<T: Send + 'static, H: Send + 'static>(
    held: H,
    new_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, H), ApiError> {
    compute(new_bytes, move || {
        let done = work()?;
        Ok((done, held))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mainstay_chat::{BodyMemory, KnownBodies};

    use super::*;

    #[test]
    fn a_long_body_that_goes_on_is_short_work_and_a_huge_one_never_is() {
        let known = Arc::new(KnownBodies::new(0, 64 << 20, 7));
        let bodies = Some(BodyMemory { known, tenant: "a".into() });
        let parsing = ParseOptions { bodies, ..ParseOptions::default() };
        let body = |messages: usize| {
            let said = serde_json::json!({"role": "user", "content": "a word ".repeat(1_000)});
            let all = vec![said; messages];
            serde_json::json!({"messages": all, "model": "m"}).to_string().into_bytes()
        };
        let new = |body: &[u8]| new_bytes(Endpoint::Chat, body, &parsing);
        let (first, next, huge) = (body(20), body(21), body(90));
        assert!(first.len() > INLINE_BYTES_MAX && huge.len() > INLINE_KNOWN_BYTES_MAX);
        assert_eq!(new(&first), first.len());
        mainstay_chat::parse(Endpoint::Chat, &first, parsing.clone()).expect("it is well formed");
        assert!(new(&next) < 8_000, "{}", new(&next));
        mainstay_chat::parse(Endpoint::Chat, &huge, parsing.clone()).expect("it is well formed");
        assert_eq!(new(&huge), huge.len());
    }
}
