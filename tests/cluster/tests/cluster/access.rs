//! Who gets in: nodes by certificates and join tokens, operators by the admin token, tenants by keys and quotas.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Process, free_port, run_cli};
use serde_json::{Value, json};

use crate::user;

/// A change must be known everywhere by then.
const AT_ONCE: Duration = Duration::from_secs(1);

/// One secured member that signs, its gateway and its worker, and the authority's folder.
struct Secured {
    control: String,
    url: String,
    dir: tempfile::TempDir,
    _processes: Vec<Process>,
}

fn cli(args: &[&str]) -> Result<String> {
    let (code, out, err) = run_cli(args)?;
    ensure!(code == 0, "{args:?}: {code} {err}");
    Ok(out)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Secured {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An admin's command with JSON as its answer, by the admin token.
    fn admin(&self, args: &[&str]) -> Result<Value> {
        let (code, out, err) = self.try_admin(args)?;
        ensure!(code == 0, "{args:?}: {code} {err}");
        serde_json::from_str(&out).with_context(|| out)
    }

    fn try_admin(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let token = text(&self.path("ca").join("admin-token"));
        let all = ["--control", &self.control, "--admin-token-file", &token, "-o", "json"];
        run_cli(&[args, &all].concat())
    }

    fn token(&self, extra: &[&str]) -> Result<String> {
        let made = self.admin(&[&["control", "token", "add"], extra].concat())?;
        Ok(made["token"].as_str().context("a token")?.to_owned())
    }

    /// The command line of a node that joins into that folder.
    fn joining(&self, role: &str, name: &str, token: &str, folder: &str) -> Vec<String> {
        let listen = format!("127.0.0.1:{}", free_port());
        let folder = text(&self.path(folder));
        let args = [
            role,
            "--control",
            &self.control,
            "--listen",
            &listen,
            "--name",
            name,
            "--join",
            token,
            "--identity",
            &folder,
        ];
        args.map(str::to_owned).into()
    }

    /// A node whose joining must fail: its exit code and what it said.
    fn refused(&self, role: &str, name: &str, token: &str) -> Result<(i32, String)> {
        let args = self.joining(role, name, token, &format!("refused-{name}"));
        let mut process = Process::start(name, &args)?;
        let code = process.wait_exit(Duration::from_secs(60))?;
        std::thread::sleep(Duration::from_millis(100));
        ensure!(!self.path(&format!("refused-{name}")).join("cert.pem").exists(), "it was let in");
        Ok((code, process.output()))
    }

    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let control = format!("127.0.0.1:{}", free_port());
        let (ca, m1) = (text(&dir.path().join("ca")), text(&dir.path().join("m1")));
        cli(&["control", "init", "--out", &ca])?;
        cli(&[
            "control", "cert", "--ca", &ca, "--role", "control", "--name", "m1", "--sign", "--out",
            &m1,
        ])?;
        let data = text(&dir.path().join("data"));
        let args = ["control", "--listen", &control, "--data-dir", &data, "--identity", &m1];
        let mut member = Process::start("m1", &args.map(str::to_owned))?;
        member.wait_ready()?;
        let mut this = Self { control, url: String::new(), dir, _processes: vec![member] };
        let config = this.path("mainstay.toml");
        std::fs::write(&config, "[engine]\nblocks = 400\nthreads = 1\n")?;
        let token = this.token(&["--role", "worker", "--name", "w1"])?;
        let mut args = this.joining("worker", "w1", &token, "w1");
        args.extend(["--config".to_owned(), text(&config)]);
        let mut worker = Process::start("w1", &args)?;
        let token = this.token(&["--role", "gateway", "--ttl", "10m"])?;
        let args = this.joining("gateway", "g1", &token, "g1");
        this.url = format!("http://{}", args[4]);
        let mut gateway = Process::start("g1", &args)?;
        worker.wait_ready()?;
        gateway.wait_ready()?;
        this._processes.extend([worker, gateway]);
        Ok(this)
    }
}

fn question() -> Value {
    json!({"model": "demo", "max_tokens": 4, "messages": [user("Hello!")]})
}

async fn ask(client: &Client) -> Result<u16> {
    Ok(client.post("/v1/chat/completions", &question()).await?.status)
}

/// Asks until the answer has that status; how long that took.
async fn until(client: &Client, status: u16) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let got = ask(client).await?;
        if got == status {
            return Ok(begun.elapsed());
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "{got}, never {status}");
    }
}

