//! Frames from JSON, and pictures of them on screens of several sizes.

use expect_test::expect;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};

use super::draw::{Picture, draw, text_of};
use super::frame::Frame;
use super::keys::{Next, State, View};
use super::look::Look;

fn worker(id: u64, epoch: u64, counted: u64, running: u64) -> Value {
    json!({
        "key": id.to_string(), "id": id, "name": format!("w{id}"), "state": "live", "epoch": epoch,
        "routable": true, "heard": true, "draining": false, "running": running, "waiting": 1,
        "blocks_total": 4096, "blocks_used": 300, "blocks_cached": 1200, "blocks_pinned": 64,
        "hit_tokens": 900 * counted, "query_tokens": 1000 * counted,
        "computed_tokens": 100 * counted, "decoded_tokens": 20 * counted,
        "tiers": [{"tier": "device", "pinned": 64, "sole": 1000, "shared": 136},
                  {"tier": "host", "pinned": 0, "sole": 512, "shared": 0}],
        "region": "local", "model": "demo",
    })
}

fn session(key: &str, state: &str, turns: u64) -> Value {
    json!({
        "key": key, "client": "claude-cli/2.1", "state": state, "ended": (state == "ended").then_some("idle"),
        "waits_for": if state == "paused" { json!(["Bash"]) } else { json!([]) }, "parent": null,
        "turns": turns, "context_tokens": 41_000, "prompt_tokens": 100_000, "cached_tokens": 93_000,
        "completion_tokens": 2_100, "seen_unix_ms": 1_000_000 - turns * 1_000,
        "messages": "SECRET",
    })
}

fn look(at_ms: u64, counted: u64) -> Look {
    let member = |id: u64, role: &str, lag: u64| {
        json!({"id": id, "role": role, "address": format!("10.0.0.{id}:7400"), "last_log_index": 812,
            "applied_index": 812 - lag, "lag": lag, "reachable": id != 3, "region": "local", "version": 2})
    };
    let pin = |key: &str, state: &str, expires: u64| {
        json!({"key": key, "state": state, "expires_unix_ms": expires, "prefix_tokens": 4096, "blocks": 128,
            "copies": 1, "copies_min": 2, "holders": [{"worker": "w1", "blocks_held": 128}],
            "owner": "agent-1", "scope": "region", "reason": ""})
    };
    Look {
        at_ms,
        status: json!({
            "leader": 1, "term": 2, "applied_index": 812, "version": 2, "pins_live": 2, "index_blocks": 130_000,
            "members": [member(1, "leader", 0), member(2, "follower", 1), member(3, "follower", 40)],
            "gateway": {"replica_age_ms": 12},
        }),
        overview: json!({"about": {"tenant": "default"}, "data": [{
            "workers": {"live": 2, "routable": 2}, "pins": {"live": 2, "own": 2},
            "last_5_minutes": {"gateway": {"requests": 120, "refused": 3, "ttft_p50_ms": 12.4, "ttft_p95_ms": 80}},
            "reasons": [],
        }]}),
        workers: json!({"data": [worker(1, 7, counted, 3), worker(2, 8, 2 * counted, 0)]}),
        pins: json!({"now_unix_ms": 1_000_000, "about": {"cluster_ahead_ms": -1_000}, "data": [
            pin("p-0a", "expired", 900_000), pin("p-0b", "active", 1_299_000), pin("p-0c", "degraded", 1_009_000),
        ]}),
        sessions: json!({"now_unix_ms": 1_000_000, "data": [
            session("a7", "active", 3), session("b1", "paused", 12), session("c9", "ended", 40),
        ]}),
        decisions: json!({"now_unix_ms": 1_000_000, "data": [
            {"at_unix_ms": 990_000, "request": "r-1", "worker": "w2", "overlap_blocks": 0, "prompt_blocks": 31,
             "cost_ms": 4.25, "considered": 2, "reason": "no worker holds any of it: the least busy one"},
            {"at_unix_ms": 999_000, "request": "r-2", "worker": "w1", "overlap_blocks": 30, "prompt_blocks": 31,
             "cost_ms": 0.5, "considered": 2, "queued": {"wait_ms": 12.5, "overtook": 1},
             "reason": "the cheapest, and nobody holds more than its 30 blocks"},
        ]}),
        problems: Vec::new(),
    }
}

fn frame() -> Frame {
    Frame::of(&look(3_000, 20), Some(&look(1_000, 10)))
}

