//! The demo's table.

use super::agents::RunResult;

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "token counts of a demo are far below 2^52")]
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.0} %", 100.0 * part as f64 / whole as f64) }
}

/// One column per run.
pub(crate) fn table(results: &[RunResult]) -> String {
    let mut headers = vec![""];
    headers.extend(results.iter().map(|r| r.name));
    let row = |name: &str, cell: &dyn Fn(&RunResult) -> String| {
        let mut cells = vec![name.to_owned()];
        cells.extend(results.iter().map(cell));
        cells
    };
    let pins = |r: &RunResult| {
        if r.pins_made == 0 {
            "-".to_owned()
        } else {
            format!("{} of {}", r.pins_kept, r.pins_made)
        }
    };
    let rows = vec![
        row("TTFT cold p50", &|r| format!("{:.1} ms", median(&r.cold_ms))),
        row("TTFT warm p50", &|r| format!("{:.1} ms", median(&r.warm_ms))),
        row("hit rate achieved", &|r| percent(r.cached_tokens, r.prompt_tokens)),
        row("hit rate available", &|r| percent(r.available_tokens, r.prompt_tokens)),
        row("pins kept", &pins),
    ];
    format!("\n{}", crate::output::table(&headers, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_rates() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
        assert_eq!(percent(1, 3), "33 %");
        assert_eq!(percent(0, 0), "-");
    }
}
