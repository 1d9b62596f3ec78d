//! The commands of the README and of `docs/start`, run as a reader would run them.
//!
//! A command in a document rots silently, so those that a fence marks with `sh test` are run here against a fresh
//! `mainstay serve`. What the README shows beyond that may only build, install or start the server, and every
//! path and link that it names must lead somewhere. A fence without an end, or one of an unknown kind, fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Process, binary, free_port};

/// The address that documents use; each test serves on one of its own.
const ADDRESS: &str = "127.0.0.1:8000";
/// No command of a document needs longer, even on a loaded machine.
const BLOCK_SECONDS_MAX: &str = "120";
const README: &str = "README.md";
/// Documents whose `sh test` blocks are run, beside the README.
const START: [&str; 3] =
    ["docs/start/install.md", "docs/start/serve.md", "docs/start/first-pin.md"];
/// Documents whose relative links are followed, beside those.
const LINKED: [&str; 6] = [
    "docs/architecture.md",
    "docs/changelog.md",
    "docs/glossary.md",
    "docs/reference/cli.md",
    "docs/reference/errors.md",
    "docs/reference/http.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(document: &str) -> Result<String> {
    let path = root().join(document);
    std::fs::read_to_string(&path).with_context(|| format!("reading {document}"))
}

/// A fenced block of a document.
struct Block {
    place: String,
    /// What follows the opening backticks.
    info: String,
    text: String,
}

fn blocks(document: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in read(document)?.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (open.take(), fence) {
            (None, Some(info)) => {
                let place = format!("{document}:{}", at + 1);
                open = Some(Block { place, info: info.trim().to_owned(), text: String::new() });
            }
            (Some(block), Some(_)) => found.push(block),
            (Some(mut block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    if let Some(block) = open {
        anyhow::bail!("{}: the block has no end", block.place);
    }
    Ok(found)
}

fn of_kind<'a>(blocks: &'a [Block], info: &'a str) -> impl Iterator<Item = &'a Block> {
    blocks.iter().filter(move |block| block.info == info)
}

/// The arguments of the `mainstay serve` that a `sh server` block shows.
fn server_arguments(block: &Block) -> Result<Vec<String>> {
    let mut arguments = None;
    for line in block.text.lines() {
        if line.starts_with("export PATH=") {
            continue;
        }
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let serves = words.len() >= 2 && words[0] == "mainstay" && words[1] == "serve";
        ensure!(serves && arguments.is_none(), "{}: unexpected {line:?}", block.place);
        arguments = Some(words[1..].to_vec());
    }
    arguments.with_context(|| format!("{}: no `mainstay serve`", block.place))
}

/// Starts a server with these arguments, on a port and in a folder of its own.
fn serve(mut arguments: Vec<String>) -> Result<(Process, String, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let address = format!("127.0.0.1:{}", free_port());
    let data = dir.path().to_string_lossy().into_owned();
    arguments.extend(["--listen".to_owned(), address.clone(), "--data-dir".to_owned(), data]);
    let mut process = Process::start("serve", &arguments)?;
    process.wait_ready()?;
    Ok((process, address, dir))
}

/// Runs a block with the binary on the `PATH`; answers with what it printed.
fn run(block: &Block, address: &str) -> Result<String> {
    let binary = binary();
    let folder = binary.parent().context("the binary lies in a folder")?.to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)))?;
    let script = block.text.replace(ADDRESS, address);
    let out = Command::new("timeout")
        .args([BLOCK_SECONDS_MAX, "bash", "-euc", &script])
        .env("PATH", path)
        .env("MAINSTAY_ADDR", format!("http://{address}"))
        .env_remove("MAINSTAY_API_KEY")
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .context("bash and timeout are there")?;
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.success(),
        "{}: {}\n{script}\n--- stdout\n{printed}\n--- stderr\n{complaints}",
        block.place,
        out.status
    );
    ensure!(!printed.trim().is_empty(), "{}: printed nothing:\n{script}", block.place);
    Ok(printed)
}

