//! The files under `docs/operate/deploy`: parsed, and each command line, key and probe that they hold tried.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{ROLES, command, preview};
use crate::commands::config::check_file;

fn deploy() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    Path::new(&here).join("../../docs/operate/deploy").canonicalize().expect("the folder exists")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|d| serde::Deserialize::deserialize(d).expect("a document of YAML")).collect()
}

/// The words of a shell's simple command.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect()
}

/// A command line that the program takes; a configuration file in it is not read here.
fn check_line(words: &[String], origin: &str) {
    let line: Vec<&str> =
        std::iter::once("mainstay").chain(words.iter().map(String::as_str)).collect();
    let parsed = command().try_get_matches_from(&line);
    // What the file of the unit gives is not on the line.
    let Err(error) = parsed else { return };
    let missing = error.kind() == clap::error::ErrorKind::MissingRequiredArgument
        && line.iter().any(|word| word.starts_with("--config"));
    assert!(missing, "{origin}: {line:?}: {error}");
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().map(|item| item.as_str().expect("a text").to_owned()).collect()
}

#[test]
fn the_configuration_file_is_right() {
    let roles = check_file(&deploy().join("mainstay.toml")).expect("it is right");
    assert_eq!(roles, ["control", "gateway", "worker"]);
}

/// `KEY=VALUE` lines, comments left out.
fn environment(text: &str) -> Vec<(OsString, OsString)> {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once('=').expect("KEY=VALUE"))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

#[test]
fn units_start_roles_with_a_file_and_an_environment_that_are_right() {
    let env = environment(&read("systemd/mainstay.env"));
    let config = deploy().join("mainstay.toml").display().to_string();
    for role in ["control", "gateway", "worker"] {
        let unit = read(&format!("systemd/mainstay-{role}.service"));
        let sections: Vec<&str> = unit.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(sections, ["[Unit]", "[Service]", "[Install]"], "{role}");
        for (number, line) in unit.lines().enumerate() {
            let is_plain = line.is_empty() || line.starts_with(['#', '[']);
            assert!(is_plain || line.contains('='), "{role}:{}: {line}", number + 1);
        }
        let commands = unit.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            matches!(key, "ExecStart" | "ExecStartPre").then_some(value)
        });
        let commands: Vec<Vec<String>> = commands.map(words).collect();
        assert_eq!(commands.len(), 2, "{role}");
        for line in &commands {
            assert_eq!(line[0], "/usr/local/bin/mainstay", "{role}");
            check_line(&line[1..], role);
            assert!(line.contains(&role.to_owned()), "{role}");
        }
        let flags = [OsString::from("--config"), OsString::from(&config)];
        preview(role, &flags, env.clone().into_iter()).expect("the role's file and environment");
        for wanted in
            ["NoNewPrivileges=yes", "ProtectSystem=strict", "LimitNOFILE=65536", "User=mainstay"]
        {
            assert!(unit.lines().any(|line| line == wanted), "{role}: {wanted}");
        }
    }
}

#[test]
fn the_image_starts_the_program_as_nobody() {
    let text = read("docker/Dockerfile");
    let json = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).expect(key);
        strings(&serde_json::from_str(line).expect("the form that needs no shell"))
    };
    assert_eq!(json("ENTRYPOINT "), ["mainstay"]);
    check_line(&json("CMD "), "Dockerfile");
    assert!(text.lines().any(|line| line == "USER 10001"));
    let toolchain = std::fs::read_to_string(deploy().join("../../../rust-toolchain.toml"));
    let toolchain: toml::Table = toolchain.expect("it is there").parse().expect("TOML");
    let channel = toolchain["toolchain"]["channel"].as_str().expect("a channel");
    let from = text.lines().find_map(|line| line.strip_prefix("FROM rust:")).expect("a toolchain");
    let version = from.split('-').next().unwrap_or_default();
    assert!(channel.starts_with(version), "rust-toolchain.toml has {channel}, the image {version}");
}

#[test]
fn compose_starts_a_cluster_whose_parts_know_each_other() {
    let compose = documents(&read("docker/compose.yaml")).remove(0);
    let services = compose["services"].as_object().expect("services");
    let script = read("docker/pki.sh");
    let mut certified: Vec<Vec<String>> = Vec::new();
    for line in script.lines().filter(|line| line.trim_start().starts_with("mainstay ")) {
        for id in ["1", "2", "3"] {
            let line = words(&line.replace("$id", id));
            check_line(&line[1..], "pki.sh");
            certified.push(line);
        }
    }
    let mut roles = BTreeSet::new();
    for (name, service) in services.iter().filter(|(name, _)| *name != "pki") {
        let line = strings(&service["command"]);
        check_line(&line, name);
        roles.insert(line[0].clone());
        let value = |flag: &str| {
            line.iter()
                .find_map(|word| word.strip_prefix(flag)?.strip_prefix('=').map(str::to_owned))
        };
        // Every host that is dialled is a service, and its certificate is for it.
        for list in ["--control", "--members"].into_iter().filter_map(value) {
            for address in list.split(',').map(|item| item.rsplit('=').next().unwrap_or_default()) {
                let (host, port) = address.split_once(':').expect("HOST:PORT");
                assert!(services.contains_key(host) && port == "7400", "{name}: {address}");
            }
        }
        if let Some(told) = value("--advertise") {
            let (host, _) = told.split_once(':').expect("HOST:PORT");
            assert_eq!(host, name);
            let is_for =
                |line: &&Vec<String>| line.windows(2).any(|w| w[0] == "--host" && w[1] == host);
            assert!(certified.iter().any(|line| is_for(&line)), "pki.sh has no --host {host}");
        }
        let identity = value("--identity").expect("each part has one");
        let folder = identity.strip_prefix("/pki/").expect("below the volume");
        let makes =
            |line: &&Vec<String>| line.windows(2).any(|w| w[0] == "--out" && w[1] == folder);
        assert!(certified.iter().any(|line| makes(&line)), "pki.sh makes no {folder}");
    }
    assert_eq!(roles.into_iter().collect::<Vec<_>>(), ["control", "gateway", "worker"]);
}

