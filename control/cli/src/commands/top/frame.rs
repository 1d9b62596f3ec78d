//! What is shown of a look: a few figures and five tables, all of them text already. Whatever an answer lacks is a dash.
//!
//! Rates are differences of counters between two looks, over the time between them; a worker that began anew has none
//! until the look after. Texts come from clients and other servers: they are cut, and whatever could move a terminal's
//! cursor or turn its writing round is left out.

use std::collections::HashMap;

use serde_json::Value;

use super::keys::View;
use super::look::Look;
use crate::commands::pin::holders;
use crate::commands::session::{cached, state};
use crate::output::duration;

/// Rows of a table; a gateway has fewer of most.
const ROWS_MAX: usize = 2_000;
/// Characters of a cell or a message.
const TEXT_MAX: usize = 160;
/// Problems that are told at once.
const PROBLEMS_MAX: usize = 8;

/// What a row means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// It waits, or will end soon.
    Wait,
    Bad,
    /// It is over.
    Past,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    pub(super) tone: Tone,
}

/// A column, and how soon it goes when there is no room: the highest number first, 0 never.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) head: &'static str,
    pub(super) spare: u8,
    pub(super) is_number: bool,
}

const fn text(head: &'static str, spare: u8) -> Column {
    Column { head, spare, is_number: false }
}

const fn figure(head: &'static str, spare: u8) -> Column {
    Column { head, spare, is_number: true }
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Row>,
    /// The gateway has more than it told, or this program more than it shows.
    pub(super) has_more: bool,
}

/// All that is shown of a look.
#[derive(Debug)]
pub(super) struct Frame {
    /// Figures, the weightiest first.
    pub(super) figures: Vec<String>,
    pub(super) problems: Vec<String>,
    pub(super) members: Table,
    pub(super) workers: Table,
    pub(super) sessions: Table,
    pub(super) pins: Table,
    pub(super) decisions: Table,
}

impl Frame {
    /// What two looks say; the one before may be missing.
    pub(super) fn of(look: &Look, before: Option<&Look>) -> Self {
        let rates = Rates::between(look, before);
        let mut problems: Vec<String> = look.problems.iter().map(|text| plain_text(text)).collect();
        let reasons = array(&now(look)["reasons"]).iter().filter_map(Value::as_str);
        problems.extend(reasons.map(plain_text));
        problems.truncate(PROBLEMS_MAX);
        Self {
            figures: figures(look, &rates),
            problems,
            members: members(look),
            workers: workers(look, &rates),
            sessions: sessions(look),
            pins: pins(look),
            decisions: decisions(look),
        }
    }

    /// The one table of a view; the overview has all of them.
    pub(super) const fn table(&self, view: View) -> Option<&Table> {
        match view {
            View::Overview => None,
            View::Workers => Some(&self.workers),
            View::Sessions => Some(&self.sessions),
            View::Pins => Some(&self.pins),
            View::Decisions => Some(&self.decisions),
        }
    }

    pub(super) const fn tables(&self) -> [&Table; 5] {
        [&self.members, &self.workers, &self.sessions, &self.pins, &self.decisions]
    }
}

