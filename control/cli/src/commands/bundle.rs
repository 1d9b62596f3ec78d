//! `mainstay bundle`: what support asks for, in one folder.
//!
//! Only what the other commands print goes in: states, counts, settings with their secrets left out. No API key, token,
//! certificate's key or prompt is read for it. What could not be had is in the manifest with the reason.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::commands::admin::Credentials;
use crate::commands::{addresses, config, doctor};
use crate::http::Target;
use crate::output::{Format, print, print_json};
use crate::settings;

/// The largest file of a bundle; what is longer is cut.
const FILE_BYTES_MAX: usize = 16 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder to make [default: mainstay-bundle-TIME here]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The role whose settings go in
    #[arg(long, value_parser = settings::ROLES, default_value = "serve")]
    role: String,
    /// Members of a running cluster to ask, as HOST:PORT,…
    #[arg(long, env = "MAINSTAY_CONTROL")]
    control: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    target: Target,
    /// The role's own flags, such as --config FILE
    #[arg(last = true, value_name = "FLAG")]
    flags: Vec<OsString>,
}

/// The files as they are gathered.
struct Bundle {
    dir: PathBuf,
    files: Vec<Value>,
}

impl Bundle {
    fn new(dir: PathBuf) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        if dir.exists() {
            bail!("{} exists already; name another folder with --out", dir.display());
        }
        let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
        made.with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { dir, files: Vec::new() })
    }

    /// Writes one file, or the reason why there is none into the manifest.
    fn put(
        &mut self,
        name: &str,
        about: &str,
        content: anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let entry = match content {
            Ok(mut text) => {
                let is_cut = text.len() > FILE_BYTES_MAX;
                if is_cut {
                    let end = (0..=FILE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
                    text.truncate(end.unwrap_or(0));
                }
                let path = self.dir.join(name);
                std::fs::write(&path, &text)
                    .with_context(|| format!("writing {}", path.display()))?;
                json!({"file": name, "about": about, "bytes": text.len(), "cut": is_cut})
            }
            Err(error) => {
                json!({"file": null, "about": about, "missing": crate::output::chain(&error)})
            }
        };
        self.files.push(entry);
        Ok(())
    }
}

fn pretty(value: &Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default())
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/version").unwrap_or_default().trim().to_owned()
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let made_s = unix_s();
    let dir = args.out.clone().unwrap_or_else(|| format!("mainstay-bundle-{made_s}").into());
    let mut bundle = Bundle::new(dir)?;
    let settings = settings::preview(&args.role, &args.flags, std::env::vars_os());
    let shown =
        settings.map(|(resolved, matches)| pretty(&config::shown(&args.role, &resolved, &matches)));
    bundle.put("config.json", "settings and where they are from, secrets left out", shown)?;
    let members = args.control.as_deref().map(addresses).unwrap_or_default();
    let found =
        doctor::findings(Some(&args.role), &args.flags, &members, Some(&args.credentials)).await;
    let found: Value = found.iter().map(crate::doctor::Finding::json).collect();
    bundle.put("doctor.json", "what `mainstay doctor` finds", Ok(pretty(&found)))?;
    let status = args.target.get("/api/v1/status").await.map(|status| pretty(&status));
    bundle.put("status.json", "members, workers and counts, as the gateway tells them", status)?;
    let ready = args.target.get("/readyz").await.map(|ready| pretty(&ready));
    bundle.put("readyz.json", "whether the gateway is ready", ready)?;
    let metrics = args.target.get("/metrics").await;
    let metrics = metrics.map(|text| text.as_str().map_or_else(|| pretty(&text), str::to_owned));
    bundle.put("metrics.txt", "the gateway's metrics", metrics)?;
    finish(&bundle, made_s, args.target.output)
}

fn finish(bundle: &Bundle, made_s: u64, output: Format) -> anyhow::Result<()> {
    let manifest = json!({
        "program": "mainstay", "version": env!("CARGO_PKG_VERSION"), "made_unix_s": made_s,
        "kernel": kernel(), "files": bundle.files,
        "left_out": ["API keys and tokens", "keys of certificates", "prompts and answers", "logs"],
    });
    let path = bundle.dir.join("manifest.json");
    std::fs::write(&path, pretty(&manifest))?;
    let shown: &Path = &bundle.dir;
    match output {
        Format::Json => print_json(&json!({"dir": shown.to_string_lossy(), "manifest": manifest})),
        Format::Table => {
            for file in &bundle.files {
                let about = file["about"].as_str().unwrap_or_default();
                match file["missing"].as_str() {
                    None => {
                        print(&format!("  {:<14}{about}", file["file"].as_str().unwrap_or("-")))
                    }
                    Some(why) => print(&format!("  {:<14}{about}: {why}", "missing")),
                }
            }
            print(&format!("{0}; look into it, then tar czf {0}.tar.gz {0}", shown.display()));
        }
    }
    Ok(())
}
