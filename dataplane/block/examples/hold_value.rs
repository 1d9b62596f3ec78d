//! What holds for tools would have been worth over recorded pauses: learnt ones beside constant ones and foresight.
//!
//! Reads lines of a tool's name and its milliseconds, in the order in which they happened, from standard input. Each
//! pause is decided on with what those before it have taught. A return in time gains a second; for several prices of
//! memory it prints which share of what foresight would have gained each way of holding gets, less what it pays for
//! keeping: below nought it would have been better to hold nothing.

use std::io::Read;

use mainstay_block::{Policy, PolicySettings, Stakes, TenantSlot};

const GAIN_MS: f64 = 1_000.0;
const TENANT: TenantSlot = TenantSlot(0);

/// What a hold of that length comes to.
fn worth(hold_ms: u64, took_ms: u64, price_per_ms: f64) -> f64 {
    let gained = if took_ms < hold_ms { GAIN_MS } else { 0.0 };
    gained - price_per_ms * hold_ms.min(took_ms) as f64
}

fn learnt(pauses: &[(&str, u64)], price_per_ms: f64) -> f64 {
    // Nothing is held for its own sake, so that only the rule is measured.
    let settings = PolicySettings { hold_min_ms: 0, ..PolicySettings::default() };
    let mut policy = Policy::new(settings);
    let stakes = Stakes { reload_ms: GAIN_MS, price_per_ms, kept_ms: 0 };
    let mut sum = 0.0;
    for (tool, took_ms) in pauses {
        let pause = policy.pause(TENANT, &[tool], stakes, 0);
        sum += worth(pause.hold_ms.unwrap_or(0), *took_ms, price_per_ms);
        policy.resume(&pause, *took_ms);
    }
    sum
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut pauses: Vec<(&str, u64)> = Vec::new();
    for line in text.lines() {
        let (tool, ms) = line.rsplit_once(char::is_whitespace).ok_or("a line is: tool ms")?;
        pauses.push((tool, ms.parse()?));
    }
    println!("{} pauses", pauses.len());
    println!("| price of a second kept | learnt | 5 s | 60 s | 300 s | best constant |");
    println!("|---|---|---|---|---|---|");
    for price_per_ms in [0.001, 0.003, 0.01, 0.03, 0.1, 0.3] {
        let foresight: f64 = pauses
            .iter()
            .map(|(_, took_ms)| worth(took_ms + 1, *took_ms, price_per_ms).max(0.0))
            .sum();
        let of = |sum: f64| 100.0 * sum / foresight.max(1e-9);
        let constant = |hold_ms: u64| -> f64 {
            of(pauses.iter().map(|pause| worth(hold_ms, pause.1, price_per_ms)).sum())
        };
        let (best_ms, best) = (0..60)
            .map(|step| (100.0 * 1.25f64.powi(step)) as u64)
            .map(|hold_ms| (hold_ms, constant(hold_ms)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or((0, 0.0));
        println!(
            "| {} ms | {:.0} % | {:.0} % | {:.0} % | {:.0} % | {best:.0} % ({:.1} s) |",
            price_per_ms * 1_000.0,
            of(learnt(&pauses, price_per_ms)),
            constant(5_000),
            constant(60_000),
            constant(300_000),
            best_ms as f64 / 1_000.0,
        );
    }
    Ok(())
}
