//! Whose prompts a step computes: the rule that our engines share, so that they serve urgent requests alike.
//!
//! Who is urgent waits for a whole step: prompts of a lower priority are no part of it, but that every ninth keeps some
//! of its tokens for them. And while urgent requests come now and then, prompts of no priority get a part of a step only,
//! since the next one waits for the step that is under way.

/// So many steps in a row may belong to prompts of the highest priority alone.
const LONE_STEPS_MAX: u32 = 8;
/// An urgent request came lately for so long.
const LATELY_MS: u64 = 30_000;
const SMALL_STEP_PART: usize = 8;

/// What an engine remembers for it.
#[derive(Debug, Default)]
pub struct Urgency {
    /// Steps in a row in which prompts waited for those of a higher priority.
    lone_steps: u32,
    /// When an urgent request came last.
    urgent_ms: Option<u64>,
}

impl Urgency {
    /// A request has come.
    pub fn note(&mut self, priority: i32, now_ms: u64) {
        if priority > 0 {
            self.urgent_ms = Some(now_ms);
        }
    }

    /// How many of a step's tokens prompts of no priority may have.
    #[must_use]
    pub fn small_step(&self, all: usize, block_tokens: usize, now_ms: u64) -> usize {
        let lately = self.urgent_ms.is_some_and(|ms| now_ms < ms + LATELY_MS);
        if lately { (all / SMALL_STEP_PART).max(block_tokens) } else { all }
    }

    /// Whether those have had to wait for so long that the next step is theirs too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.lone_steps >= LONE_STEPS_MAX
    }

    /// How many of the step's tokens that are left a prompt may have; a lesser one is below the highest that there is.
    /// `kept` are those for lesser ones, `small` those left to prompts of no priority.
    #[must_use]
    pub fn share(
        &self,
        (priority, is_lesser): (i32, bool),
        budget: usize,
        kept: usize,
        small: usize,
    ) -> usize {
        let share = match is_lesser {
            true if self.is_shared() => budget,
            true => 0,
            false => budget.saturating_sub(kept),
        };
        if priority > 0 { share } else { share.min(small) }
    }

    /// A step was planned: whether lesser prompts waited in it, and whether any was served.
    pub fn count_step(&mut self, waited: bool, served: bool) {
        self.lone_steps = if waited && !served { self.lone_steps + 1 } else { 0 };
    }
}
