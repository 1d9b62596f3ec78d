//! `mainstay serve`: one process, three APIs, one text, and the CLI beside it.

use std::time::Duration;

use anyhow::{Result, ensure};
use mainstay_cluster_tests::{Client, Process, free_port, library, run_cli};
use serde_json::{Value, json};

use crate::{answer, cached, prompt_tokens, user};

fn serve(extra: &[&str]) -> Result<(Process, String, tempfile::TempDir, Duration)> {
    let dir = tempfile::tempdir()?;
    let listen = format!("127.0.0.1:{}", free_port());
    let mut args: Vec<String> =
        ["serve", "--listen", &listen, "--data-dir", &dir.path().to_string_lossy()]
            .map(str::to_owned)
            .into();
    args.extend(extra.iter().map(ToString::to_string));
    let mut process = Process::start("serve", &args)?;
    let took = process.wait_ready()?;
    Ok((process, format!("http://{listen}"), dir, took))
}

fn weather_tool() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string"}}})
}

/// The same question on the three endpoints, and where each keeps its text.
async fn three_answers(client: &Client, question: &str) -> Result<[String; 3]> {
    let chat = json!({"model": "demo", "temperature": 0, "messages": [user(question)]});
    let responses = json!({"model": "demo", "temperature": 0, "input": question});
    let messages =
        json!({"model": "demo", "temperature": 0, "max_tokens": 64, "messages": [user(question)]});
    let mut texts = Vec::new();
    for (path, body, pointer) in [
        ("/v1/chat/completions", chat, "/choices/0/message/content"),
        ("/v1/responses", responses, "/output/0/content/0/text"),
        ("/v1/messages", messages, "/content/0/text"),
    ] {
        let reply = client.post(path, &body).await?;
        ensure!(reply.status == 200, "{path}: {} {}", reply.status, reply.body);
        let text = reply.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        ensure!(!text.is_empty(), "{path} answered no text: {}", reply.body);
        texts.push(text.to_owned());
    }
    Ok(texts.try_into().expect("three endpoints were asked"))
}

#[tokio::test]
async fn three_apis_give_one_text_and_the_cli_sees_the_cluster() -> Result<()> {
    let (_process, url, _dir, _) = serve(&[])?;
    let client = Client::new(&url);
    let [chat, responses, messages] = three_answers(&client, "Who are you?").await?;
    assert_eq!(chat, responses);
    assert_eq!(chat, messages);
    let (code, out, err) = run_cli(&["status", "--addr", &url])?;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("leader m1") && out.contains("live"), "{out}");
    let (code, out, _) = run_cli(&["control", "members", "--addr", &url])?;
    assert!(code == 0 && out.contains("leader"), "{out}");
    let (code, out, _) = run_cli(&["request", "explain", "last", "--addr", &url])?;
    assert!(code == 0 && out.contains("chosen"), "{out}");
    let (code, _, err) =
        run_cli(&["pin", "show", "p-00000000000000000000000000000001", "--addr", &url])?;
    assert!(code == 3 && err.contains("no pin"), "{code} {err}");
    let metrics = client.get("/metrics").await?.body.to_string();
    assert!(metrics.contains("mainstay_gateway_requests_total"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_tool_call_and_its_result_go_round() -> Result<()> {
    let (_process, url, _dir, _) = serve(&[])?;
    let client = Client::new(&url);
    let tools = json!([{"type": "function", "function": {
        "name": "get_weather", "description": "Current weather for a city", "parameters": weather_tool()}}]);
    let question = user("What is the weather in Oslo?");
    let body = json!({"model": "demo", "temperature": 0, "tools": tools, "messages": [question]});
    let reply = client.post("/v1/chat/completions", &body).await?.body;
    let message = &reply["choices"][0]["message"];
    let call = &message["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather", "{reply}");
    assert_eq!(reply["choices"][0]["finish_reason"], "tool_calls");
    let result = json!({"role": "tool", "tool_call_id": call["id"],
        "content": "{\"city\": \"Oslo\", \"temp_c\": -4, \"sky\": \"snowy\"}"});
    let body = json!({"model": "demo", "temperature": 0, "tools": tools,
        "messages": [question, message, result]});
    let reply = client.post("/v1/chat/completions", &body).await?.body;
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    assert!(text.contains("-4") && text.contains("Oslo"), "{reply}");
    Ok(())
}

#[tokio::test]
async fn each_turn_finds_every_full_block_of_the_turns_before() -> Result<()> {
    let (_process, url, _dir, _) = serve(&[])?;
    let client = Client::new(&url);
    let mut messages = Vec::new();
    let mut before = None;
    for turn in 0..3 {
        messages.push(user(&crate::filler(turn, 65)));
        let reply = client.chat(&json!(messages), 24).await?;
        if let Some(tokens) = before {
            // The turn before: its prompt and all of its answer but what the end mark cut off.
            let full_blocks = tokens / 16 * 16;
            assert!(cached(&reply) >= full_blocks, "{} < {full_blocks}", cached(&reply));
            assert!(cached(&reply) < prompt_tokens(&reply));
        }
        before = Some(prompt_tokens(&reply));
        messages.push(answer(&reply));
    }
    assert!(before.is_some_and(|tokens| tokens >= 2_000), "the history grew to {before:?} tokens");
    Ok(())
}

#[tokio::test]
async fn the_engine_as_a_library_in_a_child_gives_the_same_text() -> Result<()> {
    let (_linked, linked_url, _a, _) = serve(&[])?;
    let library = library();
    let (_child, child_url, _b, _) = serve(&["--engine", &library.to_string_lossy()])?;
    for question in ["Hello!", "My name is Otter. What is my name?", "Say Raven twice."] {
        let linked = Client::new(&linked_url).chat(&json!([user(question)]), 48).await?;
        let child = Client::new(&child_url).chat(&json!([user(question)]), 48).await?;
        assert_eq!(linked["choices"][0]["message"], child["choices"][0]["message"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_restart_keeps_its_pins() -> Result<()> {
    let (mut process, url, dir, _) = serve(&[])?;
    let prefix = crate::filler(3, 20);
    let (code, out, err) =
        run_cli(&["pin", "add", "--system", &prefix, "--ttl", "1h", "--addr", &url])?;
    assert_eq!(code, 0, "{out}{err}");
    process.terminate()?;
    assert_eq!(process.wait_exit(Duration::from_secs(20))?, 0, "{}", process.output());
    let listen = url.trim_start_matches("http://").to_owned();
    let data = dir.path().to_string_lossy().into_owned();
    let args = ["serve", "--listen", &listen, "--data-dir", &data].map(str::to_owned);
    let mut process = Process::start("serve again", &args)?;
    process.wait_ready()?;
    let (_, out, _) = run_cli(&["pin", "ls", "-o", "json", "--addr", &url])?;
    let list: Value = serde_json::from_str(&out)?;
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1), "{out}");
    assert!(list["data"][0]["ttl_left_ms"].as_u64().is_some_and(|left| left > 3_500_000), "{out}");
    Ok(())
}
