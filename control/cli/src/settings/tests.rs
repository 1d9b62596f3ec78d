//! The layers, tried for every key that clap's definition has.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::ArgMatches;
use tempfile::NamedTempFile;

use super::keys::Kind;
use super::layers::nearest;
use super::{Key, Layers, Origin, ROLES, command, keys_of, preview, resolve};
use crate::commands::config::{check_file, value_of};

/// Values that some flag takes. A new flag with a form of its own finds the values for its test here.
const VALUES: [&str; 28] = [
    "127.0.0.1:7001",
    "127.0.0.1:7002",
    "127.0.0.1:7003",
    "7",
    "8",
    "9",
    "3",
    "4",
    "500..1000",
    "600..1100",
    "700..1200",
    "kv",
    "random",
    "round-robin",
    "streams",
    "plain",
    "a",
    "b",
    "c",
    "512M",
    "64M",
    "on",
    "off",
    "arrival",
    "wspt",
    "http://127.0.0.1:4317",
    "0.5",
    "0.25",
];

type Env = Vec<(OsString, OsString)>;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a scratch file");
    file.write_all(text.as_bytes()).expect("room for it");
    file
}

fn flags(file: Option<&NamedTempFile>, more: &[String]) -> Vec<OsString> {
    let mut flags: Vec<OsString> = more.iter().map(OsString::from).collect();
    if let Some(file) = file {
        let path: PathBuf = file.path().into();
        let mut config = OsString::from("--config=");
        config.push(path);
        flags.insert(0, config);
    }
    flags
}

/// What has to be there so that `key` may be.
fn beside(role: &str, key: &Key) -> Vec<String> {
    let mut beside = Vec::new();
    if matches!(role, "gateway" | "worker") && key.name != "control" {
        beside.push("--control=x:1".to_owned());
    }
    let needed: &[&str] = match key.name.as_str() {
        "kv_events" => &["--upstream=x"],
        "kv_replay" => &["--upstream=x", "--kv-events=x"],
        "disk_tier" => &["--disk-size=1G"],
        "traces_sample" | "traces_per_second" => &["--traces=http://127.0.0.1:4317"],
        "disk_size" => &["--disk-tier=x"],
        "remote_endpoint" | "remote_region" => &["--remote-tier=x"],
        _ => &[],
    };
    beside.extend(needed.iter().map(|flag| (*flag).to_owned()));
    if role == "control" && key.name == "learner" {
        beside.push("--join=x:1".to_owned());
    }
    beside
}

fn flag_of(key: &Key, value: &str) -> String {
    key.long.as_ref().map_or_else(|| value.to_owned(), |long| format!("--{long}={value}"))
}

/// Values that this key takes, different ones if it can be.
fn values_of(role: &str, key: &Key) -> Vec<String> {
    if key.kind == Kind::Boolean {
        return vec!["true".to_owned(), "false".to_owned()];
    }
    let takes = |value: &&str| {
        let mut line = vec!["mainstay".to_owned(), role.to_owned()];
        line.extend(beside(role, key));
        line.push(flag_of(key, value));
        command().try_get_matches_from(line).is_ok()
    };
    let all = VALUES.iter().copied().filter(takes).map(str::to_owned);
    let mut values: Vec<String> = all.collect();
    // Numbers may be spelled in ways that mean the same; the first three are enough.
    values.truncate(3);
    values
}

fn seen(
    role: &str,
    key: &Key,
    file: Option<&NamedTempFile>,
    env: Env,
    flag: Option<&str>,
) -> (Option<String>, Origin) {
    let mut more = beside(role, key);
    more.extend(flag.map(|value| flag_of(key, value)));
    let (resolved, matches): (_, ArgMatches) =
        preview(role, &flags(file, &more), env.into_iter()).expect("a line that is right");
    (value_of(key, &matches), resolved.origin(key, &matches))
}

#[test]
fn for_every_key_flags_beat_the_environment_beats_the_file_beats_the_default() {
    let mut tried = 0;
    for role in ROLES {
        for key in keys_of(role) {
            let values = values_of(role, &key);
            assert!(values.len() >= 2, "no values in VALUES for {role} --{}", key.name);
            let (low, mid, high) = (&values[0], &values[1], &values[values.len() - 1]);
            let text = if key.kind == Kind::Boolean { low.clone() } else { format!("{low:?}") };
            let file = file(&format!("[{role}]\n{} = {text}\n", key.name));
            let name = format!("MAINSTAY__{}__{}", role, key.name).to_uppercase();
            let env = || vec![(OsString::from(&name), OsString::from(mid))];
            let what = format!("{role}.{}", key.name);
            // A switch that is off in the environment is off by default.
            let off = key.kind == Kind::Boolean && mid == "false";
            let (value, origin) = seen(role, &key, None, Vec::new(), None);
            assert_eq!((value, origin), (key.default.clone(), Origin::Default), "{what}");
            let (value, origin) = seen(role, &key, Some(&file), Vec::new(), None);
            assert_eq!(value.as_ref(), Some(low), "{what} of the file");
            assert!(matches!(origin, Origin::File(_)), "{what}");
            let (value, origin) = seen(role, &key, Some(&file), env(), None);
            assert_eq!(value.as_ref(), Some(mid), "{what} of the environment");
            assert!(off || origin == Origin::Environment(name.clone()), "{what}");
            let (value, origin) = seen(role, &key, Some(&file), env(), Some(high));
            assert_eq!((value.as_ref(), origin), (Some(high), Origin::Flag), "{what} of the flag");
            let (value, origin) = seen(role, &key, Some(&file), Vec::new(), Some(high));
            assert_eq!((value.as_ref(), origin), (Some(high), Origin::Flag), "{what} of the flag");
            tried += 1;
        }
    }
    assert!(tried >= 50, "only {tried} keys were tried");
}

