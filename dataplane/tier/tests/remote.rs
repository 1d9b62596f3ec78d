//! The remote tier against a folder and against an S3 server: packs come back, broken ones are put aside, a
//! store that hangs or refuses costs time and no more, and credentials are never shown.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mainstay_tier::{
    BlockKey, Fetch, Layout, Put, Record, RemoteSettings, RemoteTier, Retention, TierError,
};
use mainstay_types::{NamespaceId, SequenceHash};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};

/// The server of the cluster's tests, too.
#[path = "../../../tests/cluster/src/s3.rs"]
#[expect(unreachable_pub, reason = "it is another crate's, too")]
mod s3;

const BLOCK_BYTES: u32 = 3000;
const PACK: u32 = 4;
const KEY_ID: &str = "EXAMPLEKEYOFTESTS";
const SECRET: &str = "the-secret-of-this-test-alone";

fn layout() -> Layout {
    Layout::new("m", "r", "f32", "plain", 16, BLOCK_BYTES).expect("valid")
}

fn key(number: u128) -> BlockKey {
    BlockKey { namespace: NamespaceId(7), hash: SequenceHash(number), layout: layout().id }
}

fn payload(number: u128) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i as u8).wrapping_mul(31).wrapping_add(number as u8)).collect()
}

fn settings(address: &str) -> RemoteSettings {
    RemoteSettings { pack_blocks: PACK, timeout_ms: 3_000, ..RemoteSettings::new(address) }
}

fn pack_keys(first: u128) -> Vec<BlockKey> {
    (first..first + u128::from(PACK)).map(key).collect()
}

async fn put_pack(tier: &RemoteTier, first: u128) -> Put {
    let keys = pack_keys(first);
    let payloads: Vec<Vec<u8>> = keys.iter().map(|key| payload(key.hash.0)).collect();
    let retention = Retention { priority: 77, until_ms: 5, ..Retention::default() };
    let records: Vec<Record<'_>> = keys
        .iter()
        .zip(&payloads)
        .map(|(key, payload)| Record {
            key: *key,
            parent: SequenceHash(key.hash.0 - 1),
            retention,
            payload,
            sum: None,
        })
        .collect();
    tier.put_pack(&records).await.expect("the call is right")
}

async fn fetch(tier: &RemoteTier, first: u128) -> Fetch {
    let got = tier.get_pack(&pack_keys(first)).await.expect("the call is right");
    if let Fetch::Hit(loaded) = &got {
        assert_eq!(loaded.len(), PACK as usize);
        for (number, block) in (first..).zip(loaded) {
            assert_eq!(block.key, key(number));
            assert_eq!(block.payload, payload(number));
            assert_eq!(block.held.parent, SequenceHash(number - 1));
            assert_eq!(block.held.retention.priority, 77);
        }
    }
    got
}

/// The files of objects below a folder.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.retain(|path| path.to_string_lossy().contains("v1/"));
    found.sort();
    found
}

