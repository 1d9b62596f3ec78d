//! Random faults, one after another, each undone before the next: workers and members are killed or stand still,
//! gateways are replaced. The first of each role is never ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use mainstay_cluster_tests::rng::Rng;
use mainstay_cluster_tests::{Cluster, Process};

/// A kind of harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    KillWorker,
    PauseWorker,
    KillMember,
    /// Any member, so that the first one loses its lead now and then too.
    PauseMember,
    /// In order, as an upgrade does it: what a gateway that dies was sending, nobody else can end.
    ReplaceGateway,
}

const ALL: [Fault; 5] = [
    Fault::KillWorker,
    Fault::PauseWorker,
    Fault::KillMember,
    Fault::PauseMember,
    Fault::ReplaceGateway,
];
/// How long a gateway may take to let its requests end.
const END: Duration = Duration::from_secs(60);

/// Does harm to a cluster until it is told to end.
pub(super) struct Nemesis {
    cluster: Cluster,
    rng: Rng,
    quiet_ms: std::ops::Range<u64>,
    ends: Arc<AtomicBool>,
    done: BTreeMap<Fault, usize>,
}

impl Nemesis {
    pub(super) fn new(cluster: Cluster, rng: Rng, hurried: bool, ends: Arc<AtomicBool>) -> Self {
        let quiet_ms = if hurried { 500..2_500 } else { 3_000..25_000 };
        Self { cluster, rng, quiet_ms, ends, done: BTreeMap::new() }
    }

    /// Blocks: it wants a thread of its own. Answers with the cluster, whole, and what was done.
    pub(super) fn run(mut self) -> Result<(Cluster, BTreeMap<Fault, usize>)> {
        // A short run meets each kind before it meets one twice.
        let mut deck = Vec::new();
        loop {
            self.wait();
            if self.ends.load(Ordering::Relaxed) {
                return Ok((self.cluster, self.done));
            }
            if deck.is_empty() {
                deck = ALL.to_vec();
            }
            let at = usize::try_from(self.rng.pick(0..deck.len() as u64))?;
            let fault = deck.swap_remove(at);
            self.inflict(fault)?;
            *self.done.entry(fault).or_insert(0) += 1;
        }
    }

    fn inflict(&mut self, fault: Fault) -> Result<()> {
        let down = self.rng.millis(0..4_000);
        match fault {
            Fault::KillWorker => {
                let victim = one(&mut self.rng, &mut self.cluster.workers, 1);
                victim.kill()?;
                std::thread::sleep(down);
                victim.start_again()
            }
            Fault::KillMember => {
                let victim = one(&mut self.rng, &mut self.cluster.members, 1);
                victim.kill()?;
                std::thread::sleep(down);
                victim.start_again()
            }
            Fault::PauseWorker => pause(one(&mut self.rng, &mut self.cluster.workers, 0), down),
            Fault::PauseMember => pause(one(&mut self.rng, &mut self.cluster.members, 0), down),
            Fault::ReplaceGateway => one(&mut self.rng, &mut self.cluster.gateways, 1).replace(END),
        }
    }

    fn wait(&mut self) {
        let until = Instant::now() + self.rng.millis(self.quiet_ms.clone());
        while Instant::now() < until && !self.ends.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn one<'a>(rng: &mut Rng, of: &'a mut [Process], from: usize) -> &'a mut Process {
    let at = rng.pick(from as u64..of.len() as u64);
    &mut of[at as usize]
}

fn pause(victim: &Process, time: Duration) -> Result<()> {
    victim.signal("STOP")?;
    std::thread::sleep(time);
    victim.signal("CONT")
}
