//! Which server answers, and how large it is, by its own pages.
//!
//! What a server does not say has to be said in the configuration; nothing is guessed that a wrong guess would
//! make a wrong answer of.

use serde_json::Value;

use crate::RemoteError;
use crate::http::Client;
use crate::options::{Options, Server};

/// What is known of a server once it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) server: Server,
    /// Its own name for the model.
    pub(crate) model: String,
    pub(crate) context_tokens_max: u32,
    pub(crate) vocab: u32,
    pub(crate) block_tokens: u32,
    /// 0 where it does not say.
    pub(crate) blocks: u64,
    /// How many requests it runs at once.
    pub(crate) requests_max: u32,
}

/// Tokens of a block where the server has none, or none that matter here.
const BLOCK_TOKENS: u32 = 16;

fn number(value: &Value, place: &str) -> Option<u64> {
    value.pointer(place)?.as_u64().filter(|number| *number > 0)
}

fn small(value: &Value, place: &str) -> Option<u32> {
    u32::try_from(number(value, place)?).ok()
}

/// Asks a server what it is.
pub(crate) async fn probe(client: &Client, options: &Options) -> Result<Facts, RemoteError> {
    let url = client.url("/v1/models");
    let wrong = |reason: String| RemoteError::Server { url: url.clone(), reason };
    let models = ask_json(client, "/v1/models").await?.ok_or_else(|| {
        wrong("it has no list of models; is it vLLM, SGLang or llama.cpp's server?".to_owned())
    })?;
    let all = models.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let wanted = |model: &&Value| match &options.model {
        None => true,
        Some(name) => model.get("id").and_then(Value::as_str) == Some(name),
    };
    let model = all.iter().find(wanted).ok_or_else(|| {
        let names: Vec<&str> =
            all.iter().take(8).filter_map(|model| model.get("id")?.as_str()).collect();
        wrong(format!("it has no such model; `model` may be one of {names:?}"))
    })?;
    let name = model.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let server = match options.server {
        Some(server) => server,
        None => server_of(model).map_err(&wrong)?,
    };
    if server == Server::LlamaCpp && options.kv_events.is_some() {
        let message = "llama.cpp tells no events; leave --kv-events out";
        return Err(RemoteError::Options(message.to_owned()));
    }
    let told = match server {
        Server::Vllm => vllm(client, model).await?,
        Server::Sglang => sglang(client, model).await?,
        Server::LlamaCpp => llama_cpp(client, model).await?,
    };
    let need = |value: Option<u32>, member: &str| {
        value.ok_or_else(|| wrong(format!("it does not say its {member}; give `{member}`")))
    };
    let context = options.context_tokens_max.or(told.context);
    Ok(Facts {
        server,
        model: name,
        context_tokens_max: need(context, "context_tokens_max")?,
        vocab: need(options.vocab.or(told.vocab), "vocab")?,
        block_tokens: match (options.block_tokens, &options.kv_events) {
            // Blocks of another size than the server's could never be told.
            (given, Some(_)) => need(told.block_tokens.or(given), "block_tokens")?,
            (given, None) => given.or(told.block_tokens).unwrap_or(BLOCK_TOKENS),
        },
        blocks: options.blocks.or(told.blocks).unwrap_or(0),
        requests_max: match server {
            // More than its slots would wait there, where nobody orders them.
            Server::LlamaCpp => {
                let slots = told.requests.unwrap_or(1);
                options.requests_or(Some(slots)).min(slots)
            }
            _ => options.requests_or(told.requests),
        },
    })
}

fn server_of(model: &Value) -> Result<Server, String> {
    let owner = model.get("owned_by").and_then(Value::as_str).unwrap_or_default();
    match owner {
        "vllm" => Ok(Server::Vllm),
        "sglang" => Ok(Server::Sglang),
        "llamacpp" => Ok(Server::LlamaCpp),
        other => {
            let other: String = other.chars().take(40).collect();
            Err(format!(
                "its models are owned by {other:?}; vllm, sglang and llamacpp are known here. Say \
                 `server` if it speaks as one of them"
            ))
        }
    }
}

