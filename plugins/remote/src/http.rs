//! The HTTP client of one server: bounded answers, no redirects, no proxies, and errors without anybody's text.

use std::time::Duration;

use mainstay_engine_abi::sdk::{Code, EngineError};
use reqwest::{Method, Response, StatusCode};

use crate::RemoteError;
use crate::options::Options;

const CONNECT: Duration = Duration::from_secs(5);
/// How long a question about the server itself may take.
const QUESTION: Duration = Duration::from_secs(10);
/// The largest answer to one: metrics of a large server are some hundred kilobytes.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// What is read of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// What is passed on of its words.
const REFUSAL_CHARS_MAX: usize = 160;

/// One server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    client: reqwest::Client,
    base: String,
}

impl Client {
    pub(crate) fn new(options: &Options) -> Result<Self, RemoteError> {
        let wrong = |reason: String| RemoteError::Options(format!("no HTTP client: {reason}"));
        let mut headers = reqwest::header::HeaderMap::new();
        if let Some(key) = &options.api_key {
            let text = format!("Bearer {}", key.0);
            let mut value = reqwest::header::HeaderValue::from_str(&text)
                .map_err(|_| wrong("the key is no header".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(reqwest::header::AUTHORIZATION, value);
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(options.silence)
            .tcp_nodelay(true)
            // A server closes kept connections when it likes, and a request that meets that is lost: llama.cpp's does so
            // within milliseconds. A connection costs little beside what is asked for.
            .pool_max_idle_per_host(0)
            .http1_only()
            .default_headers(headers)
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        Ok(Self { client, base: options.upstream.clone() })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Asks about the server itself. `None` where it has no such page.
    pub(crate) async fn ask(&self, path: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let url = self.url(path);
        let away = |reason: String| RemoteError::Away { url: url.clone(), reason };
        let asked = async {
            let response = self
                .client
                .request(Method::GET, &url)
                .send()
                .await
                .map_err(|error| away(words(&error)))?;
            let status = response.status();
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                let reason = format!("it answers {status}; name a file with its key: api_key_file");
                return Err(RemoteError::Server { url: url.clone(), reason });
            }
            if status == StatusCode::SERVICE_UNAVAILABLE {
                return Err(away("it is not ready (503)".to_owned()));
            }
            if !status.is_success() {
                return Ok(None);
            }
            let body = read(response, ANSWER_BYTES_MAX).await.map_err(away)?;
            Ok(Some(body))
        };
        let answered = tokio::time::timeout(QUESTION, asked).await;
        answered.unwrap_or_else(|_| Err(away("it does not answer in time".to_owned())))
    }

    /// Sends a request; an answer that is not 200 is an error already.
    pub(crate) async fn post(&self, path: &str, body: String) -> Result<Response, EngineError> {
        let request = self
            .client
            .request(Method::POST, self.url(path))
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        let response = request.send().await.map_err(|error| lost(&error))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(refusal(response).await)
    }
}

/// A connection that was lost or never was.
pub(crate) fn lost(error: &reqwest::Error) -> EngineError {
    EngineError::unavailable(format!("the server is lost: {}", words(error)))
}

/// What an error says, without the address, which may hold a path that is nobody's business.
fn words(error: &reqwest::Error) -> String {
    if error.is_connect() {
        return "no connection".to_owned();
    }
    if error.is_timeout() {
        return "it is silent for too long".to_owned();
    }
    "the connection broke".to_owned()
}

/// Reads a whole body that is no longer than this.
pub(crate) async fn read(mut response: Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| words(&error))? {
        if body.len() + part.len() > most {
            return Err(format!("an answer of more than {most} bytes"));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

async fn refusal(response: Response) -> EngineError {
    let status = response.status();
    let body = read(response, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let said = message_of(&body);
    let text = if said.is_empty() {
        format!("the server answers {status}")
    } else {
        format!("the server answers {status}: {said}")
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS => EngineError::exhausted(text, 500),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            EngineError::new(Code::Precondition, text)
        }
        status if status.is_client_error() => EngineError::invalid(text),
        // Whatever is wrong with it, another worker's server may do better.
        _ => EngineError::unavailable(text),
    }
}

/// The message in a server's error, in any of the forms that they have; cut, since it may quote the request.
pub(crate) fn message_of(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::new();
    };
    let found = ["/error/message", "/message", "/error", "/detail"]
        .into_iter()
        .find_map(|place| value.pointer(place)?.as_str());
    found.unwrap_or_default().chars().filter(|c| !c.is_control()).take(REFUSAL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_found_in_every_form_and_cut() {
        for body in [
            r#"{"error": {"message": "too long", "code": 400}}"#,
            r#"{"object": "error", "message": "too long"}"#,
            r#"{"error": "too long"}"#,
            r#"{"detail": "too long"}"#,
        ] {
            assert_eq!(message_of(body.as_bytes()), "too long", "{body}");
        }
        assert_eq!(message_of(b"<html>"), "");
        let long = format!(r#"{{"message": "{}"}}"#, "x".repeat(1000));
        assert_eq!(message_of(long.as_bytes()).len(), REFUSAL_CHARS_MAX);
    }
}
