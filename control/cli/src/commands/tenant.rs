//! `mainstay tenant`: tenants, their quotas and their keys.
//!
//! A key is made here and shown once; the cluster gets its hash and never sees it until somebody uses it.

use clap::Subcommand;
use mainstay_identity::{KEY_PREFIX, new_name, new_secret, sha256};
use mainstay_proto::v1;
use serde_json::{Value, json};

use crate::commands::admin::AdminArgs;
use crate::output::{Failure, Format, cell, print, print_json, table};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Subcommand)]
enum TenantCommand {
    /// Make a tenant, or give one another quota
    Add {
        name: String,
        #[command(flatten)]
        quota: QuotaArgs,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// List tenants
    Ls {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Forget a tenant and its keys
    Rm {
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// A tenant's keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key; it is shown this once
    Add {
        tenant: String,
        /// Its public name, to take it back by [default: a random one]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// List keys, of one tenant or of all
    Ls {
        tenant: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Take a key back
    Rm {
        tenant: String,
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// What a tenant may use; each gateway counts for itself. What is left out is not limited.
#[derive(clap::Args)]
struct QuotaArgs {
    /// Requests that one gateway works on at a time
    #[arg(long)]
    in_flight: Option<u32>,
    /// Requests that one gateway takes in a minute
    #[arg(long)]
    requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers that pass one gateway in a minute
    #[arg(long)]
    tokens_per_minute: Option<u64>,
    /// Different blocks that live pins may name
    #[arg(long)]
    pinned_blocks: Option<u64>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        TenantCommand::Add { name, quota, admin } => {
            let quota = v1::Quota {
                in_flight_max: quota.in_flight,
                requests_per_minute: quota.requests_per_minute,
                tokens_per_minute: quota.tokens_per_minute,
                pinned_blocks_max: quota.pinned_blocks,
            };
            let request = v1::PutTenant { name: name.clone(), quota: Some(quota) };
            let put =
                admin.ask(async |mut c, pass| c.put_tenant(pass.request(request.clone())).await);
            let reply = put.await?;
            show(&tenants(&reply.tenants, Some(&name)), admin.output);
        }
        TenantCommand::Ls { admin } => {
            let list = admin.ask(async |mut c, pass| {
                c.list_tenants(pass.request(v1::ListTenantsRequest {})).await
            });
            show(&tenants(&list.await?.tenants, None), admin.output);
        }
        TenantCommand::Rm { name, admin } => {
            let request = v1::RemoveTenant { name: name.clone() };
            let remove =
                admin.ask(async |mut c, pass| c.remove_tenant(pass.request(request.clone())).await);
            gone(remove.await?.changed, &format!("tenant {name}"), "mainstay tenant ls", &admin)?;
        }
        TenantCommand::Key { command } => return run_key(command).await,
    }
    Ok(())
}

async fn run_key(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Add { tenant, name, admin } => {
            let (secret, key) = (new_secret(KEY_PREFIX)?, name.map_or_else(new_name, Ok)?);
            let hash = sha256(secret.as_bytes()).to_vec().into();
            let request = v1::PutKey { tenant: tenant.clone(), key: key.clone(), hash };
            let put = admin.ask(async |mut c, pass| c.put_key(pass.request(request.clone())).await);
            put.await?;
            match admin.output {
                Format::Json => {
                    print_json(&json!({"tenant": tenant, "name": key, "key": secret}));
                }
                Format::Table => print(&format!(
                    "{secret}\n\nkey {key} of {tenant}; it is shown this once and kept nowhere"
                )),
            }
        }
        KeyCommand::Ls { tenant, admin } => {
            let list = admin.ask(async |mut c, pass| {
                c.list_tenants(pass.request(v1::ListTenantsRequest {})).await
            });
            let all = list.await?.tenants;
            if let Some(name) = &tenant
                && !all.iter().any(|t| t.name == *name)
            {
                return Err(missing(&format!("tenant {name}"), "mainstay tenant ls").into());
            }
            show_keys(&all, tenant.as_deref(), admin.output);
        }
        KeyCommand::Rm { tenant, name, admin } => {
            let request = v1::RemoveKey { tenant: tenant.clone(), key: name.clone() };
            let remove =
                admin.ask(async |mut c, pass| c.remove_key(pass.request(request.clone())).await);
            let what = format!("key {name} of {tenant}");
            gone(remove.await?.changed, &what, "mainstay tenant key ls", &admin)?;
        }
    }
    Ok(())
}

fn missing(what: &str, list: &str) -> Failure {
    Failure { message: format!("no {what}; see {list}"), exit: 3 }
}

/// Says that something was removed, or that it was not there.
pub(crate) fn gone(changed: bool, what: &str, list: &str, admin: &AdminArgs) -> anyhow::Result<()> {
    if !changed {
        return Err(missing(what, list).into());
    }
    match admin.output {
        Format::Json => print_json(&json!({"removed": what})),
        Format::Table => print(&format!("{what} is gone")),
    }
    Ok(())
}

fn tenants(all: &[v1::Tenant], only: Option<&str>) -> Value {
    let one = |t: &v1::Tenant| {
        let quota = t.quota.unwrap_or_default();
        json!({
            "name": t.name, "keys": t.keys.len(), "in_flight_max": quota.in_flight_max,
            "requests_per_minute": quota.requests_per_minute,
            "tokens_per_minute": quota.tokens_per_minute,
            "pinned_blocks_max": quota.pinned_blocks_max, "pinned_blocks": t.pinned_blocks,
            "created_ms": t.created_ms,
        })
    };
    all.iter().filter(|t| only.is_none_or(|name| t.name == name)).map(one).collect()
}

fn rows(list: &Value, keys: &[&str]) -> Vec<Vec<String>> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().map(|item| keys.iter().map(|key| cell(item, key)).collect()).collect()
}

fn show(list: &Value, output: Format) {
    let keys = [
        "name",
        "keys",
        "in_flight_max",
        "requests_per_minute",
        "tokens_per_minute",
        "pinned_blocks",
        "pinned_blocks_max",
    ];
    let heads =
        ["TENANT", "KEYS", "IN FLIGHT", "REQUESTS/MIN", "TOKENS/MIN", "PINNED BLOCKS", "OF"];
    match output {
        Format::Json => print_json(list),
        Format::Table => print(&table(&heads, &rows(list, &keys))),
    }
}

fn show_keys(all: &[v1::Tenant], only: Option<&str>, output: Format) {
    let of = |t: &v1::Tenant| -> Vec<Value> {
        let one = |k: &v1::TenantKey| json!({"tenant": t.name, "name": k.key, "created_ms": k.created_ms});
        t.keys.iter().map(one).collect()
    };
    let list: Value =
        all.iter().filter(|t| only.is_none_or(|name| t.name == name)).flat_map(of).collect();
    match output {
        Format::Json => print_json(&list),
        Format::Table => print(&table(&["TENANT", "KEY"], &rows(&list, &["tenant", "name"]))),
    }
}
