//! What cannot start says why and what to type next; nothing hangs, nothing panics.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Process, free_port, run_cli};
use serde_json::json;

use crate::fences::root;
use crate::user;

/// Runs `serve` with these arguments; it must end by itself, with an error that holds all of `words`.
fn refuses(extra: &[&str], words: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let listen = format!("127.0.0.1:{}", free_port());
    let data = dir.path().to_string_lossy().into_owned();
    let mut args: Vec<String> = vec!["serve".into()];
    if !extra.contains(&"--listen") {
        args.extend(["--listen".into(), listen]);
    }
    if !extra.contains(&"--data-dir") {
        args.extend(["--data-dir".into(), data]);
    }
    args.extend(extra.iter().map(ToString::to_string));
    let mut process = Process::start("serve", &args)?;
    let code = process.wait_exit(Duration::from_secs(60))?;
    // The readers of its output may be a moment behind.
    std::thread::sleep(Duration::from_millis(100));
    let output = process.output();
    ensure!(code != 0, "it ended well:\n{output}");
    ensure!(!output.contains("panicked"), "it panicked:\n{output}");
    ensure!(output.contains("error: "), "no error line:\n{output}");
    for word in words {
        ensure!(output.contains(word), "no {word:?} in:\n{output}");
    }
    Ok(())
}

fn compile(dir: &Path, name: &str, source: &str) -> Result<String> {
    let (c, so) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.so")));
    std::fs::write(&c, source)?;
    let include = root().join("engine-abi/include");
    let status = Command::new("gcc")
        .args(["-shared", "-fPIC", "-I"])
        .arg(include)
        .arg("-o")
        .arg(&so)
        .arg(&c)
        .status()?;
    ensure!(status.success(), "gcc failed on {name}");
    Ok(so.to_string_lossy().into_owned())
}

#[test]
fn libraries_that_are_no_engine() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = dir.path().join("text.so");
    std::fs::write(&text, "this is no library")?;
    refuses(&["--engine", &text.to_string_lossy()], &["text.so"])?;
    let empty = compile(dir.path(), "empty", "int nothing(void) { return 0; }")?;
    refuses(&["--engine", &empty], &["mse_magic_v1"])?;
    let magic = |major: &str, body: &str| {
        format!(
            "#include \"mainstay_engine.h\"\n#include <stdlib.h>\n\
             static mse_magic m = {{ {{'M','A','I','N','S','T','A','Y'}}, sizeof(mse_magic), {major}, MSE_ABI_MINOR, 0, 64, 1, MSE_LAYOUT, {{\"v\",1}}, {{\"n\",1}}, {{\"1\",1}} }};\n\
             MSE_EXPORT const mse_magic *mse_magic_v1(void) {{ return &m; }}\n\
             MSE_EXPORT mse_rc mse_open_v1(const mse_host *h, const mse_vtable **o, mse_err *e) {{ (void)h; (void)o; (void)e; {body} }}\n"
        )
    };
    let major = compile(dir.path(), "major", &magic("9", "return MSE_E_INTERNAL;"))?;
    refuses(&["--engine", &major], &["major", "9"])?;
    let crash = compile(dir.path(), "crash", &magic("MSE_ABI_MAJOR", "abort(); return 0;"))?;
    refuses(&["--engine", &crash], &["SIGABRT"])?;
    refuses(&["--engine", "no-such-file.so"], &["no-such-file.so"])
}

#[test]
fn checkpoints_that_are_broken() -> Result<()> {
    let fixture = root().join("plugins/native/fixtures/llama-f32");
    let copy = |without: &str| -> Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        for entry in std::fs::read_dir(&fixture).context("the fixture is there")? {
            let entry = entry?;
            if entry.file_name() != without {
                std::fs::copy(entry.path(), dir.path().join(entry.file_name()))?;
            }
        }
        Ok(dir)
    };
    let truncated = copy("")?;
    let weights = truncated.path().join("model.safetensors");
    let bytes = std::fs::read(&weights)?;
    std::fs::write(&weights, &bytes[..bytes.len() / 2])?;
    refuses(&[&truncated.path().to_string_lossy()], &["model.safetensors"])?;
    let toothless = copy("tokenizer.json")?;
    refuses(&[&toothless.path().to_string_lossy()], &["tokenizer.json"])?;
    refuses(&["no-such-folder"], &["no-such-folder"])
}

#[test]
fn a_port_in_use() -> Result<()> {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let listen = taken.local_addr()?.to_string();
    refuses(&["--listen", &listen], &[&listen, "--listen"])
}

#[tokio::test]
async fn a_data_directory_that_is_broken_or_taken() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().to_string_lossy().into_owned();
    let listen = format!("127.0.0.1:{}", free_port());
    let args = ["serve", "--listen", &listen, "--data-dir", &data].map(str::to_owned);
    let mut process = Process::start("serve", &args)?;
    process.wait_ready()?;
    Client::new(&format!("http://{listen}")).chat(&json!([user("Hello!")]), 4).await?;
    // Another process on the same directory is told so.
    refuses(&["--data-dir", &data], &["control"])?;
    process.kill()?;
    let mut broken = 0;
    let mut open = vec![dir.path().to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                open.push(path);
            } else if name.starts_with("MANIFEST") || name == "CURRENT" {
                std::fs::write(&path, b"\x00garbage\xff")?;
                broken += 1;
            }
        }
    }
    assert!(broken > 0, "no RocksDB files were found");
    refuses(&["--data-dir", &data], &["control"])
}

#[test]
fn usage_errors_are_two_and_no_gateway_is_four() -> Result<()> {
    let (code, _, err) = run_cli(&["serve", "--no-such-flag"])?;
    assert!(code == 2 && err.contains("--no-such-flag"), "{code} {err}");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let (code, _, err) = run_cli(&["pin", "ls", "--addr", &nobody])?;
    assert!(code == 4 && err.contains("mainstay serve"), "{code} {err}");
    Ok(())
}

#[test]
fn a_pace_of_elections_that_makes_no_sense() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().to_string_lossy().into_owned();
    let run = |extra: &[&str]| {
        let args = ["control", "--listen", "127.0.0.1:0", "--data-dir", &data];
        run_cli(&[&args, extra].concat())
    };
    let (code, _, err) = run(&["--election-ms", "5"])?;
    assert!(code == 2 && err.contains("MIN..MAX"), "{code} {err}");
    for extra in [["--election-ms", "900..300"], ["--heartbeat-ms", "900"]] {
        let (code, _, err) = run(&extra)?;
        assert!(code == 1 && err.contains("settings: election"), "{code} {err}");
    }
    Ok(())
}
