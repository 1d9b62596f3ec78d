//! What an operator types: metrics of every role, the doctor of a live cluster, settings, a bundle, answers as JSON.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Process, free_port, run_cli};
use serde_json::{Value, json};

use crate::user;

/// A member, a gateway and a worker on the simulated engine, all of them with metrics.
struct Seen {
    control: String,
    url: String,
    control_metrics: String,
    worker_metrics: String,
    dir: tempfile::TempDir,
    _processes: Vec<Process>,
}

fn start(name: &str, args: &[&str]) -> Result<Process> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let mut process = Process::start(name, &args)?;
    process.wait_ready()?;
    Ok(process)
}

fn cluster() -> Result<Seen> {
    let dir = tempfile::tempdir()?;
    let [control, http, control_metrics, worker_metrics] =
        [(); 4].map(|()| format!("127.0.0.1:{}", free_port()));
    let data = dir.path().join("data").display().to_string();
    // The gateway's settings come from a file and the environment's place is tried by other tests.
    let config = dir.path().join("mainstay.toml");
    let text = format!("[gateway]\ncontrol = [\"{control}\"]\nlisten = \"{http}\"\n");
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let member = [
        "control",
        "--listen",
        &control,
        "--data-dir",
        &data,
        "--metrics-listen",
        &control_metrics,
    ];
    let worker = [
        "worker",
        "--control",
        &control,
        "--engine",
        "sim",
        "--name",
        "w1",
        "--metrics-listen",
        &worker_metrics,
    ];
    let processes = vec![
        start("control", &member)?,
        start("worker", &worker)?,
        start("gateway", &["gateway", "--config", &config])?,
    ];
    let url = format!("http://{http}");
    Ok(Seen { control, url, control_metrics, worker_metrics, dir, _processes: processes })
}

/// A GET over a connection of its own: status line and body.
fn get(address: &str, path: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a response has a head")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// Names of metrics in Prometheus' text, and whether all of them have a help text.
fn names(text: &str) -> Result<BTreeSet<String>> {
    let of = |mark: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(mark));
        lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    };
    let (typed, helped) = (of("# TYPE "), of("# HELP "));
    let silent: Vec<_> = typed.difference(&helped).collect();
    ensure!(silent.is_empty(), "no help text, so not in the list: {silent:?}");
    Ok(typed)
}

