//! What workers computed outlives them: on their disks over a restart of all, in a store over the end of the whole
//! cluster. What was damaged meanwhile, or belongs to other weights, is computed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Process, binary, free_port, s3};
use serde_json::{Value, json};

use crate::fences::root;
use crate::transfer::{content, first_token};
use crate::{cached, filler, prompt_tokens, user};

/// What a prefix has at least.
const PREFIX_TOKENS: u64 = 4_000;
/// Lines of a text that has some more.
const LINES: u64 = 420;
/// Prefixes that are tried; the quickest counts, on both sides.
const ROUNDS: u64 = 3;
const END: Duration = Duration::from_secs(60);
const KEY_ID: &str = "EXAMPLEKEYOFTESTS";
const SECRET: &str = "the-secret-of-this-test-alone";

/// One member, one gateway and workers with flags of their own.
pub(crate) struct Small {
    workers: Vec<Process>,
    gateway: Process,
    control: Process,
    /// Where the member listens, and the gateway.
    pub(crate) member: String,
    pub(crate) url: String,
    client: Client,
}

pub(crate) fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(ToString::to_string).collect()
}

/// A process with credentials of the store in its environment.
fn with_credentials(name: &str, args: &[String]) -> Result<Process> {
    let program = binary();
    let mut all = vec![
        format!("AWS_ACCESS_KEY_ID={KEY_ID}"),
        format!("AWS_SECRET_ACCESS_KEY={SECRET}"),
        program.to_string_lossy().into_owned(),
    ];
    all.extend_from_slice(args);
    Process::start_as(Path::new("/usr/bin/env"), name, &all)
}

impl Small {
    /// Starts them in a folder of their own; `flags` are those of each worker.
    fn start(dir: &Path, key: &Path, flags: &[Vec<String>]) -> Result<Self> {
        Self::start_with(dir, key, flags, 3_000)
    }

    /// With so many blocks at each worker.
    pub(crate) fn start_with(
        dir: &Path,
        key: &Path,
        flags: &[Vec<String>],
        blocks: u64,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let config = dir.join("mainstay.toml");
        std::fs::write(&config, format!("[engine]\nblocks = {blocks}\nthreads = 1\n"))?;
        let address = format!("127.0.0.1:{}", free_port());
        let (data, key) = (dir.join("m1"), key.to_string_lossy());
        let args = [
            "control",
            "--listen",
            &address,
            "--data-dir",
            &data.to_string_lossy(),
            "--hash-key-file",
            &key,
        ];
        let mut control = Process::start("m1", &strings(&args))?;
        control.wait_ready()?;
        let mut workers = Vec::new();
        for (n, flags) in (1..).zip(flags) {
            let name = format!("w{n}");
            let config = config.to_string_lossy();
            let mut args =
                strings(&["worker", "--control", &address, "--name", &name, "--config", &config]);
            args.extend_from_slice(flags);
            let stored = flags.iter().any(|flag| flag == "--remote-tier");
            let start = if stored { with_credentials } else { Process::start };
            workers.push(start(&name, &args)?);
        }
        let listen = format!("127.0.0.1:{}", free_port());
        let args = ["gateway", "--control", &address, "--listen", &listen];
        let mut gateway = Process::start("g1", &strings(&args))?;
        for process in workers.iter_mut().chain([&mut gateway]) {
            process.wait_ready()?;
        }
        let url = format!("http://{listen}");
        let client = Client::new(&url);
        Ok(Self { workers, gateway, control, member: address, url, client })
    }

    /// Ends all of it in order.
    fn end(mut self) -> Result<()> {
        for process in self.workers.iter_mut().chain([&mut self.gateway, &mut self.control]) {
            process.terminate()?;
            let code = process.wait_exit(END)?;
            ensure!(code == 0, "{code}: {}", process.output());
        }
        Ok(())
    }
}

/// A key by which clusters name blocks.
pub(crate) fn key_file(dir: &Path) -> Result<PathBuf> {
    let file = dir.join("hash-key");
    std::fs::write(&file, "00112233445566778899aabbccddeeff\n")?;
    Ok(file)
}

/// The flags of a worker whose blocks go to the store at `endpoint`.
fn stored_at(endpoint: &str) -> Vec<String> {
    let tier = ["--remote-tier", "s3://blocks/tiers"];
    let place = ["--remote-endpoint", endpoint, "--remote-region", "us-east-1"];
    strings(&[&tier[..], &place].concat())
}

