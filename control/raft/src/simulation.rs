//! What a simulation needs of this crate: randomness from a seed, a disk that loses what was not synced, and
//! safeguards that it can take away to see whether its invariants notice.
//!
//! Everything is a matter of the thread that asked for it, since a simulated cluster runs on one. Threads that
//! never asked get the system's randomness and every safeguard.

mod disk;
mod runtime;

use std::cell::Cell;

use mainstay_types::{ClusterTime, Command, Stamp};

pub use disk::Disk;
pub(crate) use disk::Edit;
pub use runtime::Runtime;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    static LACKING: Cell<Option<Safeguard>> = const { Cell::new(None) };
}

/// What keeps a promise, and can be taken away on one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safeguard {
    /// A vote is durable before it is answered.
    VoteSync,
    /// Entries are durable before they are acknowledged.
    AppendSync,
    /// A leader commits an entry of its own before it serves reads.
    Barrier,
    /// A leader that restarts stands for election again, rather than to lead on in its term.
    FreshTerm,
    /// A pin lasts longer than asked by what two clocks may differ.
    ClockPad,
    /// Both allowances for clocks that differ: time is the leader's wall clock, a pin lasts as long as asked.
    ClockAllowances,
    /// Time catches up with the wall clock at a new leader.
    WallClock,
}

/// From now on everything random on this thread comes from `seed`.
pub fn seed(seed: u64) {
    SEED.set(Some(seed));
}

/// From now on this thread's members lack `safeguard`, or none.
pub fn take_away(safeguard: Option<Safeguard>) {
    LACKING.set(safeguard);
}

/// The next number of this thread's seed, if it has one.
#[must_use]
pub fn random() -> Option<u64> {
    SEED.with(|cell| {
        let state = cell.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
        cell.set(Some(state));
        // SplitMix64: every seed gives a sequence without short cycles.
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    })
}

pub(crate) fn lacks(safeguard: Safeguard) -> bool {
    LACKING.get() == Some(safeguard)
}

/// A stamp as a leader would make it that lacks what this thread lacks.
pub(crate) fn stamp(mut stamp: Stamp) -> Stamp {
    if lacks(Safeguard::ClockAllowances) {
        // What the machine takes off is put on before.
        stamp.wall_ms = stamp.wall_ms.saturating_add(ClusterTime::SKEW_MS_MAX);
    }
    if lacks(Safeguard::WallClock) {
        stamp.wall_ms = 0;
    }
    stamp
}

/// A command as a machine would take it that lacks what this thread lacks.
pub(crate) fn command(mut command: Command) -> Command {
    if lacks(Safeguard::ClockPad) || lacks(Safeguard::ClockAllowances) {
        let unpadded = |ttl_ms: u64| ttl_ms.saturating_sub(2 * ClusterTime::SKEW_MS_MAX).max(1);
        match &mut command {
            Command::PutPin(request) => request.ttl_ms = unpadded(request.ttl_ms),
            Command::ExtendPin { ttl_ms, .. } => *ttl_ms = unpadded(*ttl_ms),
            _ => {}
        }
    }
    command
}