fn refused(text: &str) -> String {
    let file = file(text);
    let error = check_file(file.path()).expect_err("it is wrong");
    crate::output::chain(&error)
}

#[test]
fn a_word_that_nobody_reads_is_refused_with_the_nearest() {
    let told = refused("[gateway]\nregoin = \"eu\"\n");
    assert!(told.contains("\"regoin\"") && told.contains("did you mean region?"), "{told}");
    assert!(told.contains(":2:"), "the line is told: {told}");
    let told = refused("[gatway]\n");
    assert!(told.contains("did you mean gateway?"), "{told}");
    let told = refused("[pins]\nrecomput = \"all\"\n");
    assert!(told.contains("did you mean recompute?"), "{told}");
    let told = refused("[[keys]]\nkey = \"x\"\ntennant = \"a\"\n");
    assert!(told.contains("did you mean tenant?"), "{told}");
    let told = refused("websocket = true\n");
    assert!(told.contains("unknown key \"websocket\""), "{told}");
    let told = refused("[worker]\nqqqq = 1\n");
    assert!(told.contains("there is ") && told.contains("kv_bytes"), "{told}");
    let told = refused("gateway = 3\n");
    assert!(told.contains("write [gateway]"), "{told}");
    assert_eq!(nearest("metrics-listen", &["metrics_listen", "listen"]), Some("metrics_listen"));
    let env = |name: &str| {
        let line = ["mainstay", "gateway"].map(OsString::from);
        let one = (OsString::from(name), OsString::from("x"));
        let resolved = resolve(&line, [one].into_iter());
        resolved.err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(env("MAINSTAY__GATEWAY__LISTNE").contains("did you mean listen?"));
    assert!(env("MAINSTAY__GATEWAY").contains("SECTION__KEY"));
    assert!(env("MAINSTAY__KEYS__KEY").contains("tenant key add"));
    // What systems that run containers make up is nobody's business.
    assert!(env("MAINSTAY_GATEWAY_PORT_8000_TCP").is_empty());
}

#[test]
fn a_value_of_the_file_meets_the_flags_own_checks() {
    let told = refused("[gateway]\nlisten = \"nowhere\"\n");
    assert!(told.contains("--listen") && told.contains("note: --listen is from"), "{told}");
    let told = refused("[serve]\nany_model = 3\n");
    assert!(told.contains("serve.any_model") && told.contains("neither true nor false"), "{told}");
    let told = refused("[control]\nmembers = \"1=a:1\"\njoin = \"b:1\"\n");
    assert!(told.contains("cannot be used with"), "{told}");
    let told = refused("[worker]\nlisten = { a = 1 }\n");
    assert!(told.contains("worker.listen"), "{told}");
    let told = refused("[models]\nmedia = \"keep\"\n");
    assert!(told.contains("models.media") && told.contains("refuse"), "{told}");
    let right = file(
        "[gateway]\ncontrol = [\"a:1\", \"b:1\"]\n[worker]\nname = \"-w=1\"\n[engine]\nanything = 1\n",
    );
    assert_eq!(check_file(right.path()).expect("it is right"), ["gateway", "worker"]);
    let (_, matches) =
        preview("gateway", &flags(Some(&right), &[]), std::iter::empty()).expect("right");
    assert_eq!(matches.get_one::<String>("control").map(String::as_str), Some("a:1,b:1"));
    // A value that begins with a dash stays one value.
    let (_, matches) =
        preview("worker", &flags(Some(&right), &[]), std::iter::empty()).expect("right");
    assert_eq!(matches.get_one::<String>("name").map(String::as_str), Some("-w=1"));
}

#[test]
fn sections_of_no_role_take_the_environment_too() {
    let file = file("[pins]\nrecompute = \"all\"\n[engine]\nblocks = 5\n");
    let env = [
        ("MAINSTAY__PINS__RECOMPUTE", "off"),
        ("MAINSTAY__RESPONSES__WEBSOCKET", "false"),
        ("MAINSTAY__ENGINE__PRECISION", "exact"),
        ("MAINSTAY__ENGINE__THREADS", "3"),
    ];
    let env = env.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let layers = Layers::read(Some(file.path()), env.into_iter()).expect("right");
    assert_eq!(
        layers.get("pins", "recompute").map(|(v, o)| (v.as_str(), o.name())),
        Some((Some("off"), "environment"))
    );
    assert_eq!(
        layers.get("engine", "blocks").map(|(v, o)| (v.as_integer(), o.name())),
        Some((Some(5), "file"))
    );
    let config = crate::config::FileConfig::of(layers).expect("right");
    let engine = config.engine_json().expect("a table");
    assert_eq!((&engine["threads"], &engine["precision"]), (&3.into(), &"exact".into()));
}

#[test]
fn an_oversized_file_and_a_missing_one_are_told() {
    let big = file(&"#".repeat((1 << 20) + 1));
    assert!(
        crate::output::chain(&check_file(big.path()).expect_err("too big")).contains("at most")
    );
    let gone = std::path::Path::new("/nonexistent/mainstay.toml");
    assert!(
        crate::output::chain(&check_file(gone).expect_err("gone"))
            .contains("reading the configuration")
    );
}

#[test]
fn the_schema_has_every_key() {
    let schema = super::schema();
    for role in ROLES {
        for key in keys_of(role) {
            let there = &schema["properties"][role]["properties"][&key.name];
            assert!(there["type"].is_string() || there["type"].is_array(), "{role}.{}", key.name);
            assert!(
                there["description"].as_str().is_some_and(|d| !d.is_empty()),
                "{role}.{}",
                key.name
            );
        }
    }
    for section in super::layers::SECTIONS.iter().map(|(name, _)| *name).chain(["keys"]) {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}
