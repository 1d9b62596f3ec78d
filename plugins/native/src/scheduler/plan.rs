//! What the next step computes: each complete request's next token, then prompts in order of
//! service, in chunks that end on block bounds so that whole blocks become shareable as early as
//! possible.

use mainstay_engine_abi::sdk::{Code, Finish};

use super::Scheduler;
use super::sequence::Sequence;

/// Rows of guesses in a step, of all requests: so many cost little more than none where weights are read for the rows
/// that are needed anyway.
pub(crate) const DRAFT_ROWS_MAX: usize = 16;
/// Tokens that are looked through for guesses in a step, of all requests: 4 MiB.
const DRAFT_LOOKS_MAX: usize = 1 << 20;

impl Scheduler {
    /// Sets each running request's rows and gives it the blocks for them.
    pub(super) fn plan(&mut self, now_us: u64, room_for_output: bool) {
        self.running.iter_mut().for_each(|s| s.own.leave_step());
        let mut budget = self.limits.step_tokens_max;
        if room_for_output {
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                if self.running[index].remaining() == 1 {
                    if !self.give_rows(index, 1, now_us) {
                        continue;
                    }
                    budget -= 1;
                }
                index += 1;
            }
            budget -= self.draft(budget.min(DRAFT_ROWS_MAX), now_us);
        }
        // However many decode, prompts move on by a block.
        let mut budget = budget.max(self.cache.grid.block_tokens);
        let (all, block_tokens) = (self.limits.step_tokens_max, self.cache.grid.block_tokens);
        let mut small = self.urgency.small_step(all, block_tokens, now_us / 1000);
        let top = self.running.iter().find(|s| s.remaining() > 1).map(|s| s.priority());
        let is_lesser = |s: &Sequence| top.is_some_and(|top| s.priority() < top);
        let waits = self.running.iter().any(|s| s.remaining() > 1 && is_lesser(s));
        let kept = if waits && self.urgency.is_shared() { small } else { 0 };
        let mut index = 0;
        let mut served = false;
        while index < self.running.len() && budget > 0 {
            let sequence = &self.running[index];
            let (priority, lesser) = (sequence.priority(), is_lesser(sequence));
            let most = self.urgency.share((priority, lesser), budget, kept, small);
            let rows = self.chunk(index, most, room_for_output);
            if rows > 0 {
                if !self.give_rows(index, rows, now_us) {
                    continue;
                }
                budget -= rows;
                small = if priority > 0 { small } else { small.saturating_sub(rows) };
                served |= lesser;
            }
            index += 1;
        }
        self.urgency.count_step(waits, served);
    }

    /// Adds rows of guesses behind those of requests that decode, and says how many: only in blocks that nobody was
    /// promised, since guesses may be wrong.
    fn draft(&mut self, rows_max: usize, now_us: u64) -> usize {
        if self.limits.draft_tokens_max == 0 {
            return 0;
        }
        let mut spare = (self.cache.blocks.available() as usize).saturating_sub(self.promised());
        let (mut left, mut looks) = (rows_max, DRAFT_LOOKS_MAX);
        for sequence in self.running.iter_mut().filter(|s| s.own.step_rows == 1) {
            let looks_at = sequence.own.drafter.looks_at(&sequence.tokens);
            if left == 0 || looks_at > looks {
                break;
            }
            looks -= looks_at;
            let (known, drawing) = (sequence.tokens.len(), &mut sequence.own);
            // Of what it may still say the last needs no guess.
            let may_say = drawing.sampler.remaining().saturating_sub(1) as usize;
            let may_hold = self.limits.context_tokens_max.saturating_sub(known + 1);
            let room = left.min(may_say).min(may_hold);
            let mut draft = std::mem::take(&mut drawing.draft);
            drawing.drafter.guess(&sequence.tokens, room, &mut draft);
            let wanted = self.cache.grid.blocks_for(known + draft.len());
            while sequence.table.len() < wanted && spare > 0 && self.cache.extend(sequence, now_us)
            {
                spare -= 1;
            }
            let held = sequence.table.len() * self.cache.grid.block_tokens;
            draft.truncate(held.saturating_sub(known));
            left -= draft.len();
            sequence.own.step_rows += draft.len();
            sequence.own.draft = draft;
        }
        rows_max - left
    }

    /// How many rows of its prompt a request can compute now.
    fn chunk(&self, index: usize, budget: usize, room_for_output: bool) -> usize {
        let sequence = &self.running[index];
        let remaining = sequence.remaining();
        if remaining <= 1 {
            return 0;
        }
        if remaining <= budget && room_for_output {
            return remaining;
        }
        // The last token is not computed without room for what it leads to.
        let most = budget.min(remaining - 1);
        let end = sequence.computed + most;
        (end - end % self.cache.grid.block_tokens).saturating_sub(sequence.computed)
    }

    /// Gives a request the blocks for its next rows, at the cost of those behind it; false when it
    /// was itself the last and is running no more.
    fn give_rows(&mut self, index: usize, rows: usize, now_us: u64) -> bool {
        let wanted = self.cache.grid.blocks_for(self.running[index].computed + rows);
        while self.running[index].table.len() < wanted {
            let sequence = &mut self.running[index];
            if self.cache.extend(sequence, now_us) {
                continue;
            }
            let last = self.running.len() - 1;
            if last > index {
                self.preempt(last, now_us);
            } else if last > 0 {
                self.preempt(index, now_us);
                return false;
            } else {
                // Alone, and still nothing to be had: the sequence or the pins are larger than the
                // cache.
                let sequence = self.running.remove(index);
                let message =
                    "this request and pins fill the cache; raise `kv_bytes` or let pins end";
                let finish =
                    Finish::Error { rc: Code::Exhausted.rc(), message: message.to_owned() };
                self.end(sequence, now_us, None, finish);
                return false;
            }
        }
        self.running[index].own.step_rows = rows;
        true
    }
}
