//! Readers of recorded traffic: one file of production chats, or a folder of coding sessions.
//!
//! Traces name blocks by numbers; the readers chain those into keys, so equal numbers after equal prefixes are
//! equal blocks. Files are somebody else's: what is too large, not JSON or not of the form is an error that names
//! the place, and lengths are bounded.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use mainstay_index::BlockKey;
use serde::Deserialize;

use super::rng::{Rng, chain};
use super::sessions::{ROOT_KEY, Request, Source};

/// Tokens of a block in the chat trace, and the blocks that one of them becomes.
const CHAT_TRACE_TOKENS: u64 = 512;
const BLOCK_TOKENS: u64 = 16;
const BLOCKS_PER_ID: u64 = CHAT_TRACE_TOKENS / BLOCK_TOKENS;
/// Bounds on what is read.
const LINE_BYTES_MAX: u64 = 4 << 20;
const FILE_BYTES_MAX: u64 = 256 << 20;
const FILES_MAX: usize = 10_000;
const REQUEST_BLOCKS_MAX: usize = 65_536;
/// Blocks of all requests together: a gibibyte of keys.
const KEYS_MAX: usize = 128 << 20;

/// Requests that were read ahead.
pub(super) struct Trace {
    requests: std::vec::IntoIter<Request>,
    pub(super) block_tokens: u64,
}

impl Source for Trace {
    fn next(&mut self, request: &mut Request) -> bool {
        self.requests.next().is_some_and(|next| {
            *request = next;
            true
        })
    }
}

/// Reads at most `count` requests of a file of chats or of a folder of sessions.
pub(super) fn read(path: &Path, count: usize, seed: u64) -> Result<Trace> {
    let (requests, block_tokens) =
        if path.is_dir() { read_sessions(path, count, seed)? } else { read_chats(path, count)? };
    ensure!(!requests.is_empty(), "{} holds no requests", path.display());
    Ok(Trace { requests: requests.into_iter(), block_tokens })
}

/// Numbers of blocks that a trace does not name.
const PRIVATE: u64 = 1 << 63;

#[derive(Deserialize)]
struct ChatLine {
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

fn read_chats(path: &Path, count: usize) -> Result<(Vec<Request>, u64)> {
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let (mut requests, mut fresh, mut keys, mut line) = (Vec::new(), PRIVATE, 0, String::new());
    while requests.len() < count {
        line.clear();
        let number = requests.len() + 1;
        let read = std::io::Read::take(&mut reader, LINE_BYTES_MAX).read_line(&mut line);
        let bytes = read.with_context(|| format!("line {number} is no text"))?;
        if bytes == 0 {
            break;
        }
        ensure!(
            (bytes as u64) < LINE_BYTES_MAX,
            "line {number} is longer than {LINE_BYTES_MAX} bytes"
        );
        if line.trim().is_empty() {
            continue;
        }
        let chat: ChatLine = serde_json::from_str(&line).with_context(|| {
            format!("line {number}: expected input_length, output_length and hash_ids")
        })?;
        let request = chat_request(&chat, &mut fresh);
        keys += request.chain.len();
        ensure!(keys <= KEYS_MAX, "line {number}: more than {KEYS_MAX} blocks; lower --requests");
        requests.push(request);
    }
    Ok((requests, BLOCK_TOKENS))
}

/// The named blocks as far as the input fills them, and private ones for the output.
fn chat_request(chat: &ChatLine, fresh: &mut u64) -> Request {
    let named = (chat.hash_ids.len() as u64).saturating_mul(BLOCKS_PER_ID);
    let prompt = (chat.input_length / BLOCK_TOKENS).min(named).min(REQUEST_BLOCKS_MAX as u64);
    let whole = chat.input_length.saturating_add(chat.output_length) / BLOCK_TOKENS;
    let decoded = whole.saturating_sub(chat.input_length / BLOCK_TOKENS).min(4_096);
    let named = chat.hash_ids.iter().flat_map(|id| {
        let first = (id & (PRIVATE - 1)).wrapping_mul(BLOCKS_PER_ID) & (PRIVATE - 1);
        (0..BLOCKS_PER_ID).map(move |part| first | part)
    });
    let private = (0..decoded).map(|part| *fresh + part);
    let contents = named.take(prompt as usize).chain(private);
    let request = Request { chain: chained(contents), prompt_blocks: prompt as usize };
    *fresh += decoded;
    request
}

fn chained(contents: impl Iterator<Item = u64>) -> Vec<BlockKey> {
    let keys = contents.scan(ROOT_KEY, |parent, content| {
        let key = chain(*parent, content);
        *parent = key.0;
        Some(key)
    });
    keys.collect()
}

/// A session, a subagent inside one, or a single request: the trace has one shape for all three.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    t: f64,
    #[serde(default)]
    out: u64,
    hash_ids: Option<Vec<u64>>,
    requests: Option<Vec<Entry>>,
    #[serde(default)]
    block_size: u64,
    #[serde(default)]
    tool_tokens: u64,
    #[serde(default)]
    system_tokens: u64,
}

