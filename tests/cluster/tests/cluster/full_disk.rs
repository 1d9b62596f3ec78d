//! A disk with no room left makes its tier small, and nothing else: every request is answered as before.
//!
//! The disk is a file system in memory, mounted in a namespace of the process's own; where none can be made, this is
//! said and nothing is shown.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use mainstay_cluster_tests::{Client, Process, binary, free_port};

use crate::tiers::{counter, stop, strings};
use crate::transfer::{content, first_token};
use crate::{cached, filler, prompt_tokens};

/// Lines of a text of some 2,500 tokens.
const LINES: u64 = 200;
/// Texts: together more than the disk has room for, and more than memory has.
const TEXTS: u64 = 30;
/// A gibibyte is left to others, so that this leaves 16 MiB to blocks.
const DISK: &str = "size=1040m";
/// Further requests, each text twice, until the disk is full.
const MORE_MAX: u64 = 100;

/// All roles in one process, whose disk tier lies on a small disk; `None` where there are no namespaces.
fn serve(dir: &Path, listen: &str) -> Result<Option<Process>> {
    let disk = dir.join("disk");
    std::fs::create_dir_all(&disk)?;
    let script = format!("mount -t tmpfs -o {DISK} none \"$1\" || exit 77; shift; exec \"$@\"");
    let mut args = strings(&["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    args.extend([disk.to_string_lossy().into_owned(), binary().to_string_lossy().into_owned()]);
    let tier = disk.join("tier").to_string_lossy().into_owned();
    let data = dir.join("data").to_string_lossy().into_owned();
    let config = dir.join("mainstay.toml");
    std::fs::write(&config, "[engine]\nblocks = 400\nthreads = 1\n")?;
    args.extend(strings(&["serve", "--listen", listen, "--data-dir", &data]));
    args.extend(strings(&["--config", &config.to_string_lossy(), "--host-memory", "4M"]));
    args.extend(strings(&["--disk-tier", &tier, "--disk-size", "256M"]));
    let unshare = Path::new("/usr/bin/unshare");
    if !unshare.exists() {
        return Ok(None);
    }
    let mut process = Process::start_as(unshare, "serve", &args)?;
    match process.wait_ready() {
        Ok(_) => Ok(Some(process)),
        Err(_) if process.output().contains("unshare:") => Ok(None),
        Err(error) => Err(error),
    }
}

#[tokio::test]
async fn a_full_disk_makes_the_tier_small_and_requests_go_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let listen = format!("127.0.0.1:{}", free_port());
    let (folder, at) = (dir.path().to_owned(), listen.clone());
    let started = tokio::task::spawn_blocking(move || serve(&folder, &at)).await??;
    let Some(process) = started else {
        println!("no namespaces here: nothing is shown of a full disk");
        return Ok(());
    };
    let client = Client::new(&format!("http://{listen}"));
    let mut answers = Vec::new();
    // Twice, so that the disk wants them; the engine and the memory have room for few.
    for _ in 0..2 {
        for n in 0..TEXTS {
            let (reply, _) = first_token(&client, &filler(120_000 + n, LINES)).await?;
            answers.push(content(&reply).clone());
        }
    }
    let (first, second) = answers.split_at(TEXTS as usize);
    assert_eq!(first, second, "answers are what they were");
    let of_disk = |name: &str| format!("mainstay_tier_{name}{{tier=\"disk\"}}");
    let (mut health, mut last) = (0, 120_000 + TEXTS - 1);
    // What finds no room in the queue to the disk is dropped, so a busy machine needs more of them to fill it.
    for more in 0..MORE_MAX {
        health = counter(&client, &of_disk("health")).await?;
        if health > 0 && counter(&client, &of_disk("evicted_total")).await? > 0 {
            break;
        }
        last = 130_000 + more / 2;
        first_token(&client, &filler(last, LINES)).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let blocks = counter(&client, &of_disk("blocks")).await?;
    let evicted = counter(&client, &of_disk("evicted_total")).await?;
    println!("full disk: health {health}, {blocks} blocks on it, {evicted} made room");
    ensure!(health == 1, "the tier does not say that it is small: {health}");
    ensure!(blocks > 0 && evicted > 0, "{blocks} blocks, {evicted} evicted");
    // What was asked last is still found, and what is new is answered.
    let (last, _) = first_token(&client, &filler(last, LINES)).await?;
    ensure!(cached(&last) > prompt_tokens(&last) / 2, "{last}");
    stop(process).await
}
