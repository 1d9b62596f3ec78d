//! The client side of the CLI: asks a gateway and turns its errors into exit codes.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::output::{Failure, Format};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What asks gateways, and waits so long for an answer at most.
pub(crate) fn client(patience: Duration) -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder().timeout(patience).build()?)
}

/// A name as one segment of a path, whatever is in it.
pub(crate) fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte);
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        // A dot too: `..` is a step up, and not a name, for whoever tidies addresses.
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Where to ask, and how to print. Shared by all commands that talk to a running cluster.
#[derive(clap::Args, Clone)]
pub(crate) struct Target {
    /// The gateway to ask
    #[arg(long, env = "MAINSTAY_ADDR", default_value = "http://127.0.0.1:8000")]
    addr: String,
    /// The API key to send
    #[arg(long, env = "MAINSTAY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

impl Target {
    /// A gateway that is named otherwise than by flags of its own.
    pub(crate) const fn of(addr: String, api_key: Option<String>, output: Format) -> Self {
        Self { addr, api_key, output }
    }

    /// Sends a request and reads its JSON answer.
    pub(crate) async fn ask(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        self.ask_by(&client(PATIENCE)?, method, path, body).await
    }

    /// Where it asks, as an address in full.
    pub(crate) fn base(&self) -> String {
        let base = self.addr.trim_end_matches('/');
        if base.contains("://") { base.to_owned() } else { format!("http://{base}") }
    }

    async fn ask_by(
        &self,
        client: &reqwest::Client,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let base = self.base();
        let mut request = client.request(method, format!("{base}{path}"));
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let reply = request.send().await.map_err(|error| Failure {
            message: format!("no gateway answers at {base} ({error}); start one with `mainstay serve` or give --addr"),
            exit: 4,
        })?;
        let status = reply.status().as_u16();
        let text = reply.text().await.context("reading the answer")?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let message = value.pointer("/error/message").and_then(Value::as_str).map(str::to_owned);
        let message = message.or_else(|| crate::doctor::reasons(&value));
        let message = message.unwrap_or_else(|| format!("the gateway answered {status}"));
        let exit = match status {
            404 => 3,
            503 | 529 => 4,
            409 => 5,
            401 | 403 => 6,
            _ => 1,
        };
        Err(Failure { message, exit }.into())
    }

    /// A GET over connections that are kept, for whoever asks again and again.
    pub(crate) async fn get_by(
        &self,
        client: &reqwest::Client,
        path: &str,
    ) -> anyhow::Result<Value> {
        self.ask_by(client, reqwest::Method::GET, path, None).await
    }

    /// A GET.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(reqwest::Method::GET, path, None).await
    }
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("a7-b_2"), "a7-b_2");
        assert_eq!(segment("../a b?c#é%"), "%2E%2E%2Fa%20b%3Fc%23%C3%A9%25");
    }
}