/// What a server says of itself.
#[derive(Default)]
struct Told {
    context: Option<u32>,
    vocab: Option<u32>,
    block_tokens: Option<u32>,
    blocks: Option<u64>,
    requests: Option<u32>,
}

async fn ask_json(client: &Client, path: &str) -> Result<Option<Value>, RemoteError> {
    let Some(body) = client.ask(path).await? else { return Ok(None) };
    let url = client.url(path);
    let reason = |e: serde_json::Error| format!("its answer is no JSON ({e})");
    let value = serde_json::from_slice(&body)
        .map_err(|e| RemoteError::Server { url, reason: reason(e) })?;
    Ok(Some(value))
}

async fn vllm(client: &Client, model: &Value) -> Result<Told, RemoteError> {
    let metrics = client.ask("/metrics").await?.unwrap_or_default();
    let metrics = String::from_utf8_lossy(&metrics);
    let (block_tokens, blocks) = cache_config(&metrics);
    Ok(Told { context: small(model, "/max_model_len"), block_tokens, blocks, ..Told::default() })
}

/// `block_size` and `num_gpu_blocks`, which vLLM writes as labels of a gauge.
fn cache_config(metrics: &str) -> (Option<u32>, Option<u64>) {
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix("vllm:cache_config_info{"));
    let Some(labels) = lines.next() else { return (None, None) };
    let label = |name: &str| {
        let (_, rest) = labels.split_once(&format!("{name}=\""))?;
        rest.split_once('"')?.0.parse::<u64>().ok().filter(|value| *value > 0)
    };
    let block_tokens = label("block_size").and_then(|size| u32::try_from(size).ok());
    (block_tokens, label("num_gpu_blocks"))
}

async fn sglang(client: &Client, model: &Value) -> Result<Told, RemoteError> {
    let info = match ask_json(client, "/server_info").await? {
        Some(info) => info,
        None => ask_json(client, "/get_server_info").await?.unwrap_or_default(),
    };
    let block_tokens = small(&info, "/page_size");
    let tokens = number(&info, "/max_total_num_tokens");
    Ok(Told {
        context: small(model, "/max_model_len").or_else(|| small(&info, "/context_length")),
        block_tokens,
        blocks: tokens.zip(block_tokens).map(|(tokens, block)| tokens / u64::from(block)),
        requests: small(&info, "/max_running_requests"),
        vocab: None,
    })
}

async fn llama_cpp(client: &Client, model: &Value) -> Result<Told, RemoteError> {
    let props = ask_json(client, "/props").await?.unwrap_or_default();
    Ok(Told {
        context: small(&props, "/default_generation_settings/n_ctx"),
        vocab: small(model, "/meta/n_vocab"),
        // Its slots are all that it runs at once.
        requests: small(&props, "/total_slots").or(Some(1)),
        ..Told::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_tells_the_server() {
        let owned = |owner: &str| server_of(&serde_json::json!({ "owned_by": owner }));
        assert_eq!(owned("vllm"), Ok(Server::Vllm));
        assert_eq!(owned("sglang"), Ok(Server::Sglang));
        assert_eq!(owned("llamacpp"), Ok(Server::LlamaCpp));
        assert!(owned("tensorrt_llm").unwrap_err().contains("tensorrt_llm"));
    }

    #[test]
    fn labels_of_the_cache_are_numbers_or_nothing() {
        let line = "# HELP x\nvllm:cache_config_info{block_size=\"32\",engine=\"0\",num_gpu_blocks=\"99\"} 1.0\n";
        assert_eq!(cache_config(line), (Some(32), Some(99)));
        let none = "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1.0";
        assert_eq!(cache_config(none), (Some(16), None));
        assert_eq!(cache_config(""), (None, None));
    }
}
