//! The network between members, inside the test's process: every byte to a member goes through its proxy, and
//! each directed link can be slow, narrow, held, cut or reset.
//!
//! Members share one address per peer, so a proxy can't tell by address who calls. It looks up which member's
//! process owns the calling socket instead; whoever is none of them counts as a client. A connection from A to B
//! carries bytes both ways, and each way obeys its own link, so that a cut of A to B also loses A's answers to B.
//! Bytes that were swallowed are gone, so their connection is reset when the cut ends; bytes that were held come
//! late, as retransmitted ones do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The end of a link that is no member.
pub const CLIENT: u64 = 0;
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way over one link of one connection; more wait with their sender.
const CHUNKS_MAX: usize = 256;

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pass {
    /// They go through.
    #[default]
    Through,
    /// They wait until the link is whole again.
    Hold,
    /// They are lost, and their connection with them.
    Swallow,
}

/// One direction between two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// What happens to bytes.
    pub pass: Pass,
    /// How long they take.
    pub delay: Duration,
    /// How many go through in a second, if not all.
    pub bytes_per_second: Option<u64>,
    /// How often its connections were reset.
    pub resets: u64,
}

/// All links between the members 1 to n and the clients.
#[derive(Clone)]
pub struct Net {
    inner: Arc<Inner>,
}

struct Inner {
    links: HashMap<(u64, u64), watch::Sender<Link>>,
    members: u64,
    pids: Mutex<HashMap<u64, u32>>,
}

impl Net {
    /// A whole network.
    pub fn new(members: u64) -> Self {
        let ends = || CLIENT..=members;
        let pairs = ends().flat_map(|from| ends().map(move |to| (from, to)));
        let links = pairs.map(|pair| (pair, watch::Sender::new(Link::default()))).collect();
        Self { inner: Arc::new(Inner { links, members, pids: Mutex::default() }) }
    }

    /// Which process a member is now.
    pub fn set_pid(&self, member: u64, pid: u32) {
        self.inner.pids.lock().expect("no holder panics").insert(member, pid);
    }

    /// Changes one link.
    pub fn change(&self, from: u64, to: u64, change: impl FnOnce(&mut Link)) {
        self.inner.links[&(from, to)].send_modify(change);
    }

    /// Changes all links between a member and the others, both ways; those with clients too if asked.
    pub fn change_around(&self, member: u64, clients: bool, change: impl Fn(&mut Link)) {
        let first = if clients { CLIENT } else { 1 };
        for other in (first..=self.inner.members).filter(|other| *other != member) {
            self.change(member, other, &change);
            self.change(other, member, &change);
        }
    }

    /// Makes every link whole.
    pub fn heal(&self) {
        for link in self.inner.links.values() {
            link.send_modify(|link| *link = Link { resets: link.resets, ..Link::default() });
        }
    }

