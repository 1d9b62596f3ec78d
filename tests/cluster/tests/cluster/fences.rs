//! Fenced blocks of documents, and how their commands are run: as a reader would, in a folder and on ports of their own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Process, binary, free_port, run_cli};
use tempfile::TempDir;

/// No command of a document needs longer, even on a loaded machine.
const BLOCK_SECONDS_MAX: &str = "120";
/// How long roles may take to end.
const STOP: Duration = Duration::from_secs(30);
/// How long members may take to have a leader.
const LEADER: Duration = Duration::from_secs(10);
/// Where documents say that the binary lies: after `make demo`, and after `make build`.
const BUILT: [&str; 2] =
    ["$HOME/.cache/mainstay/target/debug", "$HOME/.cache/mainstay/target/release"];
const HOST: &str = "127.0.0.1:";
/// Where roles listen, and commands look, when nobody says.
const GATEWAY: &str = "127.0.0.1:8000";
const MEMBER: &str = "127.0.0.1:7400";

pub(crate) fn root() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    Path::new(&here).join("../..")
}

pub(crate) fn read(document: &str) -> Result<String> {
    let path = root().join(document);
    std::fs::read_to_string(&path).with_context(|| format!("reading {document}"))
}

/// A fenced block of a document.
pub(crate) struct Block {
    pub(crate) place: String,
    /// What follows the opening backticks.
    pub(crate) info: String,
    pub(crate) text: String,
}

pub(crate) fn blocks(document: &str) -> Result<Vec<Block>> {
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

/// Where the blocks of one document are run.
pub(crate) struct Stage {
    dir: TempDir,
    /// The ports that documents name, and those that stand for them.
    ports: HashMap<u16, u16>,
    servers: Vec<Process>,
}

impl Stage {
    /// A folder with what a checkout has, so that paths of documents lead somewhere.
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for entry in std::fs::read_dir(root())? {
            let entry = entry?;
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with('.') {
                std::os::unix::fs::symlink(entry.path().canonicalize()?, dir.path().join(name))?;
            }
        }
        Ok(Self { dir, ports: HashMap::new(), servers: Vec::new() })
    }

    /// The text with ports of this stage in place of those on loopback, and the binary where it is.
    fn localised(&mut self, text: &str) -> Result<String> {
        let binary = binary();
        let folder = binary.parent().context("the binary lies in a folder")?.to_string_lossy();
        let text = BUILT.iter().fold(text.to_owned(), |text, built| text.replace(built, &folder));
        let mut parts = text.split(HOST);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            let port = part[..end].parse().unwrap_or(0);
            // Port 0 is any, already.
            let ours =
                if port == 0 { 0 } else { *self.ports.entry(port).or_insert_with(free_port) };
            out.push_str(&format!("{HOST}{ours}{}", &part[end..]));
        }
        Ok(out)
    }

    /// What a script is told of its surroundings.
    fn environment(&mut self) -> Result<Vec<(String, String)>> {
        let binary = binary();
        let folder = binary.parent().context("the binary lies in a folder")?.to_string_lossy();
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(vec![
            ("PATH".to_owned(), format!("{folder}:{path}")),
            ("HOME".to_owned(), self.dir.path().to_string_lossy().into_owned()),
            ("MAINSTAY_ADDR".to_owned(), format!("http://{}", self.localised(GATEWAY)?)),
        ])
    }

    /// Ends what runs, unless this is to run beside it, and starts each `mainstay` line of a block as if in a terminal of
    /// its own.
    pub(crate) fn serve(&mut self, block: &Block, beside: bool) -> Result<()> {
        if !beside {
            self.servers.clear();
        }
        let text = block.text.replace("\\\n", " ");
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line.starts_with("export PATH=") || line.starts_with('#') {
                continue;
            }
            let role = line.strip_prefix("mainstay ").and_then(|rest| rest.split(' ').next());
            let default = match role {
                Some("serve" | "gateway") => GATEWAY,
                Some("control") => MEMBER,
                Some("worker") => "",
                _ => anyhow::bail!("{}: a `server` block starts roles, not {line:?}", block.place),
            };
            let mut line = line.to_owned();
            if !default.is_empty() && !line.contains("--listen ") {
                line.push_str(&format!(" --listen {default}"));
            }
            let exports: String =
                self.environment()?.iter().map(|(k, v)| format!("export {k}={v:?}; ")).collect();
            let line = self.localised(&line)?;
            let script = format!("cd {:?}; {exports}exec {line}", self.dir.path());
            let arguments = ["-euc".to_owned(), script];
            self.servers.push(Process::start_as(Path::new("bash"), &line, &arguments)?);
        }
        ensure!(!self.servers.is_empty(), "{}: starts nothing", block.place);
        for server in &mut self.servers {
            server.wait_ready().with_context(|| block.place.clone())?;
        }
        self.wait_leader(&text)
    }

    /// Several members are ready before they have a leader, whom the block that follows asks for something. A group that
    /// has none by intention is waited for in vain.
    fn wait_leader(&mut self, text: &str) -> Result<()> {
        let members = text.lines().filter_map(|line| line.trim().strip_prefix("mainstay control "));
        let members: Vec<&str> = members.collect();
        let listens = members.first().and_then(|first| first.split("--listen ").nth(1));
        let Some(listen) = listens.filter(|_| members.len() > 1) else { return Ok(()) };
        let member = self.localised(listen.split(' ').next().unwrap_or_default())?;
        let begun = Instant::now();
        while begun.elapsed() < LEADER {
            let (_, out, _) = run_cli(&["control", "members", "--control", &member])?;
            if out.contains("leader") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Asks what runs to end, and waits until it has.
    pub(crate) fn stop(&mut self) -> Result<()> {
        for server in &self.servers {
            server.terminate()?;
        }
        for mut server in self.servers.drain(..) {
            server.wait_exit(STOP)?;
        }
        Ok(())
    }

    /// Runs a block to its end; answers with what it printed.
    pub(crate) fn run(&mut self, block: &Block) -> Result<String> {
        let script = self.localised(&block.text)?;
        let environment = self.environment()?;
        let out = Command::new("timeout")
            .args([BLOCK_SECONDS_MAX, "bash", "-euc", &script])
            .envs(environment)
            .env_remove("MAINSTAY_API_KEY")
            .env_remove("XDG_DATA_HOME")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .context("bash and timeout are there")?;
        let printed = String::from_utf8_lossy(&out.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&out.stderr);
        ensure!(
            out.status.success(),
            "{}: {}\n{script}\n--- stdout\n{printed}\n--- stderr\n{complaints}\n--- servers\n{}",
            block.place,
            out.status,
            self.told()
        );
        ensure!(!printed.trim().is_empty(), "{}: printed nothing:\n{script}", block.place);
        Ok(printed)
    }

    /// What the servers have printed.
    fn told(&self) -> String {
        self.servers.iter().map(Process::output).collect::<Vec<_>>().join("\n")
    }

    /// Whether anything runs.
    pub(crate) fn serves(&self) -> bool {
        !self.servers.is_empty()
    }
}