/// Text for a terminal: of bounded length, without what steers one.
pub(super) fn plain_text(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut out: String = text.chars().filter(|c| !steers(*c)).take(TEXT_MAX + 1).collect();
    if out.chars().count() > TEXT_MAX {
        out = out.chars().take(TEXT_MAX - 1).chain(['…']).collect();
    }
    out
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A count; fractions are rounded, and what is none is missing.
fn number(value: &Value) -> Option<u64> {
    let rounded =
        || value.as_f64().filter(|n| n.is_finite() && *n >= 0.0).map(|n| n.round() as u64);
    value.as_u64().or_else(rounded)
}

fn word(value: &Value) -> String {
    let text = match value {
        Value::String(text) => plain_text(text),
        Value::Number(number) => number.to_string(),
        Value::Bool(is) => if *is { "yes" } else { "no" }.to_owned(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    };
    dash(text)
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A count in at most five places: `99999`, `100k`, `12M`.
pub(super) fn short(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..100_000_000 => format!("{}k", count / 1_000),
        100_000_000..100_000_000_000 => format!("{}M", count / 1_000_000),
        _ => format!("{}G", count / 1_000_000_000),
    }
}

fn shorts(value: &Value) -> String {
    number(value).map_or_else(|| dash(String::new()), short)
}

fn percent(part: u64, all: u64) -> Option<String> {
    (all > 0).then(|| format!("{:.0}%", 100.0 * part as f64 / all as f64))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| dash(String::new()))
}

fn table(columns: &'static [Column], rows: Vec<Row>, list: &Value) -> Table {
    let mut table = Table { columns, rows, has_more: list["has_more"] == true };
    table.has_more |= table.rows.len() > ROWS_MAX;
    table.rows.truncate(ROWS_MAX);
    table
}

fn row(cells: Vec<String>, tone: Tone) -> Row {
    Row { cells, tone }
}

/// The one row of the overview.
fn now(look: &Look) -> &Value {
    &look.overview["data"][0]
}

/// What workers have counted since their start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    hit: u64,
    query: u64,
    computed: u64,
    decoded: u64,
}

impl Counters {
    fn of(worker: &Value) -> Option<Self> {
        Some(Self {
            hit: number(&worker["hit_tokens"])?,
            query: number(&worker["query_tokens"])?,
            computed: number(&worker["computed_tokens"])?,
            decoded: number(&worker["decoded_tokens"])?,
        })
    }

    /// What came since; nothing that counts backwards began anew.
    fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            hit: self.hit.checked_sub(before.hit)?,
            query: self.query.checked_sub(before.query)?,
            computed: self.computed.checked_sub(before.computed)?,
            decoded: self.decoded.checked_sub(before.decoded)?,
        })
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            hit: self.hit.saturating_add(other.hit),
            query: self.query.saturating_add(other.query),
            computed: self.computed.saturating_add(other.computed),
            decoded: self.decoded.saturating_add(other.decoded),
        }
    }
}

/// A worker in one of its epochs.
fn identity(worker: &Value) -> Option<(u64, u64)> {
    Some((number(&worker["id"])?, number(&worker["epoch"])?))
}

/// Differences between two looks.
struct Rates {
    ms: u64,
    of: HashMap<(u64, u64), Counters>,
    all: Option<Counters>,
}

impl Rates {
    fn between(look: &Look, before: Option<&Look>) -> Self {
        let counted = |look: &Look| -> HashMap<(u64, u64), Counters> {
            let workers = array(&look.workers["data"]).iter().take(ROWS_MAX);
            workers.filter_map(|w| Some((identity(w)?, Counters::of(w)?))).collect()
        };
        let old = before.map(counted).unwrap_or_default();
        let since = |(id, new): ((u64, u64), Counters)| Some((id, new.since(*old.get(&id)?)?));
        let of: HashMap<_, _> = counted(look).into_iter().filter_map(since).collect();
        let all = of.values().copied().reduce(Counters::plus);
        let ms = before.map_or(0, |before| look.at_ms.saturating_sub(before.at_ms));
        Self { ms, of, all }
    }

    fn of(&self, worker: &Value) -> Option<&Counters> {
        self.of.get(&identity(worker)?)
    }

    fn per_second(&self, count: u64) -> Option<String> {
        (self.ms > 0).then(|| short((count as f64 * 1_000.0 / self.ms as f64).round() as u64))
    }
}