/// What must hold of any store that keeps its objects as files below `folder`.
async fn holds(tier: &RemoteTier, folder: &Path) {
    assert!(matches!(fetch(tier, 100).await, Fetch::Miss));
    assert_eq!(tier.has_pack(&pack_keys(100)).await.expect("right"), Some(false));
    for first in [100, 104, 108] {
        assert_eq!(put_pack(tier, first).await, Put::Stored);
        assert!(matches!(fetch(tier, first).await, Fetch::Hit(_)));
        assert_eq!(tier.has_pack(&pack_keys(first)).await.expect("right"), Some(true));
    }
    let again = put_pack(tier, 104).await;
    assert!(again == Put::Present || again == Put::Stored, "{again:?}");
    // A prompt of two whole packs and a tail; then one with a hole.
    let hashes: Vec<SequenceHash> = (100..110).map(SequenceHash).collect();
    let loaded = tier.load(NamespaceId(7), &hashes).await.expect("the call is right");
    assert_eq!((loaded.blocks.len(), loaded.more, loaded.failed), (8, false, false));
    let stranger = tier.load(NamespaceId(8), &hashes).await.expect("the call is right");
    assert!(stranger.blocks.is_empty(), "another tenant's blocks are not served");

    let files = objects(folder);
    assert_eq!(files.len(), 3);
    let victim = files
        .iter()
        .find(|path| path.to_string_lossy().ends_with(&format!("{:032x}", 107)))
        .expect("named by its last block");
    let whole = std::fs::read(victim).expect("readable");
    assert_eq!(whole.len(), PACK as usize * (128 + BLOCK_BYTES as usize));
    let mut broken: u64 = 0;
    for byte in (0..whole.len()).step_by(997).chain([whole.len()]) {
        let mut bytes = whole.clone();
        match bytes.get_mut(byte) {
            Some(byte) => *byte ^= 4,
            None => bytes.truncate(whole.len() - 1),
        }
        std::fs::write(victim, &bytes).expect("writable");
        // Once by itself, once as a part of its chain: whoever asked knows that more than a miss ended it.
        if broken.is_multiple_of(2) {
            let run = tier.load(NamespaceId(7), &hashes).await.expect("the call is right");
            assert_eq!((run.blocks.len(), run.failed), (PACK as usize, true), "byte {byte}");
        } else {
            assert!(matches!(fetch(tier, 104).await, Fetch::Bad), "byte {byte}");
        }
        assert!(matches!(fetch(tier, 104).await, Fetch::Miss), "byte {byte}");
        broken += 1;
        let figures = tier.figures().view();
        assert_eq!((figures.bad_sums, figures.quarantined), (broken, broken));
        assert_eq!(objects(folder).len(), 2, "the bad one is put aside");
        // Computed again, stored again.
        assert_eq!(put_pack(tier, 104).await, Put::Stored);
        assert!(matches!(fetch(tier, 104).await, Fetch::Hit(_)));
    }
    assert!(broken > 10);
    assert_eq!(tier.figures().view().faults, 0);
}

#[tokio::test]
async fn a_folder_is_a_store() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("store");
    let tier = RemoteTier::open(layout(), &settings(&format!("file://{}", path.display())))
        .expect("opens");
    holds(&tier, &path).await;
    assert!(tier.figures().view().present > 0, "a pack that is there is not written again");
    let mode = std::fs::metadata(&path).expect("made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "others cannot read what tenants wrote");
}

#[tokio::test]
async fn a_load_has_its_bytes_and_an_absent_chain_costs_one_request() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let address = format!("file://{}", folder.path().display());
    let bytes = u64::from(BLOCK_BYTES * PACK);
    let few = RemoteSettings { load_bytes: 2 * bytes + 1, ..settings(&address) };
    let tier = RemoteTier::open(layout(), &few).expect("opens");
    for first in [100, 104, 108] {
        assert_eq!(put_pack(&tier, first).await, Put::Stored);
    }
    let hashes: Vec<SequenceHash> = (100..112).map(SequenceHash).collect();
    let run = tier.load(NamespaceId(7), &hashes).await.expect("the call is right");
    assert_eq!((run.blocks.len(), run.more), (8, true));
    let rest = tier.load(NamespaceId(7), &hashes[8..]).await.expect("the call is right");
    assert_eq!((rest.blocks.len(), rest.more), (4, false));
    let least = RemoteSettings { load_bytes: 0, ..settings(&address) };
    let least = RemoteTier::open(layout(), &least).expect("opens");
    let run = least.load(NamespaceId(7), &hashes).await.expect("the call is right");
    assert_eq!((run.blocks.len(), run.more), (4, true));

    let asked = settings(&address);
    let tier = RemoteTier::open(layout(), &asked).expect("opens");
    let absent: Vec<SequenceHash> = (500..600).map(SequenceHash).collect();
    let run = tier.load(NamespaceId(7), &absent).await.expect("the call is right");
    assert!(run.blocks.is_empty() && !run.more);
    assert_eq!(tier.figures().view().misses, u64::from(PACK));
}