/// Computes each text once; the answers, and the quickest first token.
async fn compute(client: &Client, texts: &[String]) -> Result<(Vec<Value>, Duration)> {
    let (mut answers, mut quickest) = (Vec::new(), Duration::MAX);
    for text in texts {
        let (reply, took) = first_token(client, text).await?;
        ensure!(prompt_tokens(&reply) > PREFIX_TOKENS && cached(&reply) == 0, "{reply}");
        quickest = quickest.min(took);
        answers.push(content(&reply).clone());
    }
    Ok((answers, quickest))
}

/// Asks for all again: equal answers over cached prefixes; the quickest first token.
async fn find(client: &Client, texts: &[String], answers: &[Value]) -> Result<Duration> {
    let mut quickest = Duration::MAX;
    for (text, answer) in texts.iter().zip(answers) {
        let (reply, took) = first_token(client, text).await?;
        ensure!(cached(&reply) >= PREFIX_TOKENS, "{} of {}", cached(&reply), prompt_tokens(&reply));
        assert_eq!(content(&reply), answer, "the same answer over blocks that came back");
        quickest = quickest.min(took);
    }
    Ok(quickest)
}

fn show(from: &str, computed: Duration, found: Duration) {
    let ratio = computed.as_secs_f64() / found.as_secs_f64();
    println!("{from}: first token {computed:.1?} computed, {found:.1?} found ({ratio:.1} times)");
}

#[tokio::test]
async fn served_after_all_workers_restarted_from_the_disk_tier() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags: Vec<Vec<String>> = (1..=2)
        .map(|n| {
            let disk = dir.path().join(format!("disk-{n}"));
            let disk = disk.to_string_lossy();
            strings(&["--host-memory", "64M", "--disk-tier", &disk, "--disk-size", "256M"])
        })
        .collect();
    let mut cluster = Small::start(&dir.path().join("one"), &key_file(dir.path())?, &flags)?;
    // One that is of no interest, so that the engines are warm.
    let texts: Vec<String> = (0..ROUNDS).map(|n| filler(50_000 + n, LINES)).collect();
    compute(&cluster.client, &[filler(49_999, LINES)]).await?;
    let (answers, computed) = compute(&cluster.client, &texts).await?;
    for worker in &mut cluster.workers {
        worker.replace(END)?;
    }
    // The cluster hears what the disks hold within moments.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let found = find(&cluster.client, &texts, &answers).await?;
    show("disk", computed, found);
    cluster.end()
}

/// Blocks of the index, all workers together.
async fn indexed(client: &Client) -> Result<u64> {
    let status = client.get("/api/v1/status").await?.body;
    let workers = status["workers"].as_array().context("workers")?;
    Ok(workers.iter().filter_map(|worker| worker["blocks"].as_u64()).sum())
}

/// Nobody's engine holds anything, and blocks are not given to others: a prompt goes to whose disk has it.
#[tokio::test]
async fn a_prompt_goes_to_the_disk_that_holds_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags: Vec<Vec<String>> =
        (1..=2).map(|n| disk_flags(&dir.path().join(format!("disk-{n}")))).collect();
    let mut cluster = Small::start(&dir.path().join("one"), &key_file(dir.path())?, &flags)?;
    let listen = format!("127.0.0.1:{}", free_port());
    let args = ["gateway", "--control", &cluster.member, "--listen", &listen, "--transfer=off"];
    let mut gateway = Process::start("g2", &strings(&args))?;
    gateway.wait_ready()?;
    let client = Client::new(&format!("http://{listen}"));
    let decision =
        async || -> Result<Value> { Ok(client.get("/api/v1/requests/last/explain").await?.body) };
    let texts: Vec<String> = (0..2 * ROUNDS).map(|n| filler(55_000 + n, LINES)).collect();
    let mut owners = Vec::new();
    for text in &texts {
        first_token(&client, text).await?;
        owners.push(decision().await?["worker"].clone());
    }
    let blocks = PREFIX_TOKENS / 16 * texts.len() as u64;
    for worker in &mut cluster.workers {
        worker.replace(END)?;
    }
    let begun = std::time::Instant::now();
    while indexed(&client).await? < blocks {
        ensure!(begun.elapsed() < END, "the disks' blocks are not in the index");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The gateway's copy follows within moments.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (text, owner) in texts.iter().zip(&owners) {
        let (reply, _) = first_token(&client, text).await?;
        let told = decision().await?;
        let first = &told["candidates"][0];
        ensure!(told["worker"] == *owner && first["worker"] == *owner, "{owner}: {told}");
        ensure!(told["overlap_blocks"] == 0, "{told}");
        ensure!(told["stored_blocks"].as_u64() >= Some(PREFIX_TOKENS / 16), "{told}");
        ensure!(first["load_ms"].as_f64() > Some(0.0), "{told}");
        ensure!(cached(&reply) >= PREFIX_TOKENS, "{reply}");
    }
    gateway.terminate()?;
    gateway.wait_exit(END)?;
    cluster.end()
}