#[tokio::test]
async fn every_role_serves_metrics_that_are_in_the_list() -> Result<()> {
    let seen = cluster()?;
    let client = Client::new(&seen.url);
    let mut body = json!({"model": "demo", "stream": true, "max_tokens": 8, "messages": [user("Hello there")]});
    for _ in 0..2 {
        client.post("/v1/chat/completions", &body).await?;
    }
    body["stream"] = json!(false);
    client.post("/v1/chat/completions", &body).await?;
    // Figures of the engine are taken once a second.
    let until = Instant::now() + Duration::from_secs(20);
    let gateway = loop {
        let text = client.get("/metrics").await?.body.as_str().unwrap_or_default().to_owned();
        let worker = get(&seen.worker_metrics, "/metrics")?.1;
        if worker.contains("mainstay_worker_engine_blocks_capacity")
            && text.contains("_per_second_bucket")
        {
            break text;
        }
        ensure!(Instant::now() < until, "{worker}\n{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let gateway = names(&gateway)?;
    for name in
        ["requests_total", "placed_blocks_total", "ttft_seconds", "output_tokens_per_second"]
    {
        ensure!(gateway.contains(&format!("mainstay_gateway_{name}")), "{name}: {gateway:?}");
    }
    let (status, text) = get(&seen.worker_metrics, "/metrics")?;
    ensure!(status.contains("200"), "{status}");
    ensure!(names(&text)?.contains("mainstay_worker_requests_total"), "{text}");
    ensure!(text.contains("role=\"worker\""), "{text}");
    let (_, text) = get(&seen.control_metrics, "/metrics")?;
    ensure!(names(&text)?.contains("mainstay_control_leader"), "{text}");
    for address in [&seen.worker_metrics, &seen.control_metrics] {
        for path in ["/livez", "/readyz"] {
            ensure!(get(address, path)?.0.contains("200"), "{address}{path}");
        }
    }
    Ok(())
}

fn json_of(args: &[&str]) -> Result<Value> {
    let (code, out, err) = run_cli(&[args, &["-o", "json"]].concat())?;
    ensure!(code == 0, "{args:?}: {code} {err}");
    serde_json::from_str(&out).with_context(|| format!("{args:?} printed {out}"))
}

/// The type of a value in a word.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// An answer must have these members, of one of these kinds each. Of a list, each item; there must be one.
fn check_shape(name: &str, answer: &Value, shape: &[(&str, &[&str])]) -> Result<()> {
    let items = match answer {
        Value::Array(items) => items.clone(),
        one => vec![one.clone()],
    };
    ensure!(!items.is_empty(), "{name} answered nothing");
    for item in items {
        for (member, kinds) in shape {
            let found = kind(&item[*member]);
            ensure!(item.get(*member).is_some(), "{name} has no {member}: {item}");
            ensure!(kinds.contains(&found), "{name}.{member} is {found}: {item}");
        }
    }
    Ok(())
}

/// The shapes of what is told of sessions and of blocks.
async fn sessions_and_blocks(client: &Client, addr: [&str; 2]) -> Result<()> {
    let at = |words: &[&str]| json_of(&[words, &addr].concat());
    let (number, text) = (&["number"][..], &["text"][..]);
    let body = json!({"model": "demo", "max_tokens": 4, "prompt_cache_key": "s-1", "messages": [user(&crate::filler(2, 20))]});
    client.post("/v1/chat/completions", &body).await?;
    let session: [(&str, &[&str]); 7] = [
        ("key", text),
        ("state", text),
        ("waits_for", &["list"]),
        ("parent", &["text", "null"]),
        ("turns", number),
        ("context_tokens", number),
        ("last_seen_ms_ago", number),
    ];
    check_shape("session ls", &at(&["session", "ls"])?["data"], &session)?;
    check_shape("session show", &at(&["session", "show", "s-1"])?, &session)?;
    let found = at(&["block", "find", "--session", "s-1"])?;
    let shape: [(&str, &[&str]); 6] = [
        ("hash", text),
        ("blocks", number),
        ("reach", number),
        ("class", text),
        ("holders", &["list"]),
        ("pins", &["list"]),
    ];
    check_shape("block find --session", &found, &shape)?;
    let hash = found["hash"].as_str().unwrap_or_default();
    check_shape("block find --hash", &at(&["block", "find", "--hash", hash])?, &shape)?;
    check_shape("session end", &at(&["session", "end", "s-1"])?, &session)?;
    let forgotten = at(&["session", "reset", "s-1"])?;
    check_shape("session reset", &forgotten, &[("key", text), ("pins_released", number)])?;
    Ok(())
}

#[tokio::test]
async fn what_is_read_has_the_shape_that_programs_rely_on() -> Result<()> {
    let seen = cluster()?;
    let client = Client::new(&seen.url);
    client.chat(&json!([user("Hello there")]), 8).await?;
    let addr = ["--addr", seen.url.as_str()];
    let control = ["--control", seen.control.as_str()];
    let at = |words: &[&str], place: [&str; 2]| json_of(&[words, &place].concat());
    let (number, text) = (&["number"][..], &["text"][..]);
    let member: [(&str, &[&str]); 7] = [
        ("id", number),
        ("address", text),
        ("role", text),
        ("last_log_index", number),
        ("applied_index", number),
        ("lag", number),
        ("reachable", &["boolean"]),
    ];
    check_shape("members", &at(&["control", "members"], control)?, &member)?;
    let status = at(&["status"], addr)?;
    check_shape(
        "status",
        &status,
        &[("leader", number), ("term", number), ("pins_live", number), ("workers", &["list"])],
    )?;
    check_shape("status.members", &status["members"], &member)?;
    let worker: [(&str, &[&str]); 5] =
        [("name", text), ("state", text), ("epoch", number), ("blocks", number), ("address", text)];
    check_shape("status.workers", &status["workers"], &worker)?;
    let explained = at(&["request", "explain", "last"], addr)?;
    check_shape(
        "explain",
        &explained,
        &[("request", text), ("candidates", &["list"]), ("overlap_blocks", number)],
    )?;
    let made = at(&["pin", "add", "--system", &crate::filler(1, 20)], addr)?;
    let pin: [(&str, &[&str]); 6] = [
        ("id", text),
        ("state", text),
        ("blocks", number),
        ("ttl_left_ms", number),
        ("holders", &["list"]),
        ("scope", text),
    ];
    check_shape("pin add", &made, &pin)?;
    check_shape("pin ls", &at(&["pin", "ls"], addr)?["data"], &pin)?;
    check_shape(
        "pin show",
        &at(&["pin", "show", made["id"].as_str().unwrap_or_default()], addr)?,
        &pin,
    )?;
    sessions_and_blocks(&client, addr).await?;
    at(&["tenant", "add", "acme", "--in-flight", "3"], control)?;
    let tenant: [(&str, &[&str]); 4] = [
        ("name", text),
        ("keys", number),
        ("in_flight_max", &["number", "null"]),
        ("pinned_blocks", number),
    ];
    check_shape("tenant ls", &at(&["tenant", "ls"], control)?, &tenant)?;
    let key = at(&["tenant", "key", "add", "acme", "--name", "k1"], control)?;
    check_shape("tenant key add", &key, &[("tenant", text), ("name", text), ("key", text)])?;
    check_shape(
        "tenant key ls",
        &at(&["tenant", "key", "ls"], control)?,
        &[("tenant", text), ("name", text), ("created_ms", number)],
    )?;
    let list = json_of(&["doctor", "--list"])?;
    check_shape(
        "doctor --list",
        &list,
        &[("id", text), ("group", text), ("about", text), ("page", text)],
    )?;
    let config = json_of(&["config", "show", "worker"])?;
    check_shape(
        "config show",
        &config,
        &[("key", text), ("value", &["text", "null"]), ("origin", text)],
    )?;
    Ok(())
}

#[tokio::test]
async fn the_doctor_finds_a_live_cluster_well_and_a_dead_one_ill() -> Result<()> {
    let seen = cluster()?;
    let words = ["doctor", "--control", &seen.control, "--addr", &seen.url];
    let found = json_of(&words)?;
    let shape: [(&str, &[&str]); 6] = [
        ("id", &["text"]),
        ("group", &["text"]),
        ("level", &["text"]),
        ("what", &["text"]),
        ("next", &["text", "null"]),
        ("page", &["text"]),
    ];
    check_shape("doctor", &found, &shape)?;
    let level = |found: &Value, id: &str| -> Option<String> {
        let one = found.as_array()?.iter().find(|finding| finding["id"] == id)?;
        one["level"].as_str().map(str::to_owned)
    };
    for id in ["members", "quorum", "clock-skew", "versions", "lag", "workers", "drift", "gateway"]
    {
        ensure!(level(&found, id).as_deref() == Some("ok"), "{id}: {found:#}");
    }
    // The gateway's port is no member's, and nobody is at the third.
    let gateway = seen.url.trim_start_matches("http://");
    let ill = format!("{gateway},127.0.0.1:{},no-such-host.invalid:7400", free_port());
    let (code, out, err) = run_cli(&["doctor", "--control", &ill, "-o", "json"])?;
    let found: Value = serde_json::from_str(&out)?;
    ensure!(code == 1 && err.contains("checks failed"), "{code} {err}");
    ensure!(level(&found, "members-speak").as_deref() == Some("failure"), "{found:#}");
    ensure!(out.contains("does not resolve") && out.contains("nobody answers"), "{out}");
    let (code, out, _) = run_cli(&["doctor", "--addr", "http://127.0.0.1:9", "--only", "gateway"])?;
    ensure!(code == 1 && out.contains("FAIL") && out.contains("type: "), "{out}");
    // The role's own port is taken by the cluster that runs.
    let (code, out, _) = run_cli(&[
        "doctor",
        "control",
        "--here",
        "--only",
        "port",
        "--",
        "--listen",
        &seen.control,
    ])?;
    ensure!(code == 1 && out.contains("somebody listens"), "{out}");
    Ok(())
}

#[tokio::test]
async fn a_bundle_holds_no_secret() -> Result<()> {
    let seen = cluster()?;
    let secret = "sk-this-must-not-be-in-it";
    let config = seen.dir.path().join("keys.toml");
    std::fs::write(
        &config,
        format!(
            "[[keys]]\nkey = \"{secret}\"\ntenant = \"a\"\n[gateway]\njoin = \"msj_{secret}\"\n"
        ),
    )?;
    let out = seen.dir.path().join("bundle");
    let (out_text, config) = (out.display().to_string(), config.display().to_string());
    let args = [
        "bundle",
        "--out",
        &out_text,
        "--role",
        "gateway",
        "--addr",
        &seen.url,
        "--api-key",
        secret,
        "--control",
        &seen.control,
        "--",
        "--config",
        &config,
    ];
    let (code, _, err) = run_cli(&args)?;
    ensure!(code == 0, "{err}");
    let mut files = 0;
    for entry in std::fs::read_dir(&out)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        ensure!(!text.contains("this-must-not"), "{} holds a secret", path.display());
        ensure!(!text.is_empty(), "{} is empty", path.display());
        files += 1;
    }
    ensure!(files == 6, "{files} files");
    let manifest: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("manifest.json"))?)?;
    let missing =
        manifest["files"].as_array().context("files")?.iter().find(|f| f.get("missing").is_some());
    ensure!(missing.is_none(), "{manifest:#}");
    let (code, _, err) = run_cli(&args)?;
    ensure!(code == 1 && err.contains("--out"), "it must not write over one: {err}");
    Ok(())
}