/// All containers in a manifest.
fn containers(manifest: &Value) -> Vec<&Value> {
    let pod = &manifest["spec"]["template"]["spec"];
    pod["containers"].as_array().map_or(Vec::new(), |all| all.iter().collect())
}

/// Renders a datacenter as `render.sh` does.
fn render(region: &str, node: &str) -> String {
    let script = deploy().join("kubernetes/render.sh");
    let out = Command::new("sh")
        .arg(script)
        .envs([("REGION", region), ("NODE_ID", node), ("DOMAIN", "mainstay.example")])
        .output()
        .expect("a shell");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn three_datacenters_render_to_one_cluster() {
    let mut members = BTreeSet::new();
    for (region, node) in [("eu", "1"), ("us", "2"), ("ap", "3")] {
        let text = render(region, node);
        assert!(!text.contains("${"), "{region}: something was not put in");
        let manifests = documents(&text);
        let mut seen = Vec::new();
        for manifest in &manifests {
            assert!(manifest["apiVersion"].is_string() && manifest["kind"].is_string());
            for container in containers(manifest) {
                let line = strings(&container["args"]);
                check_line(&line, region);
                check_probes(container);
                check_security(manifest, container);
                seen.push(line[0].clone());
                members.extend(
                    line.iter().filter_map(|w| w.strip_prefix("--members=")).map(str::to_owned),
                );
                if let Some(own) = line.iter().find_map(|w| w.strip_prefix("--advertise=control."))
                {
                    assert!(own.starts_with(region), "{own}");
                    let list = members.first().expect("the members are named before");
                    assert!(list.contains(&format!("{node}=control.{own}")), "{list} has no {own}");
                }
            }
            let config = manifest["data"]["mainstay.toml"].as_str();
            if let Some(config) = config {
                let file = tempfile::NamedTempFile::new().expect("a scratch file");
                std::fs::write(file.path(), config).expect("room");
                let roles = check_file(file.path()).expect("the file in the manifest is right");
                assert!(roles.iter().all(|role| ROLES.contains(role)) && roles.len() == 3);
            }
        }
        assert_eq!(seen, ["control", "worker", "gateway"], "{region}");
    }
    assert_eq!(members.len(), 1, "all datacenters name the same members");
}

fn check_probes(container: &Value) {
    let name = container["name"].as_str().expect("a name");
    let ports = container["ports"].as_array().expect("ports");
    let mut probes = 0;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let Some(get) = container[probe]["httpGet"].as_object() else { continue };
        probes += 1;
        assert!(matches!(get["path"].as_str(), Some("/livez" | "/readyz")), "{name}: {probe}");
        let port = ports.iter().find(|port| port["name"] == get["port"]).expect("a named port");
        let number = port["containerPort"].as_u64().expect("a number");
        let args = strings(&container["args"]);
        let listens = |flag: &str| args.contains(&format!("--{flag}=0.0.0.0:{number}"));
        // Gateways have HTTP of their own.
        let flag = if name == "gateway" { "listen" } else { "metrics-listen" };
        assert!(listens(flag), "{name}: nothing listens on {number} for {probe}");
    }
    assert!(probes >= 2, "{name}");
}

fn check_security(manifest: &Value, container: &Value) {
    let pod = &manifest["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["automountServiceAccountToken"], false);
    // Names that the system makes up for services would look like settings.
    assert_eq!(pod["enableServiceLinks"], false);
    let locked = &container["securityContext"];
    assert_eq!(locked["allowPrivilegeEscalation"], false);
    assert_eq!(locked["readOnlyRootFilesystem"], true);
    assert!(container["resources"]["limits"]["memory"].is_string());
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let volumes = pod["volumes"].as_array().expect("volumes");
    let claims = manifest["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    for mount in mounts {
        let is_it = |name: &Value| *name == mount["name"];
        let there = volumes.iter().any(|v| is_it(&v["name"]))
            || claims.iter().any(|c| is_it(&c["metadata"]["name"]));
        assert!(there, "no volume {}", mount["name"]);
    }
}

/// Command lines in pages under `docs/operate` that are not of one's own machine.
#[test]
fn what_the_pages_say_to_type_is_a_command() {
    let mut tried = 0;
    for page in ["README.md", "../monitoring.md", "../datacenters.md", "../doctor.md"] {
        let text = read(page);
        for block in text.split("```").skip(1).step_by(2) {
            let lines = block.lines().map(|line| line.split(" # ").next().unwrap_or_default());
            for line in lines.filter(|line| line.starts_with("mainstay ")) {
                let line = line.split(" > ").next().unwrap_or_default();
                let line = line.replace('…', "").replace("DOMAIN", "example.org");
                check_line(&words(&line)[1..], page);
                tried += 1;
            }
        }
    }
    assert!(tried >= 12, "{tried}");
}