/// What a terminal of that size shows.
fn screen(frame: Option<&Frame>, state: &State, away: Option<&str>, size: (u16, u16)) -> String {
    let picture = Picture { server: "http://127.0.0.1:8000", frame, state, away, is_live: true };
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("no I/O");
    terminal.draw(|f| draw(&picture, f.area(), f.buffer_mut())).expect("no I/O");
    text_of(terminal.backend().buffer())
}

#[test]
fn a_small_terminal_shows_the_beginning_of_everything() {
    let shown = screen(Some(&frame()), &State::of(View::Overview), None, (80, 24));
    expect![[r#"
        mainstay top · http://127.0.0.1:8000
        leader m1 · term 2 · log index 812 · members 2/3 · workers 2/2 · running 3
        waiting 2 · prompts 1500 tok/s · answers 300 tok/s · hits 90% · pins 2
        blocks indexed 130k · 5 min: requests 120 · refused 3

        MEMBER  ROLE    LAST LOG  APPLIED  LAG  REACHABLE  REGION  ADDRESS
        m1      leader       812      812    0  yes        local   10.0.0.1:7400
        … 2 more

        WORKER  STATE  RUN  WAIT  BLOCKS  USED  CACHED  PINNED  HITS  PROMPT/S  ANSWER/S
        w1      live     3     1    4096   300    1200      64   90%       500       100
        w2      live     0     1    4096   300    1200      64   90%      1000       200

        SESSION  STATE          TURNS  CACHED  CONTEXT  SEEN AGO  CLIENT
        b1       paused (Bash)     12    93 %    41000       12s  claude-cli/2.1
        … 2 more

        PIN   STATE     LEFT  TOKENS  BLOCKS  COPIES  HELD BY  OWNER    SCOPE   WHY
        p-0c  degraded   10s    4096     128     1/2  w1:128   agent-1  region  -
        … 2 more

        AGO  REQUEST  WORKER  HELD  OF  COST MS  WAIT MS  AMONG  WHY
        … 2 more
         1 overview  2 workers  3 sessions  4 pins  5 decisions  p pause  ? help  q quit"#]]
    .assert_eq(&shown);
}

#[test]
fn a_large_terminal_shows_all_of_it() {
    let shown = screen(Some(&frame()), &State::of(View::Overview), None, (160, 50));
    expect![[r#"
        mainstay top · http://127.0.0.1:8000
        leader m1 · term 2 · log index 812 · members 2/3 · workers 2/2 · running 3 · waiting 2 · prompts 1500 tok/s · answers 300 tok/s · hits 90% · pins 2
        blocks indexed 130k · 5 min: requests 120 · refused 3 · TTFT p50 12 ms, p95 80 ms · replica 12 ms old · version 2 · tenant default

        MEMBER  ROLE      LAST LOG  APPLIED  LAG  REACHABLE  REGION  VERSION  ADDRESS
        m1      leader         812      812    0  yes        local         2  10.0.0.1:7400
        m2      follower       812      811    1  yes        local         2  10.0.0.2:7400
        m3      follower       812      772   40  no         local         2  10.0.0.3:7400

        WORKER  STATE  RUN  WAIT  BLOCKS  USED  CACHED  PINNED  HITS  HITS NOW  PROMPT/S  ANSWER/S  TIERS HELD/PINNED          REGION  MODEL
        w1      live     3     1    4096   300    1200      64   90%       90%       500       100  device 1200/64 host 512/0  local   demo
        w2      live     0     1    4096   300    1200      64   90%       90%      1000       200  device 1200/64 host 512/0  local   demo

        SESSION  STATE          TURNS  CACHED  CONTEXT  ANSWERED  SEEN AGO  PARENT  CLIENT
        b1       paused (Bash)     12    93 %    41000      2100       12s  -       claude-cli/2.1
        a7       active             3    93 %    41000      2100        3s  -       claude-cli/2.1
        c9       ended (idle)      40    93 %    41000      2100       40s  -       claude-cli/2.1

        PIN   STATE      LEFT  TOKENS  BLOCKS  COPIES  HELD BY  OWNER    SCOPE   WHY
        p-0c  degraded    10s    4096     128     1/2  w1:128   agent-1  region  -
        p-0b  active    5m00s    4096     128     1/2  w1:128   agent-1  region  -
        p-0a  expired       -    4096     128     1/2  w1:128   agent-1  region  -

        AGO  REQUEST  WORKER  HELD  OF  COST MS  WAIT MS  AMONG  WHY
         1s  r-2      w1        30  31      0.5     12.5      2  the cheapest, and nobody holds more than its 30 blocks
        10s  r-1      w2         0  31     4.25        -      2  no worker holds any of it: the least busy one























         1 overview  2 workers  3 sessions  4 pins  5 decisions  p pause  ? help  q quit"#]].assert_eq(&shown);
}

#[test]
fn a_table_of_its_own_shows_where_one_is() {
    let mut state = State::of(View::Workers);
    state.press(KeyEvent::from(KeyCode::Char('3')), Some(&frame()));
    let shown = screen(Some(&frame()), &state, None, (80, 12));
    expect![[r#"
        mainstay top · http://127.0.0.1:8000
        leader m1 · term 2 · log index 812 · members 2/3 · workers 2/2 · running 3
        waiting 2 · prompts 1500 tok/s · answers 300 tok/s · hits 90% · pins 2
        blocks indexed 130k · 5 min: requests 120 · refused 3

        SESSION  STATE          TURNS  CACHED  CONTEXT  SEEN AGO  CLIENT
        b1       paused (Bash)     12    93 %    41000       12s  claude-cli/2.1
        a7       active             3    93 %    41000        3s  claude-cli/2.1
        c9       ended (idle)      40    93 %    41000       40s  claude-cli/2.1


         1 overview  2 workers  3 sessions  4 pins  5 decisions  p pause  ? help  q quit"#]]
    .assert_eq(&shown);
}

fn cells(frame: &Frame, view: View, column: &str) -> Vec<String> {
    let table = frame.table(view).expect("a table");
    let at = table.columns.iter().position(|c| c.head == column).expect("a column");
    table.rows.iter().map(|row| row.cells[at].clone()).collect()
}

#[test]
fn rates_are_differences_of_one_epoch() {
    let frame = frame();
    // Ten more in two seconds, and twenty.
    assert_eq!(cells(&frame, View::Workers, "ANSWER/S"), ["100", "200"]);
    assert_eq!(cells(&frame, View::Workers, "PROMPT/S"), ["500", "1000"]);
    assert_eq!(cells(&frame, View::Workers, "HITS NOW"), ["90%", "90%"]);
    let alone = Frame::of(&look(3_000, 20), None);
    assert_eq!(cells(&alone, View::Workers, "ANSWER/S"), ["-", "-"]);
    assert_eq!(cells(&alone, View::Workers, "HITS"), ["90%", "90%"], "since its start");
    let mut again = look(5_000, 1);
    again.workers["data"][0]["epoch"] = json!(9);
    let again = Frame::of(&again, Some(&look(3_000, 20)));
    assert_eq!(cells(&again, View::Workers, "ANSWER/S"), ["-", "-"], "another epoch; backwards");
    let at_once = Frame::of(&look(3_000, 20), Some(&look(3_000, 10)));
    assert_eq!(cells(&at_once, View::Workers, "ANSWER/S"), ["-", "-"], "no time went by");
}

#[test]
fn pins_count_down_by_the_clusters_clock() {
    let frame = frame();
    assert_eq!(cells(&frame, View::Pins, "PIN"), ["p-0c", "p-0b", "p-0a"]);
    assert_eq!(cells(&frame, View::Pins, "LEFT"), ["10s", "5m00s", "-"]);
    let mut told = look(0, 1);
    told.pins = json!({"data": [{"id": "p-0d", "state": "active", "ttl_left_ms": 61_000}]});
    let frame = Frame::of(&told, None);
    assert_eq!(cells(&frame, View::Pins, "PIN"), ["p-0d"], "an answer of /v1/pins");
    assert_eq!(cells(&frame, View::Pins, "LEFT"), ["1m01s"]);
}

/// A copy in which everything that is no table is something else.
fn spoilt(value: &Value, by: &Value) -> Value {
    match value {
        Value::Array(all) => all.iter().map(|one| spoilt(one, by)).collect(),
        Value::Object(all) => all
            .iter()
            .map(|(key, one)| (key.clone(), spoilt(one, by)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        _ => by.clone(),
    }
}

fn spoilt_look(by: &Value) -> Look {
    let good = look(2_000, 10);
    let of = |value: &Value| spoilt(value, by);
    Look {
        at_ms: 1_000,
        status: of(&good.status),
        overview: of(&good.overview),
        workers: of(&good.workers),
        pins: of(&good.pins),
        sessions: of(&good.sessions),
        decisions: of(&good.decisions),
        problems: vec!["status: no".to_owned()],
    }
}

#[test]
fn no_answer_and_no_size_is_too_strange() {
    let strange = [
        Value::Null,
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(true),
        json!("\u{1b}[2J\u{202e}\r\nx\u{200b}"),
        json!("語".repeat(500)),
        json!([[]]),
        json!({"data": 1}),
    ];
    for by in &strange {
        let (spoilt, good) = (spoilt_look(by), look(3_000, 20));
        for frame in [
            Frame::of(&spoilt, None),
            Frame::of(&spoilt, Some(&good)),
            Frame::of(&good, Some(&spoilt)),
        ] {
            for size in [(1, 1), (7, 3), (80, 24), (300, 60)] {
                for view in View::ALL {
                    let mut state = State::of(view);
                    state.press(KeyEvent::from(KeyCode::End), Some(&frame));
                    let shown = screen(Some(&frame), &state, Some("unreachable"), size);
                    let steers = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
                    assert!(!shown.contains(steers), "{by}: {shown:?}");
                    state.press(KeyEvent::from(KeyCode::Char('?')), Some(&frame));
                    screen(Some(&frame), &state, None, size);
                }
            }
        }
    }
    let nothing = Frame::of(&Look::default(), Some(&Look::default()));
    assert!(nothing.figures.is_empty(), "{:?}", nothing.figures);
    screen(Some(&nothing), &State::of(View::Overview), None, (80, 24));
}

#[test]
fn what_nobody_asked_for_is_not_shown() {
    for view in View::ALL {
        let shown = screen(Some(&frame()), &State::of(view), None, (300, 60));
        assert!(!shown.contains("SECRET"), "{shown}");
    }
}

#[test]
fn who_is_away_is_told_beside_what_was_seen_last() {
    let away = "unreachable since 12:03:04 UTC (7s): no gateway answers";
    let state = State::of(View::Overview);
    let first = screen(None, &state, Some(away), (80, 24));
    assert!(first.contains("unreachable since 12:03:04"), "{first}");
    let later = screen(Some(&frame()), &state, Some(away), (80, 24));
    assert!(later.contains("unreachable since") && later.contains("leader m1"), "{later}");
    assert!(screen(None, &state, None, (80, 24)).contains("looking"));
    let since = std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400 + 3_723);
    let now = since + std::time::Duration::from_secs(7);
    let text = super::Away { since, why: "gone".to_owned() }.text(now);
    assert_eq!(text, "unreachable since 01:02:03 UTC (7s): gone");
}

#[test]
fn keys_go_round_views_and_stay_in_tables() {
    let frame = frame();
    let mut state = State::of(View::Overview);
    let press = |state: &mut State, code| state.press(KeyEvent::from(code), Some(&frame));
    for view in [View::Workers, View::Sessions, View::Pins, View::Decisions, View::Overview] {
        assert_eq!(press(&mut state, KeyCode::Tab), Next::Stay);
        assert_eq!(state.view, view);
    }
    press(&mut state, KeyCode::BackTab);
    assert_eq!(state.view, View::Decisions);
    press(&mut state, KeyCode::Char('3'));
    for (key, row) in [
        (KeyCode::Up, 0),
        (KeyCode::Down, 1),
        (KeyCode::Down, 2),
        (KeyCode::Down, 2),
        (KeyCode::PageUp, 0),
        (KeyCode::End, 2),
    ] {
        press(&mut state, key);
        assert_eq!(state.row(), row, "{key:?}");
    }
    press(&mut state, KeyCode::Char('p'));
    press(&mut state, KeyCode::Char('?'));
    assert!(state.is_paused && state.is_help_open);
    let shown = screen(Some(&frame), &state, None, (80, 24));
    assert!(shown.contains("paused") && shown.contains("another view"), "{shown}");
    press(&mut state, KeyCode::Esc);
    assert!(!state.is_help_open);
    assert_eq!(press(&mut state, KeyCode::Char('q')), Next::End);
    let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.press(ctrl_c, None), Next::End);
    assert_eq!(State::of(View::Pins).press(KeyEvent::from(KeyCode::Char('c')), None), Next::Stay);
}

#[test]
fn a_frame_for_programs_has_every_row() {
    let mut many = look(3_000, 20);
    let sessions: Vec<Value> = (0..150).map(|n| session(&format!("s{n}"), "active", n)).collect();
    many.sessions["data"] = json!(sessions);
    let frame = Frame::of(&many, Some(&look(1_000, 10)));
    let state = State::of(View::Overview);
    let picture = Picture {
        server: "http://x",
        frame: Some(&frame),
        state: &state,
        away: None,
        is_live: false,
    };
    let text = super::plain(&picture);
    assert!(text.contains("s149") && text.contains("s0 ") && text.contains("p-0a"), "{text}");
    assert!(!text.contains('…') && !text.contains("quit"), "{text}");
}
