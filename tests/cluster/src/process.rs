//! Processes under test: started with their output kept, killed when dropped.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// How long a process may take to say `ready`; a loaded two-core machine starts eight at a time.
const READY: Duration = Duration::from_secs(60);

/// The folder that this build's files lie in.
fn build_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    test.parent()
        .and_then(Path::parent)
        .expect("tests lie in deps/ below the build folder")
        .to_owned()
}

/// The binary under test.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("MAINSTAY_BIN").map(PathBuf::from);
    let path = path.unwrap_or_else(|| build_dir().join("mainstay"));
    assert!(path.is_file(), "{} is missing; build it with `make build`", path.display());
    path
}

/// The native engine as a shared library.
pub fn library() -> PathBuf {
    let path = build_dir().join("libmainstay_native.so");
    assert!(path.is_file(), "{} is missing; build it with `make build`", path.display());
    path
}

/// A port that was free a moment ago. None that the system gives to connections, which would take it before its process
/// does, and none twice before all were given.
pub fn free_port() -> u16 {
    const FIRST: u32 = 18_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id().wrapping_mul(101);
    let next = || FIRST + own.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
    let ports = std::iter::repeat_with(next).take(COUNT as usize);
    let mut free = ports
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("loopback has free ports")
}

/// Runs the CLI to its end.
pub fn run_cli(args: &[&str]) -> Result<(i32, String, String)> {
    let out = Command::new(binary()).args(args).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr)))
}

/// A running role.
pub struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    name: String,
    args: Vec<String>,
}

impl Process {
    /// Starts the binary and keeps what it prints.
    pub fn start(name: &str, args: &[String]) -> Result<Self> {
        Self::start_as(&binary(), name, args)
    }

    /// [`Process::start`] of a binary that may be another version.
    pub fn start_as(binary: &Path, name: &str, args: &[String]) -> Result<Self> {
        let mut child = Command::new(binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        keep(stdout, Arc::clone(&lines), "");
        keep(stderr, Arc::clone(&lines), "! ");
        Ok(Self { child, lines, name: name.to_owned(), args: args.to_vec() })
    }

    /// What it has printed; lines of standard error begin with `! `.
    pub fn output(&self) -> String {
        self.lines.lock().expect("no test panics while it holds this").join("\n")
    }

    /// Waits for its line `ready …`, and says how long that took.
    pub fn wait_ready(&mut self) -> Result<Duration> {
        let started = Instant::now();
        loop {
            if self.output().lines().any(|l| l.starts_with("ready ")) {
                return Ok(started.elapsed());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.output());
            }
            ensure!(started.elapsed() < READY, "{} is not ready:\n{}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its exit code, once it has ended by itself.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            ensure!(started.elapsed() < limit, "{} still runs:\n{}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        self.signal("TERM")
    }

    /// Asks it to end, waits until it has, and starts the binary under test in its place; returns once that is
    /// ready.
    pub fn replace(&mut self, limit: Duration) -> Result<()> {
        self.terminate()?;
        let code = self.wait_exit(limit)?;
        ensure!(code == 0, "{} ended with {code}:\n{}", self.name, self.output());
        self.start_again()
    }

    /// Starts the binary under test in the place of one that has ended; returns once it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        *self = Self::start(&self.name, &self.args)?;
        self.wait_ready()?;
        Ok(())
    }

    /// Starts without that argument the next time.
    pub fn forget(&mut self, argument: &str) {
        self.args.retain(|known| known != argument);
    }

    /// A signal by its name, such as `STOP`, through the shell's own `kill`: a small system has no other.
    pub fn signal(&self, name: &str) -> Result<()> {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("bash").args(["-c", &kill]).status()?;
        ensure!(status.success(), "{kill} failed");
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit code if it has ended; -1 for a signal.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(|status| status.code().unwrap_or(-1)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(
    from: impl std::io::Read + Send + 'static,
    lines: Arc<Mutex<Vec<String>>>,
    mark: &'static str,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            lines.lock().expect("no test panics while it holds this").push(format!("{mark}{line}"));
        }
    });
}

/// How large a cluster is.
pub struct Shape {
    pub members: usize,
    pub gateways: usize,
    pub workers: usize,
    /// Blocks of each worker's cache.
    pub blocks: u32,
}

/// A cluster of real processes.
pub struct Cluster {
    pub members: Vec<Process>,
    pub gateways: Vec<Process>,
    pub workers: Vec<Process>,
    pub gateway_urls: Vec<String>,
    pub member_addresses: Vec<String>,
    _dir: TempDir,
}

impl Cluster {
    /// Starts all roles and waits until every gateway can serve.
    pub fn start(shape: &Shape) -> Result<Self> {
        Self::start_as(&binary(), shape, &[])
    }