/// Whether a reader without a server may type this line.
fn is_offline(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["make" | "cd", ..] | ["git", "clone", ..] | ["pip", "install", ..] => true,
        [program, ..] => program.starts_with("python"),
        [] => true,
    }
}

#[test]
fn the_commands_of_the_readme_work() -> Result<()> {
    let blocks = blocks(README)?;
    let servers: Vec<&Block> = of_kind(&blocks, "sh server").collect();
    ensure!(servers.len() == 1, "the README starts the server in {} places", servers.len());
    let (process, address, _dir) = serve(server_arguments(servers[0])?)?;
    let mut printed = String::new();
    let mut count = 0;
    for block in of_kind(&blocks, "sh test") {
        printed.push_str(&run(block, &address).with_context(|| process.output())?);
        count += 1;
    }
    assert!(count >= 4, "the README has only {count} blocks that can be tested");
    // The blocks would also pass if nobody answered anything, so a few words of the answers are looked for.
    for word in
        ["chat.completion", "output_text", "message_stop", "leader m1", "\"object\": \"pin\""]
    {
        assert!(
            printed.contains(word),
            "no {word:?} in what the README's commands print:\n{printed}"
        );
    }
    Ok(())
}

#[test]
fn other_commands_of_the_readme_only_build_and_install() -> Result<()> {
    for block in blocks(README)? {
        let kind = block.info.split_whitespace().next().unwrap_or_default();
        if kind != "sh" {
            let other = ["text", "python", "json", "toml"].contains(&kind);
            ensure!(other, "{}: commands go into `sh` blocks, not {kind:?}", block.place);
            continue;
        }
        match block.info.as_str() {
            "sh test" | "sh server" => {}
            "sh" => {
                let odd = block.text.lines().find(|line| !is_offline(line));
                ensure!(odd.is_none(), "{}: mark it with `test`: {odd:?}", block.place);
            }
            info => anyhow::bail!("{}: unknown kind {info:?}", block.place),
        }
    }
    Ok(())
}

#[test]
fn the_commands_of_the_first_steps_work() -> Result<()> {
    for document in START {
        let blocks = blocks(document)?;
        ensure!(of_kind(&blocks, "sh test").count() > 0, "{document} has nothing to test");
        let (process, address, _dir) = serve(vec!["serve".to_owned()])?;
        for block in of_kind(&blocks, "sh test") {
            run(block, &address).with_context(|| process.output())?;
        }
    }
    Ok(())
}

/// The paths in backticks in the first column of the table below a heading.
fn table_paths(text: &str, heading: &str) -> Vec<String> {
    let section = text.lines().skip_while(|line| *line != heading).skip(1);
    let section = section.take_while(|line| !line.starts_with("## "));
    let cells = section.filter_map(|line| line.strip_prefix('|')?.split('|').next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_places_that_the_readme_names_exist() -> Result<()> {
    let paths = table_paths(&read(README)?, "## Where things are");
    ensure!(paths.len() >= 10, "only {} paths were found: {paths:?}", paths.len());
    let missing: Vec<&String> = paths.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "the README names what is not there: {missing:?}");
    Ok(())
}

/// Heading texts as the anchors that renderers make of them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut followed = 0;
    for document in std::iter::once(README).chain(START).chain(LINKED) {
        let folder = root().join(document).parent().context("a document has a folder")?.to_owned();
        let text = read(document)?;
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if path.is_empty() { root().join(document) } else { folder.join(path) };
            ensure!(to.exists(), "{document}: no {target}");
            if !anchor.is_empty() {
                let known = anchors(&std::fs::read_to_string(&to)?);
                ensure!(
                    known.iter().any(|a| a == anchor),
                    "{document}: {target}; there is {known:?}"
                );
            }
            followed += 1;
        }
    }
    assert!(followed >= 10, "only {followed} links were found");
    Ok(())
}