#[tokio::test]
async fn served_on_a_fresh_cluster_from_the_s3_tier() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("store");
    std::fs::create_dir_all(store.join("blocks"))?;
    let endpoint = s3::serve(&store, KEY_ID, SECRET).await;
    let flags = vec![stored_at(&endpoint)];
    let key = key_file(dir.path())?;
    let texts: Vec<String> = (0..ROUNDS).map(|n| filler(60_000 + n, LINES)).collect();
    // The server of the store is in this process, which must not block.
    let start = |name: &'static str| {
        let (dir, key, flags) = (dir.path().join(name), key.clone(), flags.clone());
        tokio::task::spawn_blocking(move || Small::start(&dir, &key, &flags))
    };
    let first = start("one").await??;
    compute(&first.client, &[filler(59_999, LINES)]).await?;
    let (answers, computed) = compute(&first.client, &texts).await?;
    tokio::task::spawn_blocking(move || first.end()).await??;

    let second = start("two").await??;
    let found = find(&second.client, &texts, &answers).await?;
    show("S3", computed, found);
    tokio::task::spawn_blocking(move || second.end()).await??;
    Ok(())
}

/// All roles in one process, whose figures can be read.
async fn serve(data: &Path, more: &[String]) -> Result<(Process, Client)> {
    let listen = format!("127.0.0.1:{}", free_port());
    let data = data.to_string_lossy().into_owned();
    let mut args = strings(&["serve", "--listen", &listen, "--data-dir", &data, "--threads", "1"]);
    args.extend_from_slice(more);
    let process = tokio::task::spawn_blocking(move || {
        let mut process = with_credentials("serve", &args)?;
        process.wait_ready()?;
        anyhow::Ok(process)
    });
    Ok((process.await??, Client::new(&format!("http://{listen}"))))
}

pub(crate) async fn stop(mut process: Process) -> Result<()> {
    tokio::task::spawn_blocking(move || {
        process.terminate()?;
        let code = process.wait_exit(END)?;
        ensure!(code == 0, "{code}: {}", process.output());
        Ok(())
    })
    .await?
}

/// A counter of `/metrics`.
pub(crate) async fn counter(client: &Client, series: &str) -> Result<u64> {
    let reply = client.get("/metrics").await?;
    let text = reply.body.as_str().context("text")?;
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    Ok(line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0))
}

/// Waits until a tier says that something of it was damaged and put aside.
async fn damage_is_counted(client: &Client, tier: &str) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let corrupt =
            counter(client, &format!("mainstay_tier_corrupt_total{{tier=\"{tier}\"}}")).await?;
        let aside =
            counter(client, &format!("mainstay_tier_quarantined_total{{tier=\"{tier}\"}}")).await?;
        if corrupt >= 1 && aside >= 1 {
            return Ok(());
        }
        ensure!(begun.elapsed() < END, "{corrupt} corrupt, {aside} put aside");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn flip(file: &Path, at: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x20], at)?;
    Ok(())
}

fn disk_flags(folder: &Path) -> Vec<String> {
    strings(&["--disk-tier", &folder.to_string_lossy(), "--disk-size", "256M"])
}

#[tokio::test]
async fn a_flipped_byte_on_disk_is_seen_counted_and_computed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, disk) = (dir.path().join("data"), dir.path().join("disk"));
    let (process, client) = serve(&data, &disk_flags(&disk)).await?;
    let text = filler(70_000, LINES);
    let (first, _) = first_token(&client, &text).await?;
    stop(process).await?;
    flip(&disk.join("blocks"), 300_000)?;
    let (process, client) = serve(&data, &disk_flags(&disk)).await?;
    let (second, _) = first_token(&client, &text).await?;
    assert_eq!(content(&first), content(&second));
    let came = cached(&second);
    ensure!(came < prompt_tokens(&second) - 32, "{came} though a block is damaged");
    damage_is_counted(&client, "disk").await?;
    stop(process).await?;
    let (process, client) = serve(&data, &disk_flags(&disk)).await?;
    let (third, _) = first_token(&client, &text).await?;
    ensure!(cached(&third) >= PREFIX_TOKENS, "it was not stored anew: {third}");
    assert_eq!(content(&first), content(&third));
    stop(process).await
}