/// Starts of sessions are spread over this time, and pauses are cut to the second number.
const SPREAD_S: f64 = 7_200.0;
const PAUSE_S_MAX: f64 = 120.0;

/// What sessions have in common: prompts of tools and system, which are taken as equal where their sizes are.
struct Reading {
    shared: HashMap<(u64, u64), u64>,
    block_tokens: u64,
    requests: Vec<(f64, Request)>,
    keys: usize,
}

fn read_sessions(dir: &Path, count: usize, seed: u64) -> Result<(Vec<Request>, u64)> {
    let mut rng = Rng::new(seed ^ 0x7ace);
    let mut reading =
        Reading { shared: HashMap::new(), block_tokens: 0, requests: Vec::new(), keys: 0 };
    for (number, path) in session_files(dir)?.iter().enumerate() {
        if reading.requests.len() >= count {
            break;
        }
        let bytes = fs::metadata(path)?.len();
        ensure!(bytes <= FILE_BYTES_MAX, "{} is over {FILE_BYTES_MAX} bytes", path.display());
        let session: Entry = serde_json::from_slice(&fs::read(path)?)
            .with_context(|| format!("{} is no session", path.display()))?;
        let block_tokens = session.block_size.max(1);
        if reading.block_tokens == 0 {
            reading.block_tokens = block_tokens;
        }
        ensure!(
            block_tokens == reading.block_tokens,
            "{}: blocks of {block_tokens} tokens, others have {}",
            path.display(),
            reading.block_tokens
        );
        let start = rng.unit() * SPREAD_S;
        reading.walk(&session, number as u64, start)?;
    }
    reading.requests.sort_by(|a, b| a.0.total_cmp(&b.0));
    reading.requests.truncate(count);
    Ok((reading.requests.into_iter().map(|(_, r)| r).collect(), reading.block_tokens))
}

fn session_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            bail!("{} holds more than {FILES_MAX} sessions", dir.display());
        }
    }
    files.sort();
    Ok(files)
}

impl Reading {
    /// Takes in the requests of one agent at their times, and those of its subagents at theirs.
    fn walk(&mut self, agent: &Entry, session: u64, start_s: f64) -> Result<()> {
        let count = self.shared.len() as u64;
        let sizes = (agent.tool_tokens, agent.system_tokens);
        let shared = *self.shared.entry(sizes).or_insert(count);
        let tokens = agent.tool_tokens.saturating_add(agent.system_tokens);
        let shared_blocks = tokens / self.block_tokens;
        // Numbers count within a session only; the shared part gets numbers that all sessions see alike.
        let content = |(at, id): (usize, &u64)| match (at as u64) < shared_blocks {
            true => PRIVATE | shared << 32 | at as u64,
            false => (session + 1) << 36 ^ (id & (PRIVATE - 1)),
        };
        let entries = agent.requests.as_deref().unwrap_or_default();
        let own: Vec<&Entry> = entries.iter().filter(|e| e.hash_ids.is_some()).collect();
        let (mut now_s, mut before_s, mut number) = (start_s, 0.0, 0);
        for entry in entries {
            now_s += (entry.t - before_s).clamp(0.0, PAUSE_S_MAX);
            before_s = entry.t;
            if entry.requests.is_some() {
                self.walk(entry, session, now_s)?;
            }
            let Some(ids) = &entry.hash_ids else { continue };
            number += 1;
            let next = own.get(number).and_then(|e| e.hash_ids.as_deref()).unwrap_or_default();
            let decoded = decoded_ids(ids, next, entry.out / self.block_tokens);
            let prompt_blocks = ids.len().min(REQUEST_BLOCKS_MAX);
            let contents = ids[..prompt_blocks].iter().chain(decoded).enumerate().map(content);
            let request = Request { chain: chained(contents), prompt_blocks };
            self.keys += request.chain.len();
            ensure!(self.keys <= KEYS_MAX, "more than {KEYS_MAX} blocks; lower --requests");
            self.requests.push((now_s, request));
        }
        Ok(())
    }
}

/// The blocks that decoding appended: those by which the agent's next request goes on.
fn decoded_ids<'a>(ids: &[u64], next: &'a [u64], blocks: u64) -> &'a [u64] {
    if next.len() <= ids.len() || next[..ids.len()] != *ids {
        return &[];
    }
    let added = &next[ids.len()..];
    &added[..added.len().min(usize::try_from(blocks).unwrap_or(usize::MAX))]
}

#[cfg(test)]
mod tests;
