//! Workers that are not like the others: slower devices, and healthy ones that become slow while they serve.
//!
//! Fleets are seldom of one kind, and a device that throttles still answers its health checks. Text comes from a
//! command line; what is not of the form is refused as a whole.

/// A change of some workers' speed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slow {
    /// The first and the last of them, counted from 0.
    pub workers: (u32, u32),
    /// So many times as fast as the profile says.
    pub speed: f64,
    /// From this virtual second on.
    pub from_s: u64,
}

/// The latest second of a change: ten years.
const FROM_S_MAX: u64 = 315_360_000;
/// Speeds are within this and one over it.
const SPEED_MAX: f64 = 100.0;

impl Slow {
    /// Reads `WORKER@SPEED` or `FIRST-LAST@SPEED`, each with `@SECOND` if it is to come later.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('@');
        let (workers, speed, from) = (parts.next()?, parts.next()?, parts.next());
        let (first, last) = workers.split_once('-').unwrap_or((workers, workers));
        let slow = Self {
            workers: (first.parse().ok()?, last.parse().ok()?),
            speed: speed.parse().ok()?,
            from_s: from.map_or(Some(0), |from| from.parse().ok())?,
        };
        let sane = (1.0 / SPEED_MAX..=SPEED_MAX).contains(&slow.speed);
        let sane = sane && slow.workers.0 <= slow.workers.1 && slow.from_s <= FROM_S_MAX;
        (sane && parts.next().is_none()).then_some(slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_speed_are_read() {
        let slow = |first, last, speed, from_s| Slow { workers: (first, last), speed, from_s };
        assert_eq!(Slow::parse("2@0.5"), Some(slow(2, 2, 0.5, 0)));
        assert_eq!(Slow::parse("0-3@0.25@600"), Some(slow(0, 3, 0.25, 600)));
        for wrong in ["", "2", "2@", "2@0", "2@nan", "3-2@0.5", "2@0.5@-1", "2@0.5@1@1", "x@1"] {
            assert_eq!(Slow::parse(wrong), None, "{wrong}");
        }
    }
}
