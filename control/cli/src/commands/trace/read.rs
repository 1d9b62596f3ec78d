//! Trace files, read for playing and for analysing.
//!
//! Files are bounded and read one after the other; a folder's sessions come in the order of their names, so that the
//! same folder is the same trace on every machine. What is not of a form that is known names its file and its line.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use mainstay_replay::{Mix, ReadSettings, Trace, TraceBuilder, claude_code_session, rows};

/// The largest file of a trace, and the most files.
const FILE_BYTES_MAX: u64 = 1 << 30;
const FILES_MAX: usize = 100_000;

/// The trace of a file, or of a folder's sessions.
pub(crate) fn trace(path: &Path, settings: &ReadSettings) -> Result<Trace> {
    let mut builder = TraceBuilder::default();
    for file in files(path)? {
        let text = file_bytes(&file)?;
        let result = match file.extension().and_then(|e| e.to_str()) {
            Some("gz" | "zst") => bail!("{} is packed; unpack it first", file.display()),
            Some("json") => claude_code_session(&text, settings, &mut builder),
            _ => rows(&String::from_utf8_lossy(&text), settings, &mut builder),
        };
        result.with_context(|| file.display().to_string())?;
    }
    builder.build().with_context(|| path.display().to_string())
}

/// Generated traffic.
pub(crate) fn mix(name: &str, sessions: usize, seed: u64) -> Result<Trace> {
    let names = Mix::NAMES.join(", ");
    let mix = Mix::named(name);
    let mix = mix.with_context(|| format!("no mix is called {name}; use one of {names}"))?;
    Ok(mix.generate(sessions, seed)?)
}

/// The file itself, or the sessions of a folder in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "json") {
            files.push(file);
        }
        ensure!(files.len() <= FILES_MAX, "{} holds over {FILES_MAX} sessions", path.display());
    }
    files.sort();
    Ok(files)
}

pub(crate) fn file_bytes(path: &Path) -> Result<Vec<u8>> {
    let unread = || format!("cannot read {}", path.display());
    let bytes = fs::metadata(path).with_context(unread)?.len();
    ensure!(bytes <= FILE_BYTES_MAX, "{} is over {FILE_BYTES_MAX} bytes", path.display());
    fs::read(path).with_context(unread)
}
