//! The effective configuration, as the console shows it: what this gateway goes by, and what the log says of the caller.
//!
//! Secrets are no part of it: of keys it says how many there are, of an identity that there is one.

use mainstay_state::{Limits, Machine};
use mainstay_types::{Quota, TenantId};
use serde_json::{Value, json};

use super::App;
use crate::config::GatewayConfig;

/// What a gateway was told at its start.
pub(super) fn of_gateway(config: &GatewayConfig) -> Value {
    json!({
        "listen": config.listen.to_string(),
        "control": config.control,
        "region": config.region.as_str(),
        "region_penalty_ms": config.region_penalty_ms,
        "transfer": config.transfer,
        "lifecycle": config.lifecycle,
        "policy": config.policy.name(),
        "pins": config.pins,
        "recompute": config.recompute.name(),
        "aliases": config.aliases.pairs().collect::<Vec<_>>(),
        "any_model": config.aliases.takes_any(),
        "media": config.media.name(),
        "websocket": config.websocket,
        "console": config.console,
        "allowed_hosts": config.hosts,
        "requests_max": config.requests_max,
        "prompt_memory_bytes": config.prompt_memory.bytes(),
        "tls_to_members_and_workers": config.identity.is_some(),
        "configured_keys": config.keys.len(),
    })
}

/// That, the models, the cluster's limits and the caller's quota.
pub(super) fn effective(app: &App, tenant: &TenantId) -> Value {
    let models: Vec<Value> = app
        .workers
        .model_names()
        .iter()
        .filter_map(|name| app.workers.model(name))
        .map(|card| {
            json!({
                "name": card.name, "revision": card.revision, "block_tokens": card.block_tokens,
                "context_tokens_max": card.context_tokens_max, "device": card.device,
                "takes_guided": card.takes_guided,
            })
        })
        .collect();
    let (limits, version, asks_for_keys) =
        app.replica.read(|m| (*m.limits(), m.version(), m.asks_for_keys()));
    json!({
        "object": "console.config",
        "gateway": app.console.settings,
        "program_version": env!("CARGO_PKG_VERSION"),
        "cluster": {"version": version, "asks_for_keys": asks_for_keys, "limits": limits_json(&limits)},
        "tenant": app.replica.read(|m| tenant_json(m, tenant)),
        "models": models,
    })
}

fn tenant_json(machine: &Machine, tenant: &TenantId) -> Value {
    let known = machine.tenant(tenant);
    let quota = known.map(|t| t.quota).unwrap_or_default();
    let Quota { in_flight_max, requests_per_minute, tokens_per_minute, pinned_blocks_max } = quota;
    json!({
        "name": tenant.as_str(),
        "in_the_log": known.is_some(),
        "pinned_blocks": machine.tenant_pinned_blocks(tenant),
        "quota": {
            "in_flight_max": in_flight_max, "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute, "pinned_blocks_max": pinned_blocks_max,
        },
    })
}

fn limits_json(limits: &Limits) -> Value {
    json!({
        "workers_max": limits.workers_max,
        "pins_max": limits.pins_max,
        "pins_per_tenant_max": limits.pins_per_tenant_max,
        "pin_blocks_max": limits.pin_blocks_max,
        "pinned_blocks_max": limits.pinned_blocks_max,
        "pinned_blocks_per_tenant_max": limits.pinned_blocks_per_tenant_max,
        "kept_token_bytes_max": limits.kept_token_bytes_max,
        "ttl_ms_max": limits.ttl_ms_max,
        "index_blocks_max": limits.index_blocks_max,
        "tenants_max": limits.tenants_max,
        "keys_max": limits.keys_max,
        "response_bytes_max": limits.response_bytes_max,
    })
}
