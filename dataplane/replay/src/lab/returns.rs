//! How much of their prompts turns find again after a pause: by how long it was, and by how much came meanwhile.
//!
//! A pause in which nothing else came evicts nothing, however long it is. So the second figure counts what the worker
//! that served the turn before has taken in since, in sizes of its cache: with plain eviction by last use one such
//! size is the end. Turns whose conversation began anew are left out: their histories have gone by themselves.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::report::{Back, Pinned};

/// Where pauses are parted, in seconds, and traffic meanwhile, in caches.
const PAUSES_S: [f64; 6] = [0.0, 5.0, 15.0, 60.0, 120.0, 300.0];
const CACHES: [f64; 6] = [0.0, 0.25, 0.5, 1.0, 2.0, 5.0];

/// The end of an agent's last turn.
#[derive(Clone, Copy)]
struct Last {
    ended_us: u64,
    worker: u32,
    taken_in: u64,
}

/// What lay between an agent's turns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Away {
    pause_us: u64,
    /// Taken in by its worker, in sizes of its cache.
    caches: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Found {
    turns: u64,
    available: u64,
    cached: u64,
}

impl Found {
    fn add(&mut self, available: u64, cached: u64) {
        self.turns += 1;
        self.available += available;
        self.cached += cached;
    }

    fn share(&self) -> f64 {
        let share = self.cached as f64 / self.available.max(1) as f64;
        (share * 1e6).round() / 1e6
    }
}

/// Turns after pauses.
#[derive(Default)]
pub(super) struct Returns {
    last: HashMap<(u32, u32), Last, FixedState>,
    by_pause: [Found; PAUSES_S.len()],
    by_caches: [Found; CACHES.len()],
    /// Of leads that are pinned and of those that could be: after any pause, and after the last of `CACHES`.
    stretches: [[Found; 2]; 2],
}

fn place(bounds: &[f64], value: f64) -> usize {
    bounds.iter().rposition(|bound| value >= *bound).unwrap_or(0)
}

impl Returns {
    /// An agent's turn has ended on a worker whose cache had taken in so many tokens by then.
    pub(super) fn ended(&mut self, agent: (u32, u32), worker: u32, taken_in: u64, now_us: u64) {
        self.last.insert(agent, Last { ended_us: now_us, worker, taken_in });
    }

    /// Who served the agent's last turn.
    pub(super) fn worker(&self, agent: (u32, u32)) -> Option<u32> {
        self.last.get(&agent).map(|last| last.worker)
    }

    /// It asks again, when that worker has taken in so many.
    pub(super) fn asks(
        &self,
        agent: (u32, u32),
        taken_in: u64,
        cache_tokens: u64,
        now_us: u64,
    ) -> Option<Away> {
        let last = self.last.get(&agent)?;
        let since = taken_in.saturating_sub(last.taken_in);
        let caches = since as f64 / cache_tokens.max(1) as f64;
        Some(Away { pause_us: now_us.saturating_sub(last.ended_us), caches })
    }

    /// What its prompt found, of what was to be had.
    pub(super) fn found(&mut self, away: Away, available: u64, cached: u64) {
        let cached = cached.min(available);
        let seconds = away.pause_us as f64 / 1e6;
        self.by_pause[place(&PAUSES_S, seconds)].add(available, cached);
        self.by_caches[place(&CACHES, away.caches)].add(available, cached);
    }

    /// The same for the stretch that is pinned, or would be.
    pub(super) fn found_stretch(&mut self, away: Away, is_pinned: bool, stretch: u64, cached: u64) {
        let [all, flooded] = &mut self.stretches[usize::from(is_pinned)];
        all.add(stretch, cached.min(stretch));
        if away.caches >= CACHES[CACHES.len() - 1] {
            flooded.add(stretch, cached.min(stretch));
        }
    }

    pub(super) fn forget(&mut self, slot: u32, agents: u32) {
        (0..agents).for_each(|agent| {
            self.last.remove(&(slot, agent));
        });
    }

    pub(super) fn after_pause(&self) -> Vec<Back> {
        backs(&PAUSES_S, &self.by_pause)
    }

    pub(super) fn after_traffic(&self) -> Vec<Back> {
        backs(&CACHES, &self.by_caches)
    }

    pub(super) fn pinned(&self, tokens: u32, sessions: u64, refused: u64) -> Pinned {
        let [others, pinned] = &self.stretches;
        Pinned {
            tokens,
            sessions,
            refused,
            turns: pinned[0].turns,
            hit_rate: pinned[0].share(),
            turns_flooded: pinned[1].turns,
            hit_rate_flooded: pinned[1].share(),
            others_turns: others[0].turns,
            others_hit_rate: others[0].share(),
            others_turns_flooded: others[1].turns,
            others_hit_rate_flooded: others[1].share(),
        }
    }
}

fn backs(bounds: &[f64], found: &[Found]) -> Vec<Back> {
    let back = |(from, found): (&f64, &Found)| Back {
        from: *from,
        turns: found.turns,
        hit_share: found.share(),
    };
    bounds.iter().zip(found).filter(|(_, found)| found.turns > 0).map(back).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_told_apart_by_pause_and_by_what_came() {
        let mut returns = Returns::default();
        assert!(returns.asks((1, 0), 0, 100, 0).is_none(), "the first follows nothing");
        returns.ended((1, 0), 3, 1_000, 2_000_000);
        assert_eq!(returns.worker((1, 0)), Some(3));
        let away = returns.asks((1, 0), 1_150, 100, 22_000_000).unwrap();
        returns.found(away, 640, 160);
        returns.found(away, 640, 10_000);
        let back = |from| vec![Back { from, turns: 2, hit_share: 0.625 }];
        assert_eq!((returns.after_pause(), returns.after_traffic()), (back(15.0), back(1.0)));
        let flooded = returns.asks((1, 0), 1_500, 100, 22_000_000).unwrap();
        returns.found_stretch(flooded, true, 64, 640);
        returns.found_stretch(away, false, 64, 16);
        let pinned = returns.pinned(64, 1, 0);
        assert_eq!((pinned.turns_flooded, pinned.hit_rate_flooded), (1, 1.0));
        assert_eq!((pinned.others_turns_flooded, pinned.others_hit_rate), (0, 0.25));
        returns.forget(1, 1);
        assert!(returns.worker((1, 0)).is_none());
    }
}
