//! Looking after control members by the command line: the lead, joining, a lost disk, and a data directory that
//! is inspected, backed up and restored.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Process, free_port, run_cli};
use serde_json::Value;

/// Long enough for a busy machine; tests that pass never wait this long.
const SOON: Duration = Duration::from_secs(40);

fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < until, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn member(id: u64, address: &str, dir: &Path, origin: [&str; 2]) -> Result<Process> {
    let data = dir.join(format!("m{id}"));
    let id_text = id.to_string();
    let args = [
        "control",
        "--node-id",
        &id_text,
        "--listen",
        address,
        "--data-dir",
        &data.to_string_lossy(),
        origin[0],
        origin[1],
    ];
    let mut process = Process::start(&format!("m{id}"), &args.map(str::to_owned))?;
    process.wait_ready()?;
    Ok(process)
}

/// `mainstay control members …` with JSON as its answer.
fn members(control: &str, args: &[&str]) -> Result<(i32, Value, String)> {
    let all = [&["control", "members"][..], args, &["--control", control, "-o", "json"]].concat();
    let (code, out, err) = run_cli(&all)?;
    Ok((code, serde_json::from_str(&out).unwrap_or(Value::Null), err))
}

fn find(list: &Value, id: u64) -> Option<&Value> {
    list.as_array()?.iter().find(|m| m["id"] == id)
}

fn leader(list: &Value) -> Option<u64> {
    list.as_array()?.iter().find(|m| m["role"] == "leader")?["id"].as_u64()
}

#[test]
fn a_member_that_lost_its_disk_is_told_the_cure() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let addresses: Vec<String> = (0..4).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let list: Vec<String> = (1..).zip(&addresses[..3]).map(|(id, a)| format!("{id}={a}")).collect();
    let (list, control) = (list.join(","), addresses[..3].join(","));
    let mut running = Vec::new();
    for (id, address) in (1..).zip(&addresses[..3]) {
        running.push(member(id, address, dir.path(), ["--members", &list])?);
    }
    // Every directory becomes known, whoever was late when the group was founded.
    let first = eventually("founding", || {
        let (_, seen, _) = members(&control, &["ls"])?;
        let known = |id| find(&seen, id).is_some_and(|m| m["instance"] != "0000000000000000");
        Ok((1..=3).all(known).then(|| leader(&seen)).flatten())
    })?;
    let next = (1..=3).find(|id| *id != first).context("there are three")?;
    let (code, seen, err) = members(&control, &["transfer", &next.to_string()])?;
    ensure!(code == 0, "{err}");
    assert_eq!(leader(&seen), Some(next), "{seen}");

    let wiped = (1..=3).find(|id| *id != next).context("there are three")?;
    let (at, place) = (wiped.to_string(), wiped as usize - 1);
    running[place].kill()?;
    std::fs::remove_dir_all(dir.path().join(format!("m{wiped}")))?;
    running[place] = member(wiped, &addresses[place], dir.path(), ["--members", &list])?;
    let cure = format!("mainstay control members rm {wiped}");
    eventually("telling the cure", || Ok(running[place].output().contains(&cure).then_some(())))?;
    let (code, _, err) = members(&control, &["add", &at, &addresses[place]])?;
    assert!(code == 5 && err.contains(&cure), "{code} {err}");
    let (_, seen, _) = members(&control, &["ls"])?;
    assert_eq!(find(&seen, wiped).map(|m| &m["last_log_index"]), Some(&Value::from(0)), "{seen}");

    let (code, seen, err) = members(&control, &["rm", &at])?;
    assert!(code == 0 && find(&seen, wiped).is_none(), "{seen} {err}");
    let (code, _, err) = members(&control, &["rm", &at])?;
    assert!(code == 3 && err.contains("no member"), "{code} {err}");
    running[place].kill()?;
    let fourth = member(4, &addresses[3], dir.path(), ["--join", &control])?;
    eventually("joining", || {
        let (_, seen, _) = members(&control, &["ls"])?;
        let role = find(&seen, 4).map(|m| m["role"].clone());
        Ok(role.is_some_and(|r| r == "follower").then_some(()))
    })?;
    // The table is for people.
    let (code, out, _) = run_cli(&["control", "members", "ls", "--control", &addresses[3]])?;
    assert!(code == 0 && out.starts_with("cluster version 4\nMEMBER"), "{out}");
    drop(fourth);
    Ok(())
}

fn json_of(args: &[&str]) -> Result<Value> {
    let (code, out, err) = run_cli(args)?;
    ensure!(code == 0, "{args:?}: {err}");
    Ok(serde_json::from_str(&out)?)
}

#[test]
fn a_restored_directory_has_the_pins_of_the_old_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (copy, new_home) = (path("copy"), path("new"));
    // `serve` keeps its member in a folder of its own.
    let (old, new) = (path("old/control"), path("new/control"));
    let listen = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{listen}");
    let serve = |data: &str| -> Result<Process> {
        let args = ["serve", "--listen", &listen, "--data-dir", data].map(str::to_owned);
        let mut process = Process::start("serve", &args)?;
        process.wait_ready()?;
        Ok(process)
    };
    let mut process = serve(&path("old"))?;
    let prefix = crate::filler(5, 20);
    let pin =
        json_of(&["pin", "add", "--system", &prefix, "--ttl", "1h", "--addr", &url, "-o", "json"])?;
    // Killed, not asked to end: what was acknowledged is on disk.
    process.kill()?;

    let seen = json_of(&["control", "inspect", &old, "-o", "json"])?;
    assert_eq!((&seen["member"], &seen["problems"]), (&1.into(), &serde_json::json!([])));
    assert_eq!(seen["log"]["kinds"]["put_pin"], 1, "{seen}");
    let saved = json_of(&["control", "backup", &old, &copy, "-o", "json"])?;
    assert_eq!(saved["last_index"], seen["log"]["last"]["index"]);
    let made = json_of(&["control", "restore", &copy, &new, "--member", "1", "-o", "json"])?;
    assert_eq!(made["pins_live"], 1, "{made}");
    assert_ne!(made["instance"], seen["instance"]);
    let (code, out, err) = run_cli(&["control", "inspect", &new])?;
    let id = pin["id"].as_str().context("a pin has an id")?;
    assert!(code == 0 && out.contains(id), "{out}{err}");

    let mut bytes = std::fs::read(&copy)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&copy, bytes)?;
    let (code, _, err) = run_cli(&["control", "restore", &copy, &path("no"), "--member", "1"])?;
    assert!(code == 1 && err.contains("not a whole backup"), "{code} {err}");
    assert!(!Path::new(&path("no")).exists());
    let (code, _, err) = run_cli(&["control", "inspect", &path("no")])?;
    assert!(code == 1 && err.contains("no data of a control member"), "{code} {err}");

    let _restored = serve(&new_home)?;
    let list = json_of(&["pin", "ls", "--addr", &url, "-o", "json"])?;
    assert_eq!(list["data"][0]["id"], pin["id"], "{list}");
    assert!(list["data"][0]["ttl_left_ms"].as_u64().is_some_and(|left| left > 3_000_000), "{list}");
    Ok(())
}