#[tokio::test]
async fn settings_are_told_with_their_origin_and_a_wrong_word_ends_the_start() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("mainstay.toml");
    let file = path.display().to_string();
    std::fs::write(
        &path,
        "[gateway]\ncontrol = \"a:1\"\nregion = \"eu\"\n[engine]\nthreads = 3\n",
    )?;
    let shown =
        json_of(&["config", "show", "gateway", "--", "--config", &file, "--policy", "random"]);
    // The format stands before the role's own flags.
    ensure!(shown.is_err(), "flags behind -- are the role's");
    let (code, out, err) = run_cli(&[
        "config", "show", "gateway", "-o", "json", "--", "--config", &file, "--policy", "random",
    ])?;
    ensure!(code == 0, "{err}");
    let shown: Value = serde_json::from_str(&out)?;
    let origin = |key: &str| -> Option<String> {
        let line = shown.as_array()?.iter().find(|line| line["key"] == key)?;
        line["origin"].as_str().map(str::to_owned)
    };
    ensure!(origin("gateway.region").as_deref() == Some("file"), "{shown:#}");
    ensure!(origin("gateway.policy").as_deref() == Some("flag"), "{shown:#}");
    ensure!(origin("gateway.listen").as_deref() == Some("default"), "{shown:#}");
    ensure!(origin("engine.threads").as_deref() == Some("file"), "{shown:#}");
    std::fs::write(&path, "[gateway]\ncontrol = \"a:1\"\nregoin = \"eu\"\n")?;
    let (code, _, err) = run_cli(&["gateway", "--config", &file])?;
    ensure!(
        code == 1 && err.contains("did you mean region?") && err.contains(":3:"),
        "{code} {err}"
    );
    let (code, _, err) = run_cli(&["config", "check", &file])?;
    ensure!(code == 1 && err.contains("region"), "{code} {err}");
    std::fs::write(&path, "[gateway]\ncontrol = \"a:1\"\nlisten = \"nowhere\"\n")?;
    let (code, _, err) = run_cli(&["gateway", "--config", &file])?;
    ensure!(code == 2 && err.contains("--listen is from") && err.contains(":3"), "{code} {err}");
    Ok(())
}