#[tokio::test]
async fn a_flipped_byte_in_s3_is_seen_counted_and_computed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("store");
    std::fs::create_dir_all(store.join("blocks"))?;
    let endpoint = s3::serve(&store, KEY_ID, SECRET).await;
    let key = key_file(dir.path())?.to_string_lossy().into_owned();
    let mut flags = stored_at(&endpoint);
    flags.extend(["--hash-key-file".to_owned(), key]);
    let (process, client) = serve(&dir.path().join("one"), &flags).await?;
    let text = filler(80_000, LINES);
    let (first, _) = first_token(&client, &text).await?;
    stop(process).await?;
    let packs = objects(&store);
    ensure!(packs.len() >= 4, "{packs:?}");
    for pack in &packs {
        flip(pack, 100_000)?;
    }
    let (process, client) = serve(&dir.path().join("two"), &flags).await?;
    let (second, _) = first_token(&client, &text).await?;
    assert_eq!(content(&first), content(&second));
    assert_eq!(cached(&second), 0, "the first pack is damaged");
    damage_is_counted(&client, "remote").await?;
    stop(process).await
}

/// The objects of packs below a folder.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.retain(|path| path.to_string_lossy().contains("tiers/v1/"));
    found
}

#[tokio::test]
async fn weights_that_were_exchanged_get_no_old_blocks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, disk, model) =
        (dir.path().join("data"), dir.path().join("disk"), dir.path().join("model"));
    let demo = root().join("plugins/native/demo-model");
    std::fs::create_dir(&model)?;
    let weights = model.join("model.safetensors");
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ] {
        std::fs::copy(demo.join(file), model.join(file))?;
    }
    let mut flags = strings(&[&model.to_string_lossy(), "--model-name", "demo"]);
    flags.extend(disk_flags(&disk));
    let text = filler(85_000, LINES);
    let (process, client) = serve(&data, &flags).await?;
    let (first, _) = first_token(&client, &text).await?;
    ensure!(cached(&first) == 0, "{first}");
    stop(process).await?;
    // Another number in the last weight; the file's size and its time of change stay.
    let (length, changed) = (weights.metadata()?.len(), weights.metadata()?.modified()?);
    flip(&weights, length - 2)?;
    std::fs::File::options().write(true).open(&weights)?.set_modified(changed)?;
    ensure!(weights.metadata()?.len() == length && weights.metadata()?.modified()? == changed);
    let (process, client) = serve(&data, &flags).await?;
    let (second, _) = first_token(&client, &text).await?;
    ensure!(cached(&second) == 0, "old blocks under new weights: {second}");
    stop(process).await?;
    let (process, client) = serve(&data, &flags).await?;
    let (third, _) = first_token(&client, &text).await?;
    ensure!(cached(&third) >= PREFIX_TOKENS, "the same weights find them: {third}");
    stop(process).await
}

/// A lead agent computes a prefix; four subagents at once go on from it, at four workers.
#[tokio::test]
async fn four_subagents_load_what_their_lead_computed() -> Result<()> {
    use mainstay_cluster_tests::{Cluster, Shape};
    let cluster = Cluster::start(&Shape { members: 1, gateways: 1, workers: 4, blocks: 3_000 })?;
    let (_turns, client) = crate::transfer::by_turns(&cluster, &[])?;
    let text = filler(95_000, LINES);
    let (lead, took) = first_token(&client, &text).await?;
    ensure!(cached(&lead) == 0 && prompt_tokens(&lead) > PREFIX_TOKENS, "{lead}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = std::time::Instant::now();
    let subagents = (0..4).map(|n| {
        let (client, text) = (client.clone(), text.clone());
        async move {
            let messages = json!([user(&format!("{text}\nYou are subagent {n}."))]);
            client.chat(&messages, 1).await
        }
    });
    let answers = futures::future::try_join_all(subagents).await?;
    let all = begun.elapsed();
    for answer in &answers {
        ensure!(cached(answer) >= PREFIX_TOKENS, "computed again: {answer}");
    }
    println!("lead: first token {took:.1?}; four subagents at once, all of them {all:.1?}");
    Ok(())
}