#[tokio::test]
async fn tenants_get_in_by_their_keys_and_as_far_as_their_quotas() -> Result<()> {
    let cluster = Secured::start()?;
    let open = Client::new(&cluster.url);
    assert_eq!(ask(&open).await?, 200, "without tenants no key is asked for");

    cluster.admin(&["tenant", "add", "acme"])?;
    let made = cluster.admin(&["tenant", "key", "add", "acme", "--name", "laptop"])?;
    let key = made["key"].as_str().context("a key")?.to_owned();
    ensure!(key.starts_with("msk_") && key.len() >= 4 + 32, "{key}");
    let acme = Client::with_key(&cluster.url, &key)?;
    let took = until(&acme, 200).await?;
    assert!(took < AT_ONCE, "the key works after {took:?}");
    until(&open, 401).await?;

    // A wrong key, in the shapes of the three APIs.
    let wrong = Client::with_key(&cluster.url, "msk_wrong")?;
    for (path, kind) in [
        ("/v1/chat/completions", "/error/code"),
        ("/v1/responses", "/error/code"),
        ("/v1/messages", "/error/type"),
    ] {
        let reply = wrong.post(path, &question()).await?;
        assert_eq!(reply.status, 401, "{path}: {}", reply.body);
        let kind = reply.body.pointer(kind).and_then(Value::as_str).unwrap_or_default();
        assert!(["invalid_api_key", "authentication_error"].contains(&kind), "{}", reply.body);
    }

    // One more than the quota, which is counted from when it is set.
    cluster.admin(&["tenant", "add", "acme", "--requests-per-minute", "2"])?;
    until(&acme, 429).await?;
    for (path, kind, word) in [
        ("/v1/chat/completions", "/error/code", "rate_limit_exceeded"),
        ("/v1/messages", "/error/type", "rate_limit_error"),
    ] {
        let reply = acme.post(path, &question()).await?;
        assert_eq!((reply.status, reply.body.pointer(kind)), (429, Some(&json!(word))));
        let seconds: u64 = reply.retry_after.context("Retry-After")?.parse()?;
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    cluster.admin(&["tenant", "add", "acme", "--tokens-per-minute", "1"])?;
    until(&acme, 429).await?;
    cluster.admin(&["tenant", "add", "acme", "--pinned-blocks", "1"])?;
    until(&acme, 200).await?;
    let long = json!({"model": "demo", "messages": [user(&crate::filler(1, 20))]});
    let pin = acme.post("/v1/pins", &long).await?;
    let message = pin.body["error"]["message"].as_str().unwrap_or_default();
    assert!(pin.status == 429 && message.contains("pinned blocks of the tenant"), "{}", pin.body);

    let (code, out, _) = cluster.try_admin(&["tenant", "key", "ls", "acme"])?;
    assert!(code == 0 && out.contains("laptop") && !out.contains("msk_"), "{out}");
    let removed = Instant::now();
    cluster.admin(&["tenant", "key", "rm", "acme", "laptop"])?;
    until(&acme, 401).await?;
    assert!(removed.elapsed() < AT_ONCE, "the key is refused after {:?}", removed.elapsed());
    let (code, _, err) = cluster.try_admin(&["tenant", "key", "rm", "acme", "laptop"])?;
    assert!(code == 3 && err.contains("no key laptop"), "{code} {err}");
    cluster.admin(&["tenant", "rm", "acme"])?;
    // Who takes the last tenant away does not let everybody in.
    tokio::time::sleep(AT_ONCE).await;
    assert_eq!((ask(&open).await?, ask(&acme).await?), (401, 401));
    Ok(())
}

#[test]
fn nodes_join_once_by_a_token_of_their_role() -> Result<()> {
    let cluster = Secured::start()?;
    // The tokens of the worker and the gateway are used up.
    let list = cluster.admin(&["control", "token", "ls"])?;
    let used = |role: &str| list.as_array().into_iter().flatten().find(|t| t["role"] == role);
    assert_eq!(used("worker").map(|t| &t["used_by"]), Some(&json!("w1")), "{list}");
    assert_eq!(used("gateway").map(|t| &t["state"]), Some(&json!("used")), "{list}");

    let token = cluster.token(&["--role", "gateway"])?;
    let args = cluster.joining("gateway", "g2", &token, "g2");
    Process::start("g2", &args)?.wait_ready()?;
    // The same command line restarts it: the folder has its identity.
    Process::start("g2", &args)?.wait_ready()?;
    for (role, name, shown, word) in [
        ("gateway", "g3", token.clone(), "was used already, by g2"),
        ("worker", "w3", cluster.token(&["--role", "gateway"])?, "is for a gateway"),
        ("worker", "w4", cluster.token(&["--role", "worker", "--name", "w5"])?, "--name w5"),
        ("gateway", "g4", token.replacen("msj_", "msj_0", 1), "unknown join token"),
        ("gateway", "g5", "nonsense".into(), "no token"),
    ] {
        let (code, output) = cluster.refused(role, name, &shown)?;
        assert!(code != 0 && output.contains(word), "{word}: {code} {output}");
    }
    let short = cluster.token(&["--role", "worker", "--ttl", "1s"])?;
    std::thread::sleep(Duration::from_millis(1_500));
    let (code, output) = cluster.refused("worker", "w6", &short)?;
    assert!(code == 6 && output.contains("has expired"), "{code} {output}");

    // A token shows its cluster's authority: no other cluster gets to see it.
    let mut elsewhere = token.clone();
    let last = if elsewhere.pop() == Some('0') { '1' } else { '0' };
    elsewhere.push(last);
    let (code, output) = cluster.refused("gateway", "g6", &elsewhere)?;
    assert!(code != 0 && output.contains("another authority"), "{code} {output}");

    // A member, too; it knows the admin token then.
    let token = cluster.token(&["--role", "control", "--name", "m2"])?;
    let (listen, folder) = (format!("127.0.0.1:{}", free_port()), text(&cluster.path("m2")));
    let data = text(&cluster.path("data-2"));
    let args = [
        "control",
        "--node-id",
        "2",
        "--listen",
        &listen,
        "--data-dir",
        &data,
        "--join",
        &cluster.control,
        "--token",
        &token,
        "--identity",
        &folder,
    ];
    let mut member = Process::start("m2", &args.map(str::to_owned))?;
    member.wait_ready()?;
    let until = Instant::now() + Duration::from_secs(40);
    loop {
        let list = cluster.admin(&["control", "members", "ls"])?;
        if list.as_array().is_some_and(|l| l.len() == 2 && l.iter().all(|m| m["role"] != "learner"))
        {
            break;
        }
        ensure!(Instant::now() < until, "m2 does not join: {list}\n{}", member.output());
        std::thread::sleep(Duration::from_millis(100));
    }
    let admin_token = text(&cluster.path("ca").join("admin-token"));
    let by = ["--control", &listen, "--admin-token-file", &admin_token];
    cli(&[&["control", "members", "ls"][..], &by].concat())?;
    Ok(())
}

#[test]
fn operators_without_the_right_credential_are_told_why() -> Result<()> {
    let cluster = Secured::start()?;
    let ls = |extra: &[&str]| {
        run_cli(&[&["tenant", "ls", "--control", &cluster.control], extra].concat())
    };
    let right = std::fs::read_to_string(cluster.path("ca").join("admin-token"))?;
    let wrong = cluster.path("wrong-token");
    std::fs::write(&wrong, right.replacen("msa_", "msa_0", 1))?;
    let (code, _, err) = ls(&["--admin-token-file", &text(&wrong)])?;
    assert!(code == 6 && err.contains("the admin token is wrong"), "{code} {err}");
    let (code, _, err) = ls(&["--admin-token", right.trim()])?;
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = ls(&["--admin-token", ""])?;
    assert!(code != 0, "plain text: {err}");

    let ca = text(&cluster.path("ca"));
    let issue = |ca: &str, role: &str, out: &str| {
        cli(&["control", "cert", "--ca", ca, "--role", role, "--name", "ada", "--out", out])
    };
    let (admin, worker, other) =
        (text(&cluster.path("ada")), text(&cluster.path("work")), text(&cluster.path("other")));
    issue(&ca, "admin", &admin)?;
    let (code, _, err) = ls(&["--identity", &admin])?;
    assert_eq!(code, 0, "{err}");
    issue(&ca, "worker", &worker)?;
    let (code, _, err) = ls(&["--identity", &worker])?;
    assert!(code != 0 && err.contains("--role admin"), "{code} {err}");
    cli(&["control", "init", "--out", &other])?;
    let stranger = text(&cluster.path("stranger"));
    issue(&other, "admin", &stranger)?;
    let (code, _, err) = ls(&["--identity", &stranger])?;
    assert!(code == 4 && err.contains("another authority"), "{code} {err}");
    Ok(())
}

#[tokio::test]
async fn serve_speaks_tls_inside_and_takes_its_own_admin_token() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (listen, control) =
        (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let data = text(dir.path());
    let args = ["serve", "--listen", &listen, "--control-listen", &control, "--data-dir", &data];
    let mut process = Process::start("serve", &args.map(str::to_owned))?;
    process.wait_ready()?;
    let token = text(&dir.path().join("admin-token"));
    let (code, _, err) = run_cli(&["tenant", "ls", "--control", &control])?;
    assert!(code != 0, "plain text: {err}");
    let by = ["--control", &control, "--admin-token-file", &token, "-o", "json"];
    cli(&[&["tenant", "add", "acme"][..], &by].concat())?;
    let made: Value =
        serde_json::from_str(&cli(&[&["tenant", "key", "add", "acme"][..], &by].concat())?)?;
    let url = format!("http://{listen}");
    until(&Client::with_key(&url, made["key"].as_str().context("a key")?)?, 200).await?;
    until(&Client::new(&url), 401).await?;
    // Tenants are in the log; the token is of this start.
    let before = std::fs::read_to_string(&token)?;
    process.kill()?;
    let mut process = Process::start("serve", &args.map(str::to_owned))?;
    process.wait_ready()?;
    ensure!(before != std::fs::read_to_string(&token)?, "the former token is still there");
    assert!(cli(&[&["tenant", "key", "ls"][..], &by].concat())?.contains("acme"));
    until(&Client::new(&url), 401).await?;
    Ok(())
}
