//! Policies beside each other on one page.
//!
//! The same figures as in the table of the command, and plots of distribution and course where the reports have them.

use super::{Back, Report};
use crate::page::Page;
use crate::plot::{Axis, Line, Plot, Unit, time};
use crate::series::{Point, Series};

/// One page about several runs of one trace. `lead` says what was played, `settings` all that decides the result.
#[must_use]
pub fn comparison_page(lead: &str, settings: &[(String, String)], reports: &[Report]) -> String {
    let mut page = Page::new("Routing policies on the same requests", lead);
    page.section(
        "Figures",
        "Milliseconds are those of modelled engines: compare policies, not machines.",
    );
    page.table(
        &[
            "policy",
            "TTFT p50",
            "p90",
            "p99",
            "mean",
            "tok/s p50",
            "fleet tok/s",
            "hit rate",
            "available",
            "share",
            "prefill",
            "busy",
            "preempted",
            "evicted",
        ],
        &reports.iter().map(row).collect::<Vec<_>>(),
    );
    if reports.iter().any(|report| !report.by_priority.is_empty()) {
        page.section("By priority", "");
        let headers = [
            "policy",
            "priority",
            "requests",
            "TTFT p50",
            "p90",
            "p99",
            "engine queue p50",
            "not cached p50",
            "tok/s p50",
        ];
        page.table(&headers, &reports.iter().flat_map(classes).collect::<Vec<_>>());
    }
    returns(&mut page, reports);
    page.section("Plots", "Courses end when there are no more sessions to start.");
    let mut all = back_plots(reports);
    all.extend(plots(reports));
    page.plots(&all);
    page.section("Settings", "The same trace, seed and settings give the same page.");
    let rows: Vec<Vec<String>> =
        settings.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    page.table(&["setting", "value"], &rows);
    page.end()
}

fn row(report: &Report) -> Vec<String> {
    let percent = |value: f64| format!("{:.2}%", value * 100.0);
    vec![
        report.policy.clone(),
        time(report.ttft_ms.p50),
        time(report.ttft_ms.p90),
        time(report.ttft_ms.p99),
        time(report.ttft_ms.mean),
        format!("{:.1}", report.request_tok_s.p50),
        format!("{:.0}", report.fleet_tok_s),
        percent(report.hit_rate),
        percent(report.hit_rate_available),
        percent(report.hit_share),
        format!("{:.2}x", report.prefill_amplification),
        percent(report.busy),
        report.preemptions.to_string(),
        (report.evictions.capacity + report.evictions.expiry).to_string(),
    ]
}

/// What turns after a pause found, where anything was done for them or against them.
fn returns(page: &mut Page, reports: &[Report]) {
    if !reports.iter().any(Report::is_of_returns) {
        return;
    }
    page.section(
        "After pauses",
        "Cached prompt tokens of turns that went on, of those that a cache without end would have had.",
    );
    back_table(page, "pause", " s", reports, |report| &report.after_pause);
    page.section(
        "After traffic",
        "The same turns by how many times its cache their worker took in meanwhile.",
    );
    back_table(page, "traffic", " caches", reports, |report| &report.after_traffic);
    let pinned = |report: &Report| {
        let pinned = report.pinned?;
        let first = [report.policy.clone(), pinned.tokens.to_string()];
        Some(first.into_iter().chain(pinned.cells()).collect())
    };
    let rows: Vec<Vec<String>> = reports.iter().filter_map(pinned).collect();
    if !rows.is_empty() {
        page.section("Pinned beginnings", "Flooded: the worker took in five caches in the pause.");
        let headers = [
            "policy",
            "tokens",
            "sessions",
            "turns",
            "hit",
            "flooded turns",
            "flooded hit",
            "others: hit",
            "others: flooded hit",
        ];
        page.table(&headers, &rows);
    }
}

