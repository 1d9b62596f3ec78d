//! How much memory processes hold over time, and whether it grows: their resident sets, looked at now and then, and the
//! straight line that fits best.

use std::time::Duration;

use anyhow::{Context, Result};

/// What one process held.
#[derive(Debug, Clone, Default)]
pub struct Curve {
    /// Seconds since the first look, and resident bytes without files that are mapped.
    looks: Vec<(f64, f64)>,
}

/// A straight line through a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Bytes at the middle.
    pub mean: f64,
    pub bytes_per_hour: f64,
}

impl Line {
    /// Growth in an hour as a part of the mean.
    pub fn part_per_hour(&self) -> f64 {
        if self.mean > 0.0 { self.bytes_per_hour / self.mean } else { 0.0 }
    }
}

/// Resident bytes of a process that no file stands behind: heap, stacks and the like.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib: u64 = kib.with_context(|| format!("{path} has no RssAnon"))?.trim().parse()?;
    Ok(kib << 10)
}

impl Curve {
    /// Adds a look.
    pub fn push(&mut self, at: Duration, bytes: u64) {
        self.looks.push((at.as_secs_f64(), bytes as f64));
    }

    /// The line through all looks from `from` on, by least squares; none through fewer than three.
    pub fn line_from(&self, from: Duration) -> Option<Line> {
        let from = from.as_secs_f64();
        let looks: Vec<(f64, f64)> =
            self.looks.iter().copied().filter(|(at, _)| *at >= from).collect();
        if looks.len() < 3 {
            return None;
        }
        let count = looks.len() as f64;
        let middle = looks.iter().map(|(at, _)| at).sum::<f64>() / count;
        let mean = looks.iter().map(|(_, bytes)| bytes).sum::<f64>() / count;
        let along = looks.iter().map(|(at, _)| (at - middle).powi(2)).sum::<f64>();
        let both = looks.iter().map(|(at, bytes)| (at - middle) * (bytes - mean)).sum::<f64>();
        let slope = if along > 0.0 { both / along } else { 0.0 };
        Some(Line { mean, bytes_per_hour: slope * 3_600.0 })
    }

    /// The last look, in bytes.
    pub fn last(&self) -> u64 {
        self.looks.last().map_or(0, |(_, bytes)| *bytes as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_seen_and_a_beginning_is_not_one() {
        let mut curve = Curve::default();
        for second in 0..1_000_u64 {
            // Fills for a while, then leaks a kilobyte a second, with noise.
            let filled = second.min(100) << 20;
            let noise = (second * 7_919 % 64) << 10;
            curve.push(Duration::from_secs(second), filled + second * 1_000 + noise);
        }
        let late = curve.line_from(Duration::from_secs(500)).expect("many looks");
        assert!((late.bytes_per_hour - 3.6e6).abs() < 4e5, "{late:?}");
        let all = curve.line_from(Duration::ZERO).expect("many looks");
        assert!(all.bytes_per_hour > 10.0 * late.bytes_per_hour, "{all:?}");
        assert!(late.part_per_hour() < 0.04, "{late:?}");
        assert_eq!(curve.line_from(Duration::from_secs(998)), None);
    }

    #[test]
    fn a_process_holds_something() -> Result<()> {
        assert!(resident(std::process::id())? > 100_000);
        assert!(resident(u32::MAX).is_err());
        Ok(())
    }
}
