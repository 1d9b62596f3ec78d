//! `mainstay top` against real processes: one frame as text, and live in a terminal that is as before when it has ended.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::{Client, Cluster, Process, Shape, binary, run_cli};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::user;

const SHAPE: Shape = Shape { members: 1, gateways: 1, workers: 1, blocks: 500 };
/// In the prompt, and in no frame.
const MARKER: &str = "xylophone quartz";
const PATIENCE: Duration = Duration::from_secs(20);
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// `top` in a terminal of its own.
struct Screen {
    child: Child,
    keyboard: File,
    /// The program's end, to look at its settings.
    terminal: OwnedFd,
    seen: Arc<Mutex<String>>,
}

impl Screen {
    fn open(arguments: &[&str]) -> Result<Self> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let name = ptsname(&keyboard, Vec::new())?;
        let path = std::path::Path::new(name.to_str()?);
        let terminal = File::options().read(true).write(true).open(path)?;
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size)?;
        let child = Command::new(binary())
            .arg("top")
            .args(arguments)
            .env("TERM", "xterm-256color")
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal.try_clone()?)
            .spawn()?;
        let keyboard = File::from(keyboard);
        let (mut from, seen) = (keyboard.try_clone()?, Arc::new(Mutex::new(String::new())));
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(Self { child, keyboard, terminal: terminal.into(), seen })
    }

    fn seen(&self) -> String {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it was drawn. A picture is sent as what changed of it, so that only single words are there whole.
    fn wait_for(&self, word: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.seen().contains(word) {
            ensure!(Instant::now() < until, "no {word:?}: {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn is_cooked(&self) -> Result<bool> {
        let modes = tcgetattr(&self.terminal)?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO))
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Ends by itself, with that code, and leaves the terminal as it was.
    fn wait_end(mut self) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < until, "it still runs: {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "{status}: {:?}", self.seen());
        self.wait_for(LEAVE)?;
        ensure!(self.is_cooked()?, "the terminal is still raw");
        Ok(self.seen())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A session with a pin, so that every table has a row.
async fn use_it(client: &Client) -> Result<()> {
    let long = format!("{MARKER} {}", crate::filler(11, 20));
    let body = json!({
        "model": "demo", "temperature": 0, "max_tokens": 8, "stream": true, "messages": [user(&long)],
        "prompt_cache_key": "agent-1", "cache_control": {"type": "ephemeral", "ttl": "5m"},
    });
    client.stream_chat(&body, |_, _| {}).await?;
    Ok(())
}

/// One frame as text.
fn once(arguments: &[&str]) -> Result<(i32, String, String)> {
    let all = [&["top", "--once", "--interval", "0.2"], arguments].concat();
    run_cli(&all)
}

#[tokio::test]
async fn a_frame_as_text_has_members_workers_sessions_pins_and_decisions() -> Result<()> {
    let cluster = Cluster::start(&SHAPE)?;
    let url = &cluster.gateway_urls[0];
    use_it(&Client::new(url)).await?;
    let until = Instant::now() + PATIENCE;
    let text = loop {
        let (code, text, told) = once(&["--addr", url])?;
        ensure!(code == 0, "{code}: {told}");
        if ["agent-1", "leader m1", "p-", "active"].iter().all(|word| text.contains(word)) {
            break text;
        }
        ensure!(Instant::now() < until, "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    for head in ["MEMBER", "WORKER", "SESSION", "PIN", "REQUEST", "w1", "req_"] {
        ensure!(text.contains(head), "no {head}: {text}");
    }
    ensure!(!text.contains('\x1b') && !text.contains(MARKER), "{text}");
    ensure!(!text.contains("xylophone"), "{text}");
    let (code, text, _) = once(&["--addr", url, "--view", "pins"])?;
    ensure!(code == 0 && text.contains("HELD BY") && !text.contains("SESSION"), "{text}");
    let (code, _, told) = once(&["--addr", "http://127.0.0.1:1"])?;
    ensure!(code == 4 && told.contains("no gateway answers"), "{code}: {told}");
    let (code, _, told) = run_cli(&["top", "--addr", url])?;
    ensure!(code == 2 && told.contains("--once"), "{code}: {told}");
    Ok(())
}

#[tokio::test]
async fn a_terminal_is_given_back_however_it_ends_and_a_lost_gateway_is_waited_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let listen = format!("127.0.0.1:{}", mainstay_cluster_tests::free_port());
    let data = dir.path().join("data").to_string_lossy().into_owned();
    let args = ["serve", "--engine", "sim", "--listen", &listen, "--data-dir", &data];
    let args = args.map(str::to_owned);
    let mut process = Process::start("serve", &args)?;
    process.wait_ready()?;
    let url = format!("http://{listen}");
    let flags = ["--addr", &url, "--interval", "0.2"];

    let mut screen = Screen::open(&flags)?;
    screen.wait_for(ENTER)?;
    screen.wait_for("MEMBER")?;
    ensure!(!screen.is_cooked()?, "keys come one by one");
    screen.press("2")?;
    screen.wait_for("TIERS")?;
    screen.press("?")?;
    screen.wait_for("another")?;
    screen.press("q")?;
    screen.wait_end()?;

    for signal in ["TERM", "INT", "HUP", "QUIT"] {
        let screen = Screen::open(&flags)?;
        screen.wait_for("MEMBER")?;
        let kill = format!("kill -{signal} {}", screen.child.id());
        let status = Command::new("bash").args(["-c", &kill]).status()?;
        ensure!(status.success(), "{kill}");
        screen.wait_end().with_context(|| signal.to_owned())?;
    }

    let mut screen = Screen::open(&flags)?;
    screen.wait_for("MEMBER")?;
    process.kill()?;
    screen.wait_for("unreachable")?;
    let before = screen.seen().len();
    let mut process = Process::start("serve", &args)?;
    process.wait_ready()?;
    // A frame of the new one is drawn again where the words about the old one were.
    let until = Instant::now() + PATIENCE;
    while !screen.seen().get(before..).is_some_and(|new| new.contains("leader")) {
        ensure!(Instant::now() < until, "{:?}", screen.seen());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    screen.press("\x03")?;
    screen.wait_end()?;
    Ok(())
}
