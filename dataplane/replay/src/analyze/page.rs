//! The analysis as tables and as a page.
//!
//! A row says what it is, its unit and its figures; what is not known is a dash, and listed at the end with the
//! reason.

use super::{Analysis, Curve, Dist};
use crate::page::Page;
use crate::plot::{Axis, Line, Plot, Unit, short, time};

/// Headers and rows, for a terminal or a page.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What it is about.
    pub title: &'static str,
    /// One for each column.
    pub headers: Vec<&'static str>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

fn percent(value: f64) -> String {
    format!("{:.2}%", value * 100.0)
}

fn or_dash<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

/// A row of percentiles.
fn row(name: &str, dist: Option<Dist>, text: fn(f64) -> String) -> Vec<String> {
    let figures = |d: Dist| vec![d.count as f64, d.p50, d.p90, d.p99, d.max, d.mean];
    let figures = dist.map(figures).unwrap_or_default();
    let mut cells = vec![name.to_owned()];
    cells.extend(
        figures.iter().enumerate().map(
            |(at, value)| {
                if at == 0 { format!("{value}") } else { text(*value) }
            },
        ),
    );
    cells.resize(7, "-".to_owned());
    cells
}

fn pair(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

impl Analysis {
    /// Everything but the curves, as tables.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        let percentiles = vec!["MEASURE", "COUNT", "P50", "P90", "P99", "MAX", "MEAN"];
        let value = vec!["MEASURE", "VALUE"];
        vec![
            Table { title: "Traffic", headers: value.clone(), rows: self.traffic() },
            Table { title: "Sizes and times", headers: percentiles, rows: self.distributions() },
            Table { title: "Blocks and contexts", headers: value, rows: self.blocks() },
            Table {
                title: "Caches that keep a block for so long after its last use",
                headers: vec!["KEPT FOR", "HIT RATE", "PREFILL AMPLIFICATION"],
                rows: self.kept_rows(),
            },
        ]
    }

    fn traffic(&self) -> Vec<Vec<String>> {
        vec![
            pair("sessions", self.sessions.to_string()),
            pair("requests", self.requests.to_string()),
            pair("requests left out (too long)", self.left_out.to_string()),
            pair("span", or_dash(self.span_s, |s| time(s * 1_000.0))),
            pair("prompt tokens", short(self.prompt_tokens as f64)),
            pair("answer tokens", short(self.output_tokens as f64)),
            pair("hit rate available", percent(self.hit_rate_available)),
            pair("hit rate achieved", or_dash(self.hit_rate_achieved, percent)),
            pair(
                "prefill amplification",
                or_dash(self.prefill_amplification, |a| format!("{a:.2}x")),
            ),
        ]
    }

    fn distributions(&self) -> Vec<Vec<String>> {
        let subagents = self.subagents.as_ref();
        let compactions = &self.compactions;
        vec![
            row("requests a session", self.session_turns, short),
            row("prompt, tokens", self.prompt, short),
            row("answer, tokens", self.output, short),
            row("longest prompt of a session, tokens", self.longest_prompt, short),
            row("growth from turn to turn, tokens", self.growth_tokens, short),
            row("time to first token", self.ttft_ms, time),
            row("time of a request", self.request_ms, time),
            row("tok/s of a request", self.request_tok_s, short),
            row("pause for a tool", self.tool_pause_ms, time),
            row("pause of a person", self.person_pause_ms, time),
            row("pause, not said what for", self.other_pause_ms, time),
            row("requests of a subagent", subagents.map(|s| s.turns), short),
            row("subagent's first prompt, tokens", subagents.map(|s| s.first_prompt_tokens), short),
            row("of these cold, tokens", subagents.map(|s| s.cold_tokens), short),
            row("prompt before a compaction, tokens", compactions.before_tokens, short),
            row("prompt after it, tokens", compactions.after_tokens, short),
            row("left as it was at its begin, tokens", compactions.kept_tokens, short),
        ]
    }

    fn blocks(&self) -> Vec<Vec<String>> {
        let (repeated, compactions) = (&self.repeated, &self.compactions);
        let subagents = self.subagents.as_ref();
        vec![
            pair("tokens of a block", self.block_tokens.to_string()),
            pair("blocks asked for", short(repeated.asked_blocks as f64)),
            pair("different blocks", short(repeated.distinct_blocks as f64)),
            pair("of these asked for once", percent(repeated.once_share)),
            pair("of these asked for ten times or more", percent(repeated.ten_share)),
            pair(
                "cached tokens that another session asked for first",
                percent(repeated.from_other_sessions_share),
            ),
            pair("subagents", or_dash(subagents, |s| s.count.to_string())),
            pair("sessions with subagents", or_dash(subagents, |s| s.sessions.to_string())),
            pair(
                "subagents' first prompts that are cold",
                or_dash(subagents, |s| percent(s.cold_share)),
            ),
            pair("compactions", compactions.count.to_string()),
            pair("sessions with compactions", compactions.sessions.to_string()),
            pair("side calls", compactions.side_calls.to_string()),
            pair("ends of prompts taken back", compactions.taken_back.to_string()),
        ]
    }

    fn kept_rows(&self) -> Vec<Vec<String>> {
        let row = |kept: &super::Kept| {
            vec![
                kept.ttl_s.map_or("for ever".to_owned(), |s| time(s * 1_000.0)),
                percent(kept.hit_rate),
                format!("{:.2}x", kept.prefill_amplification),
            ]
        };
        self.kept.iter().map(row).collect()
    }

    /// One page with all of it and plots. `source` names the trace.
    #[must_use]
    pub fn page(&self, source: &str) -> String {
        let lead = format!(
            "{source}: {} sessions, {} requests, {} prompt tokens.",
            self.sessions,
            self.requests,
            short(self.prompt_tokens as f64)
        );
        let mut page = Page::new("What this trace says", &lead);
        let mut tables = self.tables().into_iter();
        if let Some(table) = tables.next() {
            page.section(table.title, "");
            page.table(&table.headers, &table.rows);
        }
        page.section("Plots", "");
        page.plots(&self.plots());
        for table in tables {
            page.section(table.title, "");
            page.table(&table.headers, &table.rows);
        }
        page.section("Not in this trace", "Nothing was made up for these.");
        page.list(&self.absent);
        page.end()
    }

    fn plots(&self) -> Vec<Plot> {
        let mut plots = Vec::from(self.kept_plots());
        plots.extend(self.turn_plots());
        plots.extend(self.measured_plots());
        plots
    }

    /// What caches must keep.
    fn kept_plots(&self) -> [Plot; 2] {
        let kept = |figure: fn(&super::Kept) -> f64| -> Vec<(f64, f64)> {
            let points = self.kept.iter().filter_map(|kept| Some((kept.ttl_s?, figure(kept))));
            points.collect()
        };
        let available = self.hit_rate_available * 100.0;
        let ever = kept(|_| 0.0).iter().map(|(ttl, _)| (*ttl, available)).collect();
        let after = Axis::log("kept after the last use", Unit::Seconds);
        [
            plot(
                "Hit rate by how long caches keep",
                "Where the curve bends is how long blocks must outlive their last use.",
                (after, Axis::percent("prompt tokens cached")),
                vec![line("kept so long", kept(|k| k.hit_rate * 100.0)), line("for ever", ever)],
            ),
            plot(
                "Prefill amplification by how long caches keep",
                "Prompt tokens to compute, of those that a cache without end has to.",
                (after, Axis::linear("times", Unit::Number)),
                vec![line("prefill", kept(|k| k.prefill_amplification))],
            ),
        ]
    }

    /// How turns follow each other.
    fn turn_plots(&self) -> [Plot; 2] {
        let by_turn = |name: &str, figure: fn(&super::TurnPoint) -> f64| {
            let points = self.by_turn.iter().map(|point| (f64::from(point.turn), figure(point)));
            line(name, points.collect())
        };
        let mut pauses = vec![
            flipped("tools", &self.curves.tool_pause_ms),
            flipped("people", &self.curves.person_pause_ms),
            flipped("not said", &self.curves.other_pause_ms),
        ];
        pauses.retain(|line| !line.points.is_empty());
        [
            plot(
                "Growth of prompts",
                "Prompt of the lead agent, by turn. Fewer sessions come to later turns.",
                (Axis::linear("turn", Unit::Number), Axis::linear("tokens", Unit::Number)),
                vec![by_turn("median", |p| p.p50), by_turn("nine of ten below", |p| p.p90)],
            ),
            plot(
                "Pauses between turns",
                "How long caches wait for the next turn.",
                (Axis::log("pause", Unit::Ms), Axis::percent(AT_MOST)),
                pauses,
            ),
        ]
    }

    /// What was measured when the trace was recorded.
    fn measured_plots(&self) -> [Plot; 3] {
        let minutes = Axis::linear("minutes from the begin", Unit::Number);
        [
            plot(
                "Time to first token, as recorded",
                "",
                (Axis::log("time", Unit::Ms), Axis::percent(AT_MOST)),
                vec![flipped("time to first token", &self.curves.ttft_ms)],
            ),
            plot(
                "Tokens a second of a request, as recorded",
                "Over the time from its arrival to its last token.",
                (Axis::log("tokens a second", Unit::Number), Axis::percent(AT_MOST)),
                vec![flipped("tok/s", &self.curves.request_tok_s)],
            ),
            plot(
                "Arrivals",
                "",
                (minutes, Axis::linear("requests a minute", Unit::Number)),
                vec![line("requests", self.arrivals.clone())],
            ),
        ]
    }
}

/// The label of the axis of shares.
const AT_MOST: &str = "of them, at most that";

fn line(name: &str, points: Vec<(f64, f64)>) -> Line {
    Line { name: name.to_owned(), points }
}

/// A curve with its values along the paper.
fn flipped(name: &str, curve: &Curve) -> Line {
    line(name, curve.iter().map(|(percent, value)| (*value, *percent)).collect())
}

fn plot(title: &str, note: &str, (x, y): (Axis, Axis), lines: Vec<Line>) -> Plot {
    Plot { title: title.to_owned(), note: note.to_owned(), x, y, lines }
}