#[tokio::test]
async fn a_folder_that_hangs_keeps_no_more_threads_than_calls() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let address = format!("file://{}", folder.path().display());
    let tier = RemoteTier::open(layout(), &settings(&address)).expect("opens");
    let firsts: Vec<u128> = (0..6).map(|i| 100 + i * 4).collect();
    for first in &firsts {
        assert_eq!(put_pack(&tier, *first).await, Put::Stored);
    }
    // Whoever opens a pipe to read hangs until somebody writes.
    let pipes = objects(folder.path());
    assert_eq!(pipes.len(), firsts.len());
    for pipe in &pipes {
        std::fs::remove_file(pipe).expect("it was there");
        let made = Command::new("mkfifo").arg(pipe).status().expect("mkfifo runs");
        assert!(made.success());
    }
    let two = RemoteSettings { timeout_ms: 150, parallel: 2, ..settings(&address) };
    let tier = RemoteTier::open(layout(), &two).expect("opens");
    for first in &firsts {
        assert!(matches!(fetch(&tier, *first).await, Fetch::Failed));
    }
    assert_eq!(tier.figures().view().timeouts, 6);
    // A pipe that nobody reads cannot be opened for writing without waiting.
    let past_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let read = |pipe: &PathBuf| {
        let writer = std::fs::OpenOptions::new().write(true).custom_flags(past_wait).open(pipe);
        writer.is_ok()
    };
    let hung = pipes.iter().filter(|pipe| read(pipe)).count();
    assert_eq!(hung, 2, "those that never ran were never begun");
}

#[test]
fn credentials_in_an_address_are_not_shown() {
    let mut settings = settings("s3://key:hidden@bucket/x");
    settings.endpoint = Some("https://user:hid@den@store.example:9000".to_owned());
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hid") && !shown.contains("user"), "{shown}");
    assert!(shown.contains("https://***@store.example:9000"), "{shown}");
}