    /// Starts the proxy of one member, which listens at `target`, and answers with the proxy's address.
    pub async fn proxy(&self, member: u64, target: SocketAddr) -> Result<SocketAddr> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a proxy's port")?;
        let address = listener.local_addr()?;
        let net = self.clone();
        tokio::spawn(async move {
            while let Ok((caller, from)) = listener.accept().await {
                let net = net.clone();
                tokio::spawn(async move {
                    let from = net.owner_of(from, address).unwrap_or(CLIENT);
                    net.carry(caller, from, member, target).await;
                });
            }
        });
        Ok(address)
    }

    fn link(&self, from: u64, to: u64) -> watch::Receiver<Link> {
        self.inner.links[&(from, to)].subscribe()
    }

    /// The member whose process holds the socket that calls from `near` to `far`.
    fn owner_of(&self, near: SocketAddr, far: SocketAddr) -> Option<u64> {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let [near, far] = [near, far].map(|end| format!(":{:04X}", end.port()));
        let inode = table.lines().skip(1).find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, .., _, _, _] = words.as_slice() else { return None };
            let ours = local.ends_with(&near) && remote.ends_with(&far);
            ours.then(|| words.get(9).copied()).flatten()
        })?;
        let name = format!("socket:[{inode}]");
        let pids = self.inner.pids.lock().expect("no holder panics").clone();
        pids.into_iter().find_map(|(member, pid)| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
            links.into_iter().any(|link| link.as_os_str() == name.as_str()).then_some(member)
        })
    }

    async fn carry(&self, caller: TcpStream, from: u64, to: u64, target: SocketAddr) {
        let (there, back) = (self.link(from, to), self.link(to, from));
        let resets = [&there, &back].map(|link| link.borrow().resets);
        // A call over a cut link is not answered either: it waits until the link is whole.
        let mut opening = there.clone();
        let whole = |link: &Link| link.pass == Pass::Through;
        if opening.wait_for(whole).await.is_err() {
            return;
        }
        let called = TcpStream::connect(target).await;
        // A caller of a dead member sees its connection break, as it would without a proxy.
        let _ = caller.set_zero_linger();
        let Ok(called) = called else { return };
        let _ = (called.set_zero_linger(), called.set_nodelay(true), caller.set_nodelay(true));
        let (caller_read, caller_write) = caller.into_split();
        let (called_read, called_write) = called.into_split();
        // Whichever way ends takes the other with it.
        tokio::select! {
            () = pump(caller_read, called_write, there, resets[0]) => {}
            () = pump(called_read, caller_write, back, resets[1]) => {}
        }
    }
}

/// Carries bytes one way until either end closes or the link resets.
async fn pump(
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    link: watch::Receiver<Link>,
    resets: u64,
) {
    let lost = AtomicBool::new(false);
    let (queue, chunks) = mpsc::channel(CHUNKS_MAX);
    let taking = take(read, queue, link.clone(), resets, &lost);
    let giving = give(write, chunks, link, &lost);
    tokio::pin!(taking, giving);
    tokio::select! {
        broken = &mut taking => if !broken { giving.await },
        () = &mut giving => {}
    }
}

type Chunk = (Instant, Vec<u8>);

/// Reads what comes; true when the connection must break.
async fn take(
    mut read: OwnedReadHalf,
    queue: mpsc::Sender<Chunk>,
    mut link: watch::Receiver<Link>,
    resets: u64,
    lost: &AtomicBool,
) -> bool {
    // A reset since the connection was opened counts, too.
    link.mark_changed();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = tokio::select! {
            changed = link.changed() => {
                let now = *link.borrow_and_update();
                let broken = now.resets != resets
                    || (lost.load(Ordering::Relaxed) && now.pass != Pass::Swallow);
                if changed.is_err() || broken { return true }
                continue;
            }
            count = read.read(&mut buffer) => count.unwrap_or(0),
        };
        let now = *link.borrow();
        if count == 0 {
            // An end that is cut off can't say goodbye either.
            let _ = link.wait_for(|l| l.pass == Pass::Through || l.resets != resets).await;
            return lost.load(Ordering::Relaxed);
        }
        if now.pass == Pass::Swallow {
            lost.store(true, Ordering::Relaxed);
            continue;
        }
        let chunk = (Instant::now() + now.delay, buffer[..count].to_vec());
        if lost.load(Ordering::Relaxed) || queue.send(chunk).await.is_err() {
            return true;
        }
    }
}

/// Writes what was read, when its time has come.
async fn give(
    mut write: OwnedWriteHalf,
    mut chunks: mpsc::Receiver<Chunk>,
    mut link: watch::Receiver<Link>,
    lost: &AtomicBool,
) {
    while let Some((due, bytes)) = chunks.recv().await {
        tokio::time::sleep_until(due).await;
        let Ok(now) = link.wait_for(|l| l.pass != Pass::Hold).await.map(|l| *l) else { return };
        if now.pass == Pass::Swallow || lost.load(Ordering::Relaxed) {
            // What follows a hole is of no use.
            lost.store(true, Ordering::Relaxed);
            continue;
        }
        if let Some(rate) = now.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / rate as f64)).await;
        }
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