fn figures(look: &Look, rates: &Rates) -> Vec<String> {
    let (status, now) = (&look.status, now(look));
    let mut figures = Vec::new();
    let mut say = |text: Option<String>| figures.extend(text);
    say(match number(&status["leader"]).filter(|leader| *leader > 0) {
        Some(leader) => Some(format!("leader m{leader}")),
        None => status.is_object().then(|| "no leader".to_owned()),
    });
    say(number(&status["term"]).map(|term| format!("term {term}")));
    say(number(&status["applied_index"]).map(|at| format!("log index {at}")));
    let members = array(&status["members"]);
    let reached = members.iter().filter(|m| m["reachable"] == true).count();
    say((!members.is_empty()).then(|| format!("members {reached}/{}", members.len())));
    let workers = &now["workers"];
    let routable = number(&workers["routable"]).zip(number(&workers["live"]));
    say(routable.map(|(routable, live)| format!("workers {routable}/{live}")));
    let sum = |key: &str| {
        let all = array(&look.workers["data"]).iter().filter_map(|w| number(&w[key]));
        all.reduce(u64::saturating_add)
    };
    say(sum("running").map(|n| format!("running {n}")));
    say(sum("waiting").map(|n| format!("waiting {n}")));
    if let Some(all) = rates.all {
        say(rates.per_second(all.computed).map(|n| format!("prompts {n} tok/s")));
        say(rates.per_second(all.decoded).map(|n| format!("answers {n} tok/s")));
        say(percent(all.hit, all.query).map(|share| format!("hits {share}")));
    }
    let pins = number(&now["pins"]["live"]).or_else(|| number(&status["pins_live"]));
    say(pins.map(|n| format!("pins {n}")));
    say(number(&status["index_blocks"]).map(|n| format!("blocks indexed {}", short(n))));
    let recent = &now["last_5_minutes"]["gateway"];
    say(number(&recent["requests"]).map(|n| format!("5 min: requests {}", short(n))));
    say(number(&recent["refused"]).filter(|n| *n > 0).map(|n| format!("refused {}", short(n))));
    let times = number(&recent["ttft_p50_ms"]).zip(number(&recent["ttft_p95_ms"]));
    say(times.map(|(half, most)| format!("TTFT p50 {half} ms, p95 {most} ms")));
    say(number(&status["gateway"]["replica_age_ms"]).map(|ms| format!("replica {ms} ms old")));
    let version = number(&status["version"]);
    say(version.map(|version| format!("version {version}")));
    let tenant = look.overview["about"]["tenant"].as_str().map(plain_text);
    say(tenant.map(|tenant| format!("tenant {tenant}")));
    figures
}

fn members(look: &Look) -> Table {
    const COLUMNS: &[Column] = &[
        text("MEMBER", 0),
        text("ROLE", 0),
        figure("LAST LOG", 1),
        figure("APPLIED", 0),
        figure("LAG", 0),
        text("REACHABLE", 1),
        text("REGION", 3),
        figure("VERSION", 4),
        text("ADDRESS", 2),
    ];
    let of = |member: &Value| {
        let is_lost = member["reachable"] == false;
        let id = number(&member["id"]).map(|id| format!("m{id}"));
        let keys = [
            "role",
            "last_log_index",
            "applied_index",
            "lag",
            "reachable",
            "region",
            "version",
            "address",
        ];
        let mut cells = vec![or_dash(id)];
        cells.extend(keys.iter().map(|key| word(&member[*key])));
        row(cells, if is_lost { Tone::Bad } else { Tone::Plain })
    };
    table(COLUMNS, array(&look.status["members"]).iter().map(of).collect(), &Value::Null)
}

/// How a worker stands, in a word.
fn stands(worker: &Value) -> (String, Tone) {
    let state = word(&worker["state"]);
    match state.as_str() {
        "live" if worker["draining"] == true => ("draining".to_owned(), Tone::Wait),
        "live" if worker["heard"] == false => ("not reached".to_owned(), Tone::Bad),
        "live" if worker["routable"] == false => ("not routable".to_owned(), Tone::Bad),
        "live" => (state, Tone::Plain),
        "left" => (state, Tone::Past),
        _ => (state, Tone::Bad),
    }
}