/// Runs one of the tests here in a process that has credentials in its environment.
async fn in_child(
    test: &'static str,
    folder: &Path,
    endpoint: &str,
    secret: &'static str,
) -> String {
    let (folder, endpoint) = (folder.to_owned(), endpoint.to_owned());
    tokio::task::spawn_blocking(move || {
        let output = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", test, "--nocapture"])
            .env("MAINSTAY_TIER_TEST_FOLDER", folder)
            .env("MAINSTAY_TIER_TEST_ENDPOINT", endpoint)
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .output()
            .expect("the child runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains(SECRET) && !said.contains(KEY_ID), "credentials are shown: {said}");
        assert!(said.contains("WARN mainstay_tier"), "nothing was logged: {said}");
        said
    })
    .await
    .expect("the child ends")
}

/// Says all that is logged, by whatever library and at whatever level.
struct SayAll;

/// The fields of an event, as text.
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl Subscriber for SayAll {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(String::new());
        span.record(&mut fields);
        eprintln!("{} {}{}", span.metadata().level(), span.metadata().target(), fields.0);
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &tracing::span::Record<'_>) {
        let mut fields = Fields(String::new());
        values.record(&mut fields);
        eprintln!("{}", fields.0);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        eprintln!("{} {}{}", event.metadata().level(), event.metadata().target(), fields.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn of_child() -> Option<(PathBuf, RemoteSettings)> {
    let folder = std::env::var_os("MAINSTAY_TIER_TEST_FOLDER")?;
    tracing::subscriber::set_global_default(SayAll).expect("the child has one test");
    let endpoint = std::env::var("MAINSTAY_TIER_TEST_ENDPOINT").ok();
    let mut settings = settings("s3://blocks/tiers/one");
    settings.endpoint = endpoint;
    settings.region = Some("us-east-1".to_owned());
    Some((PathBuf::from(folder), settings))
}

#[tokio::test]
async fn child_of_s3_whole() {
    let Some((folder, settings)) = of_child() else { return };
    let tier = RemoteTier::open(layout(), &settings).expect("opens");
    holds(&tier, &folder).await;
    println!("the child has seen all of it: {settings:?}");
}

#[tokio::test]
async fn child_of_s3_refused() {
    let Some((_, settings)) = of_child() else { return };
    let tier = RemoteTier::open(layout(), &settings).expect("opens");
    assert!(matches!(put_pack(&tier, 100).await, Put::Refused(_)));
    assert!(matches!(fetch(&tier, 100).await, Fetch::Failed));
    assert!(tier.figures().view().faults > 0);
    println!("the child was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_is_a_store() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    std::fs::create_dir(folder.path().join("blocks")).expect("a bucket");
    let endpoint = s3::serve(folder.path(), KEY_ID, SECRET).await;
    let said = in_child("child_of_s3_whole", folder.path(), &endpoint, SECRET).await;
    assert!(said.contains("the child has seen all of it"), "{said}");
    let said = in_child("child_of_s3_refused", folder.path(), &endpoint, "wrong").await;
    assert!(said.contains("the child was refused"), "{said}");
}

#[tokio::test]
async fn a_store_that_hangs_costs_its_deadline() {
    // Accepts and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let held = tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            sockets.push(socket);
        }
    });
    let store = object_store::aws::AmazonS3Builder::new()
        .with_bucket_name("blocks")
        .with_region("us-east-1")
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_access_key_id(KEY_ID)
        .with_secret_access_key(SECRET);
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let store = std::sync::Arc::new(store.build().expect("settings fit"));
    let settings =
        RemoteSettings { timeout_ms: 200, parallel: 2, waiting_max: 3, ..settings("s3://blocks") };
    let endless = RemoteSettings { waiting_max: usize::MAX, ..settings.clone() };
    let prefix = object_store::path::Path::default();
    let tier = RemoteTier::with_store(layout(), &endless, store.clone(), prefix.clone());
    let late = fetch(&tier.expect("opens"), 100).await;
    assert!(matches!(late, Fetch::Failed), "late, and no sum that overflows");
    let tier = RemoteTier::with_store(layout(), &settings, store, prefix).expect("opens");
    let start = Instant::now();
    let calls = futures::future::join_all((0..8).map(|i| fetch(&tier, 100 + i * 4))).await;
    assert!(calls.iter().all(|fetch| matches!(fetch, Fetch::Failed)));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let figures = tier.figures().view();
    assert_eq!((figures.timeouts, figures.busy), (5, 3), "{figures:?}");
    held.abort();
}

#[test]
fn addresses_and_settings_have_bounds() {
    let refused = |settings: RemoteSettings| {
        matches!(RemoteTier::open(layout(), &settings), Err(TierError::Setting(_)))
    };
    for address in ["", "ftp://x", "s3://", "s3://key:secret@bucket/x", "s3://bucket/a//b"] {
        assert!(refused(settings(address)), "{address}");
    }
    let folder = tempfile::tempdir().expect("a scratch folder");
    let good = settings(&format!("file://{}", folder.path().display()));
    assert!(refused(RemoteSettings { pack_blocks: 65, ..good.clone() }));
    assert!(refused(RemoteSettings { parallel: 0, ..good.clone() }));
    assert!(refused(RemoteSettings { timeout_ms: 0, ..good.clone() }));
    let large = Layout::new("m", "r", "bf16", "plain", 16, 2 << 20).expect("valid");
    let unset = RemoteSettings { pack_blocks: 0, ..good };
    assert_eq!(RemoteTier::open(large, &unset).expect("opens").pack_blocks(), 2);
    assert_eq!(RemoteTier::open(layout(), &unset).expect("opens").pack_blocks(), 64);
}