#[test]
fn logs_follow_the_file_at_a_hangup_and_a_wrong_one_changes_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (file, data) = (dir.path().join("mainstay.toml"), dir.path().join("data"));
    let write = |log: &str| {
        let listen = format!("[control]\nlisten = \"127.0.0.1:{}\"\n", free_port());
        std::fs::write(&file, format!("{listen}data_dir = \"{}\"\n{log}", data.display()))
    };
    write("")?;
    let member = start("control", &["control", "--config", &file.display().to_string()])?;
    let objects = || {
        let output = member.output();
        let lines = output.lines().filter_map(|line| line.strip_prefix("! "));
        lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>()
    };
    let wait = |what: &str, seen: &dyn Fn() -> bool| {
        let asked = Instant::now();
        while !seen() {
            ensure!(asked.elapsed() < Duration::from_secs(20), "{what}:\n{}", member.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    ensure!(objects().is_empty(), "text unless told otherwise: {}", member.output());
    write("[log]\nfilter = \"warn,openraft=debug\"\nformat = \"json\"\n")?;
    member.signal("HUP")?;
    // A member's clock ticks whatever happens.
    wait("the log is not looked into", &|| objects().iter().any(|line| line["level"] == "DEBUG"))?;
    write("[log]\nfilter = \"loud=very\"\n")?;
    member.signal("HUP")?;
    let refused = |line: &Value| {
        line["level"] == "ERROR" && line["error"].as_str().is_some_and(|e| e.contains("log.filter"))
    };
    wait("the fault is not told", &|| objects().iter().any(refused))?;
    write("[log]\nfilter = \"error\"\n")?;
    member.signal("HUP")?;
    let quiet = || {
        let lines = member.output().lines().count();
        std::thread::sleep(Duration::from_secs(1));
        member.output().lines().count() == lines
    };
    wait("it does not become quiet", &quiet)
}