/// Blocks by tier and how many of them pins name: `device 824/12 host 90/0`.
fn tiers(worker: &Value) -> String {
    let of = |tier: &Value| {
        let [pinned, sole, shared] =
            ["pinned", "sole", "shared"].map(|key| number(&tier[key]).unwrap_or_default());
        let held = pinned.saturating_add(sole).saturating_add(shared);
        format!("{} {}/{}", word(&tier["tier"]), short(held), short(pinned))
    };
    let all: Vec<String> = array(&worker["tiers"]).iter().map(of).collect();
    dash(all.join(" "))
}

fn workers(look: &Look, rates: &Rates) -> Table {
    const COLUMNS: &[Column] = &[
        text("WORKER", 0),
        text("STATE", 0),
        figure("RUN", 0),
        figure("WAIT", 0),
        figure("BLOCKS", 3),
        figure("USED", 0),
        figure("CACHED", 0),
        figure("PINNED", 0),
        figure("HITS", 1),
        figure("HITS NOW", 5),
        figure("PROMPT/S", 2),
        figure("ANSWER/S", 1),
        text("TIERS HELD/PINNED", 4),
        text("REGION", 7),
        text("MODEL", 6),
    ];
    let of = |worker: &Value| {
        let (state, tone) = stands(worker);
        let since = rates.of(worker);
        let share = |c: &Counters| percent(c.hit, c.query);
        let rate = |count: fn(&Counters) -> u64| {
            or_dash(since.and_then(|since| rates.per_second(count(since))))
        };
        let cells = vec![
            word(&worker["name"]),
            state,
            shorts(&worker["running"]),
            shorts(&worker["waiting"]),
            shorts(&worker["blocks_total"]),
            shorts(&worker["blocks_used"]),
            shorts(&worker["blocks_cached"]),
            shorts(&worker["blocks_pinned"]),
            or_dash(Counters::of(worker).as_ref().and_then(share)),
            or_dash(since.and_then(share)),
            rate(|since| since.computed),
            rate(|since| since.decoded),
            tiers(worker),
            word(&worker["region"]),
            word(&worker["model"]),
        ];
        row(cells, tone)
    };
    // A member knows them, too, if less of them.
    let told = array(&look.workers["data"]);
    let told = if told.is_empty() { array(&look.status["workers"]) } else { told };
    table(COLUMNS, told.iter().map(of).collect(), &look.workers)
}

/// The sessions with most turns first, those that ended last.
fn sessions(look: &Look) -> Table {
    const COLUMNS: &[Column] = &[
        text("SESSION", 0),
        text("STATE", 0),
        figure("TURNS", 0),
        figure("CACHED", 0),
        figure("CONTEXT", 1),
        figure("ANSWERED", 4),
        figure("SEEN AGO", 2),
        text("PARENT", 5),
        text("CLIENT", 3),
    ];
    let now_ms = number(&look.sessions["now_unix_ms"]);
    let of = |session: &&Value| {
        let tone = match session["state"].as_str() {
            Some("paused" | "waiting") => Tone::Wait,
            Some("ended") => Tone::Past,
            _ => Tone::Plain,
        };
        let at = || now_ms?.checked_sub(number(&session["seen_unix_ms"])?);
        let ago = number(&session["last_seen_ms_ago"]).or_else(at);
        let cells = vec![
            word(&session["key"]),
            plain_text(&state(session)),
            shorts(&session["turns"]),
            cached(session),
            shorts(&session["context_tokens"]),
            shorts(&session["completion_tokens"]),
            or_dash(ago.map(duration)),
            word(&session["parent"]),
            word(&session["client"]),
        ];
        row(cells, tone)
    };
    let mut told: Vec<&Value> = array(&look.sessions["data"]).iter().collect();
    let turns = |session: &Value| number(&session["turns"]).unwrap_or_default();
    told.sort_by_cached_key(|s| {
        (s["state"] == "ended", std::cmp::Reverse(turns(s)), word(&s["key"]))
    });
    table(COLUMNS, told.iter().map(of).collect(), &look.sessions)
}