    /// [`Cluster::start`] of a binary that may be another version, with more arguments for members.
    pub fn start_as(binary: &Path, shape: &Shape, more: &[&str]) -> Result<Self> {
        Self::start_all(binary, shape, more, &[], "")
    }

    /// [`Cluster::start`] with more arguments for workers.
    pub fn start_with(shape: &Shape, more: &[&str]) -> Result<Self> {
        Self::start_engine(shape, more, "")
    }

    /// [`Cluster::start_with`], and further lines of `[engine]`.
    pub fn start_engine(shape: &Shape, more: &[&str], engine: &str) -> Result<Self> {
        Self::start_all(&binary(), shape, &[], more, engine)
    }

    /// [`Cluster::start`] with more arguments for members and workers.
    pub fn start_traced(shape: &Shape, more: &[&str]) -> Result<Self> {
        Self::start_all(&binary(), shape, more, more, "")
    }

    fn start_all(
        binary: &Path,
        shape: &Shape,
        of_members: &[&str],
        of_workers: &[&str],
        engine: &str,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("mainstay.toml");
        std::fs::write(
            &config,
            format!(
                "[engine]\nblocks = {}\nthreads = 1\npin_fraction = 0.5\n{engine}",
                shape.blocks
            ),
        )?;
        let member_addresses: Vec<String> =
            (0..shape.members).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let list: Vec<String> =
            (1..).zip(&member_addresses).map(|(id, a)| format!("{id}={a}")).collect();
        let strings = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<String>>();
        let mut members = Vec::new();
        for (id, address) in (1..).zip(&member_addresses) {
            let data = dir.path().join(format!("m{id}"));
            let mut args = strings(&[
                "control",
                "--node-id",
                &format!("{id}"),
                "--listen",
                address,
                "--members",
                &list.join(","),
                "--data-dir",
                &data.to_string_lossy(),
            ]);
            args.extend(strings(of_members));
            members.push(Process::start_as(binary, &format!("m{id}"), &args)?);
        }
        let control = member_addresses.join(",");
        let mut workers = Vec::new();
        for n in 1..=shape.workers {
            let mut args = strings(&[
                "worker",
                "--control",
                &control,
                "--name",
                &format!("w{n}"),
                "--config",
                &config.to_string_lossy(),
            ]);
            args.extend(strings(of_workers));
            workers.push(Process::start_as(binary, &format!("w{n}"), &args)?);
        }
        let (mut gateways, mut gateway_urls) = (Vec::new(), Vec::new());
        for n in 1..=shape.gateways {
            let listen = format!("127.0.0.1:{}", free_port());
            let args = strings(&["gateway", "--control", &control, "--listen", &listen]);
            gateways.push(Process::start_as(binary, &format!("g{n}"), &args)?);
            gateway_urls.push(format!("http://{listen}"));
        }
        let mut cluster =
            Self { members, gateways, workers, gateway_urls, member_addresses, _dir: dir };
        let all =
            cluster.members.iter_mut().chain(&mut cluster.workers).chain(&mut cluster.gateways);
        for process in all {
            process.wait_ready()?;
        }
        Ok(cluster)
    }

    /// The place of the worker with this name in `workers`.
    pub fn worker_at(&self, name: &str) -> Result<usize> {
        let number: usize =
            name.trim_start_matches('w').parse().context("worker names are w1, w2, …")?;
        ensure!((1..=self.workers.len()).contains(&number), "no worker {name}");
        Ok(number - 1)
    }
}
