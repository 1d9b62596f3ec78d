//! What a request's priority makes of its blocks: how strongly engines keep them afterwards.
//!
//! Somebody urgent comes back, and what was evicted meanwhile has to be computed while he waits. It holds for a while
//! only: a session that ended would keep its blocks from others for good. How urgent somebody is makes no difference
//! beyond that he is, or whoever says the largest number would own the cache.

/// What a block is worth to those who were asked for it, from the end of the request on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worth {
    /// Retention priority, 0 to 100; engines take 35 where nobody says anything.
    pub priority: u8,
    /// For how long.
    pub duration_ms: u32,
}

/// Above all ordinary blocks, those that sessions' leases hold included, and below those that pins protect. Engines take
/// what is kept above 90 for no room for requests of no priority while others run.
const URGENT: u8 = 95;
/// Below all ordinary blocks.
const BACKGROUND: u8 = 20;
/// Nine in ten pauses for tools are shorter, and those of people are longer than anybody can wait for.
const DURATION_MS: u32 = 120_000;

/// By the request's priority; `None` for an ordinary one, which claims nothing.
#[must_use]
pub fn worth(priority: i32) -> Option<Worth> {
    let level = match priority {
        0 => return None,
        1.. => URGENT,
        _ => BACKGROUND,
    };
    Some(Worth { priority: level, duration_ms: DURATION_MS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sign_of_a_priority_counts() {
        assert_eq!(worth(0), None);
        assert_eq!(worth(1), worth(i32::MAX));
        assert_eq!(worth(-1), worth(i32::MIN));
        assert!(worth(1).unwrap().priority > 35 && worth(-1).unwrap().priority < 35);
    }
}