/// What is left of a pin: told, or from the cluster's clock.
fn left_ms(list: &Value, pin: &Value) -> Option<u64> {
    if let Some(left) = number(&pin["ttl_left_ms"]) {
        return Some(left);
    }
    let now = list["now_unix_ms"].as_i64()?;
    let ahead = list["about"]["cluster_ahead_ms"].as_i64().unwrap_or_default();
    let left = pin["expires_unix_ms"].as_i64()?.saturating_sub(now.saturating_add(ahead));
    Some(u64::try_from(left).unwrap_or_default())
}

/// Pins that end soonest first, then those that have.
fn pins(look: &Look) -> Table {
    const COLUMNS: &[Column] = &[
        text("PIN", 0),
        text("STATE", 0),
        figure("LEFT", 0),
        figure("TOKENS", 1),
        figure("BLOCKS", 3),
        figure("COPIES", 0),
        text("HELD BY", 2),
        text("OWNER", 4),
        text("SCOPE", 5),
        text("WHY", 6),
    ];
    /// With less than this left a pin is worth a look.
    const SOON_MS: u64 = 30_000;
    let of = |(has_ended, left, pin): &(bool, u64, &Value)| {
        let tone = match (has_ended, pin["state"].as_str()) {
            (true, _) => Tone::Past,
            (false, Some("degraded")) => Tone::Bad,
            (false, _) if *left < SOON_MS => Tone::Wait,
            (false, _) => Tone::Plain,
        };
        let id = if pin["id"].is_null() { &pin["key"] } else { &pin["id"] };
        let copies = format!("{}/{}", word(&pin["copies"]), word(&pin["copies_min"]));
        let cells = vec![
            word(id),
            word(&pin["state"]),
            if *has_ended { dash(String::new()) } else { duration(*left) },
            shorts(&pin["prefix_tokens"]),
            shorts(&pin["blocks"]),
            copies,
            plain_text(&holders(pin)),
            word(&pin["owner"]),
            word(&pin["scope"]),
            word(&pin["reason"]),
        ];
        row(cells, tone)
    };
    let told = array(&look.pins["data"]).iter().map(|pin| {
        let has_ended = matches!(pin["state"].as_str(), Some("expired" | "released" | "denied"));
        (has_ended, left_ms(&look.pins, pin).unwrap_or_default(), pin)
    });
    let mut told: Vec<(bool, u64, &Value)> = told.collect();
    told.sort_by_key(|(has_ended, left, _)| (*has_ended, *left));
    table(COLUMNS, told.iter().map(of).collect(), &look.pins)
}

/// The latest placement first.
fn decisions(look: &Look) -> Table {
    const COLUMNS: &[Column] = &[
        figure("AGO", 0),
        text("REQUEST", 1),
        text("WORKER", 0),
        figure("HELD", 0),
        figure("OF", 0),
        figure("COST MS", 0),
        figure("WAIT MS", 4),
        figure("AMONG", 3),
        text("WHY", 2),
    ];
    let now_ms = number(&look.decisions["now_unix_ms"]);
    let at = |decision: &Value| number(&decision["at_unix_ms"]);
    let of = |decision: &&Value| {
        let ago = now_ms.zip(at(decision)).map(|(now, at)| duration(now.saturating_sub(at)));
        let cells = vec![
            or_dash(ago),
            word(&decision["request"]),
            word(&decision["worker"]),
            shorts(&decision["overlap_blocks"]),
            shorts(&decision["prompt_blocks"]),
            word(&decision["cost_ms"]),
            word(&decision["queued"]["wait_ms"]),
            word(&decision["considered"]),
            word(&decision["reason"]),
        ];
        row(cells, Tone::Plain)
    };
    let mut told: Vec<&Value> = array(&look.decisions["data"]).iter().collect();
    told.sort_by_key(|decision| std::cmp::Reverse(at(decision)));
    table(COLUMNS, told.iter().map(of).collect(), &look.decisions)
}
