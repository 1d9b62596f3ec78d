//! The file as a JSON Schema, for editors and for whoever writes files by program.

use serde_json::{Map, Value, json};

use super::keys::{Key, Kind};
use super::{ROLES, keys_of};

fn of_key(key: &Key) -> Value {
    // What a flag takes as text may be written as text.
    let kind = match key.kind {
        Kind::Boolean => json!("boolean"),
        Kind::Integer => json!(["integer", "string"]),
        Kind::Number => json!(["number", "string"]),
        Kind::Text => json!(["string", "array"]),
    };
    let mut schema = json!({"type": kind, "description": key.help});
    if !key.choices.is_empty() {
        schema["type"] = json!("string");
        schema["enum"] = json!(key.choices);
    }
    if let Some(default) = &key.default {
        schema["default"] = match key.kind {
            Kind::Boolean => json!(default == "true"),
            Kind::Integer => default.parse::<u64>().map_or_else(|_| json!(default), |n| json!(n)),
            Kind::Number | Kind::Text => json!(default),
        };
    }
    schema
}

fn section(about: &str, keys: Map<String, Value>) -> Value {
    json!({
        "type": "object", "description": about, "additionalProperties": false, "properties": keys,
    })
}

/// The whole file.
pub(crate) fn schema() -> Value {
    let mut sections = Map::new();
    for role in ROLES {
        let keys = keys_of(role).iter().map(|key| (key.name.clone(), of_key(key))).collect();
        sections.insert(role.to_owned(), section(&format!("flags of `mainstay {role}`"), keys));
    }
    let others = json!({
        "keys": {"type": "array", "description": "API keys and their tenants; without any, none is asked for",
            "items": {"type": "object", "additionalProperties": false, "required": ["key", "tenant"],
                "properties": {"key": {"type": "string"}, "tenant": {"type": "string"}}}},
        "pins": {"type": "object", "additionalProperties": false, "properties": {
            "recompute": {"enum": choices(mainstay_gateway::Recompute::ALL.iter().map(|c| c.name())),
                "description": "which pins keep their tokens where a request does not say"}}},
        "models": {"type": "object", "additionalProperties": false, "properties": {
            "aliases": {"type": "object", "additionalProperties": {"type": "string"},
                "description": "other names of models; one `*` stands for any text"},
            "media": {"enum": choices(mainstay_gateway::Media::ALL.iter().map(|c| c.name())),
                "description": "what becomes of content that is not text"}}},
        "responses": {"type": "object", "additionalProperties": false, "properties": {
            "websocket": {"type": "boolean", "default": true,
                "description": "whether the Responses API is served over WebSocket, too"}}},
        "console": {"type": "object", "additionalProperties": false, "properties": {
            "enabled": {"type": "boolean", "default": true,
                "description": "whether the gateway serves the console and what it shows"}}},
        "log": {"type": "object", "additionalProperties": false, "properties": {
            "filter": {"type": "string", "default": "warn,openraft=error,openraft::core::heartbeat=off",
                "description": "what is logged, such as `info` or `warn,mainstay_gateway=debug`; read anew at SIGHUP"},
            "format": {"enum": crate::logging::Format::NAMES, "default": "text",
                "description": "lines of text or of JSON; read anew at SIGHUP"}}},
        "engine": {"type": "object", "description": "handed to the engine as JSON, beside what flags set"},
    });
    if let Value::Object(others) = others {
        sections.extend(others);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Mainstay's configuration file", "type": "object",
        "additionalProperties": false, "properties": sections,
    })
}

fn choices<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names.collect()
}
