//! What a query string asks for; one that makes no sense is refused in the words and the shape of all other errors.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::response::Response;
use mainstay_chat::ApiError;
use serde::de::DeserializeOwned;

use super::{failure, new_request_id, protocol_of};

/// The members of a query string.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let problem = format!("the query string makes no sense ({rejection})");
                let error = ApiError::invalid("", &problem);
                Err(failure(&error, protocol_of(parts.uri.path()), &new_request_id()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, StatusCode};

    use super::*;

    #[derive(serde::Deserialize)]
    struct Page {
        limit: u32,
    }

    async fn asked(uri: &str) -> Result<Params<Page>, Response> {
        let (mut parts, ()) = Request::builder().uri(uri).body(()).unwrap().into_parts();
        Params::from_request_parts(&mut parts, &()).await
    }

    #[tokio::test]
    async fn nonsense_is_refused_as_json() {
        assert!(asked("/v1/sessions?limit=7").await.is_ok_and(|Params(page)| page.limit == 7));
        for query in ["limit=many", "limit=-1", "", "limit=%ff"] {
            let Err(refused) = asked(&format!("/v1/sessions?{query}")).await else {
                panic!("{query} was taken")
            };
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
            let body = axum::body::to_bytes(refused.into_body(), 4096).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["type"], "invalid_request_error", "{body}");
        }
    }
}