/// A row for each policy, a column for each stretch, with how many turns that were.
fn back_table(
    page: &mut Page,
    what: &str,
    unit: &str,
    reports: &[Report],
    backs: fn(&Report) -> &[Back],
) {
    let mut bounds: Vec<f64> = reports.iter().flat_map(backs).map(|back| back.from).collect();
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    let names = bounds.iter().map(|from| format!("{what} from {from}{unit}"));
    let names: Vec<String> = std::iter::once("policy".to_owned()).chain(names).collect();
    let row = |report: &Report| {
        let cell = |from: &f64| {
            let back = backs(report).iter().find(|back| back.from == *from);
            let cell = |back: &Back| format!("{:.1}% ({})", back.hit_share * 100.0, back.turns);
            back.map_or("-".to_owned(), cell)
        };
        std::iter::once(report.policy.clone()).chain(bounds.iter().map(cell)).collect()
    };
    let headers: Vec<&str> = names.iter().map(String::as_str).collect();
    page.table(&headers, &reports.iter().map(row).collect::<Vec<_>>());
}

fn classes(report: &Report) -> Vec<Vec<String>> {
    let row = |class: &super::Class| {
        vec![
            report.policy.clone(),
            class.priority.to_owned(),
            class.requests.to_string(),
            time(class.ttft_ms.p50),
            time(class.ttft_ms.p90),
            time(class.ttft_ms.p99),
            time(class.engine_queue_ms.p50),
            format!("{:.0}", class.uncached_tokens.p50),
            format!("{:.1}", class.request_tok_s.p50),
        ]
    };
    report.by_priority.iter().map(row).collect()
}

fn plot(title: &str, note: &str, x: Axis, y: Axis, lines: Vec<Line>) -> Plot {
    Plot { title: title.to_owned(), note: note.to_owned(), x, y, lines }
}

/// What turns after a pause found.
fn back_plots(reports: &[Report]) -> Vec<Plot> {
    let backs = |backs: fn(&Report) -> &[Back], least: f64| -> Vec<Line> {
        let point = |back: &Back| (back.from.max(least), back.hit_share * 100.0);
        let line = |report: &Report| Line {
            name: report.policy.clone(),
            points: backs(report).iter().map(point).collect(),
        };
        reports.iter().map(line).collect()
    };
    vec![
        plot(
            "Hits after a pause, by its length",
            "The left end of each stretch; the last one has no right end.",
            Axis::log("pause, at least", Unit::Seconds),
            Axis::percent("of what was to be had"),
            backs(|report| &report.after_pause, 1.0),
        ),
        plot(
            "Hits after a pause, by what came meanwhile",
            "In sizes of the worker's cache.",
            Axis::log("caches taken in, at least", Unit::Number),
            Axis::percent("of what was to be had"),
            backs(|report| &report.after_traffic, 0.1),
        ),
    ]
}

fn plots(reports: &[Report]) -> Vec<Plot> {
    let lines = |points: &dyn Fn(&Series) -> Vec<(f64, f64)>| -> Vec<Line> {
        let line = |report: &Report| {
            let points = report.series.as_ref().map(points).unwrap_or_default();
            Line { name: report.policy.clone(), points }
        };
        reports.iter().map(line).collect()
    };
    let course = |figure: fn(&Point) -> Option<f64>| {
        lines(&|series: &Series| {
            // What comes later are a few long sessions, which say little of the fleet.
            let points = series.points.iter().filter(|point| point.at_s <= series.full_s);
            points.filter_map(|point| Some((point.at_s, figure(point)?))).collect()
        })
    };
    let at = Axis::linear("virtual time", Unit::Seconds);
    vec![
        plot(
            "Time to first token",
            "Further to the left is better.",
            Axis::log("time to first token", Unit::Ms),
            Axis::percent("of requests, at most that"),
            lines(&|series| series.ttft_cdf.iter().map(|(share, ms)| (*ms, *share)).collect()),
        ),
        plot(
            "Mean time to first token over time",
            "",
            at,
            Axis::log("time to first token", Unit::Ms),
            course(|point| point.ttft_ms),
        ),
        plot(
            "Hit rate over time",
            "Prompt tokens that were cached, of requests with their first token then.",
            at,
            Axis::percent("prompt tokens cached"),
            course(|point| point.hit_rate.map(|rate| rate * 100.0)),
        ),
        plot(
            "Tokens a second of the fleet over time",
            "Counted when a request ends.",
            at,
            Axis::linear("tokens a second", Unit::Number),
            course(|point| Some(point.tok_s)),
        ),
        plot(
            "Requests in flight over time",
            "The same sessions wait longer where they are served more slowly.",
            at,
            Axis::linear("requests", Unit::Number),
            course(|point| Some(point.in_flight)),
        ),
    ]
}
