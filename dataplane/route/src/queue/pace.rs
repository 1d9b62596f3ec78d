//! How quickly a queue moves, so that whoever is turned away hears when to come again.
//!
//! What went counts half after ten seconds in which anybody waited: time in which nobody did says nothing of how quickly
//! it would have moved. A queue that has not moved yet promises nothing: the least wait.

/// What went counts half after so long.
const HALF_LIFE_MS: f64 = 10_000.0;
/// The least and the most that anybody is told to wait.
const RETRY_MS_MIN: u64 = 1_000;
const RETRY_MS_MAX: u64 = 60_000;

/// Tokens that went lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    tokens: f64,
    at_ms: u64,
    /// When the first went.
    since_ms: Option<u64>,
}

impl Pace {
    fn left(&self, now_ms: u64) -> f64 {
        let quiet_ms = now_ms.saturating_sub(self.at_ms) as f64;
        self.tokens * (-quiet_ms / HALF_LIFE_MS).exp2()
    }

    pub(super) fn went(&mut self, now_ms: u64, tokens: u64) {
        self.tokens = self.left(now_ms) + tokens as f64;
        self.at_ms = self.at_ms.max(now_ms);
        self.since_ms.get_or_insert(now_ms);
    }

    /// Somebody waits again, where nobody did since the last one went.
    pub(super) fn resume(&mut self, now_ms: u64) {
        if let Some(since_ms) = &mut self.since_ms {
            let idle_ms = now_ms.saturating_sub(self.at_ms);
            *since_ms = since_ms.saturating_add(idle_ms);
            self.at_ms = self.at_ms.max(now_ms);
        }
    }

    /// How long so many tokens will take.
    pub(super) fn until_ms(&self, now_ms: u64, tokens: u64) -> u64 {
        let Some(since_ms) = self.since_ms else { return RETRY_MS_MIN };
        // What has a half-life adds up to a steady stream over its mean life, once it has flowed for that long.
        let mean_life_ms = HALF_LIFE_MS / std::f64::consts::LN_2;
        let flowed_ms = now_ms.saturating_sub(since_ms) as f64;
        let seen_ms = mean_life_ms * (1.0 - (-flowed_ms / mean_life_ms).exp());
        let per_ms = self.left(now_ms) / seen_ms.max(1.0);
        // Casts from floats stop at the ends; nothing by nothing is no number and counts as 0.
        ((tokens as f64 / per_ms) as u64).clamp(RETRY_MS_MIN, RETRY_MS_MAX)
    }
}
