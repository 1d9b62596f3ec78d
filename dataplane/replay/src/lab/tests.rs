//! Whole runs: figures that can be worked out by hand, and what must hold whatever the traffic is.

use mainstay_route::QueueOrder;

use super::*;
use crate::mix::Mix;
use crate::read::{ReadSettings, claude_code_session, rows};
use crate::trace::TraceBuilder;

fn settings(workers: u32, load: f64) -> Settings {
    let profile = Profile::named("h200-8b").unwrap();
    Settings { workers, load, ..Settings::new(profile) }
}

fn run(trace: &Trace, settings: &Settings, policy: &str) -> Report {
    play(trace, settings, PolicyName::parse(policy).unwrap(), policy, None)
}

#[test]
fn one_session_on_one_worker_hits_all_that_can_be_hit() {
    let text = r#"{"block_size": 64, "requests": [
        {"in": 6400, "out": 64, "hash_ids": [1,2,3,4,5,6,7,8,9,10]},
        {"in": 704, "out": 10, "hash_ids": [1,2,3,4,5,6,7,8,9,10,11], "think_time": 2.0}]}"#;
    let mut builder = TraceBuilder::default();
    claude_code_session(text.as_bytes(), &ReadSettings::default(), &mut builder).unwrap();
    let trace = builder.build().unwrap();
    let settings = Settings { requests: 2, ..settings(1, 1.0) };
    for policy in PolicyName::USUAL {
        let report = run(&trace, &settings, policy);
        assert_eq!((report.requests, report.sessions, report.refused), (2, 1, 0), "{policy}");
        // Ten blocks of 7,104 tokens: the eleventh holds the last token, which is computed.
        assert_eq!(report.hit_rate, (640.0_f64 / 7_104.0 * 1e6).round() / 1e6);
        assert_eq!((report.hit_share, report.prefill_amplification), (1.0, 1.0));
        assert!(report.ttft_ms.p99 > report.ttft_ms.p50, "the second one is nearly all cached");
    }
}

#[test]
fn every_request_ends_and_a_seed_gives_the_same_bytes() {
    let trace = Mix::named("swarm").unwrap().generate(3, 7).unwrap();
    let settings = settings(3, 1.0);
    for policy in PolicyName::USUAL.into_iter().chain(["random", "dynamo:0.7"]) {
        let report = run(&trace, &settings, policy);
        let sessions = 9;
        let requests: usize = (0..3).map(|_| trace.request_count()).sum();
        assert_eq!((report.requests, report.sessions), (requests as u64, sessions), "{policy}");
        assert!(report.hit_rate <= report.hit_rate_available + 1e-6, "{policy}");
        assert!(report.prefill_amplification >= 1.0 - 1e-6, "{policy}");
        assert!(report.busy > 0.0 && report.busy <= 1.0, "{policy}: {}", report.busy);
        let bytes = |report: &Report| serde_json::to_string(report).unwrap();
        assert_eq!(bytes(&report), bytes(&run(&trace, &settings, policy)), "{policy}");
        let other = Settings { seed: 2, ..settings.clone() };
        assert_ne!(bytes(&report), bytes(&run(&trace, &other, policy)), "{policy}");
    }
}

#[test]
fn who_knows_the_blocks_hits_more_than_who_takes_turns() {
    let trace = Mix::named("agents").unwrap().generate(24, 7).unwrap();
    let settings = settings(4, 2.0);
    let share = |policy: &str| run(&trace, &settings, policy).hit_share;
    let (kv, turns, sticky) = (share("kv"), share("round-robin"), share("session-sticky"));
    assert!(kv > 0.95 && kv >= sticky - 0.01, "{kv} {sticky}");
    assert!(turns < kv - 0.05, "{turns} {kv}");
}

#[test]
fn a_stopwatch_changes_nothing_but_its_own_figures() {
    let trace = Mix::named("agents").unwrap().generate(4, 7).unwrap();
    let settings = settings(2, 1.0);
    let policy = PolicyName::parse("kv").unwrap();
    let mut ticks = 0;
    let mut clock = || {
        ticks += 500;
        ticks
    };
    let timed = play(&trace, &settings, policy, "kv", Some(&mut clock));
    assert_eq!(timed.decision_us.unwrap().p99, 0.5);
    assert_eq!(Report { decision_us: None, ..timed }, run(&trace, &settings, "kv"));
}

#[test]
fn rows_come_at_their_times() {
    let row = |at: u32| {
        format!(
            "{{\"timestamp\": {at}, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": [{at}]}}\n"
        )
    };
    let text: String = (0..10).map(|at| row(at * 1_000)).collect();
    let mut builder = TraceBuilder::default();
    rows(&text, &ReadSettings::default(), &mut builder).unwrap();
    let trace = builder.build().unwrap();
    let report = |load: f64| run(&trace, &settings(2, load), "kv");
    assert!((9.0..9.1).contains(&report(1.0).virtual_s), "{}", report(1.0).virtual_s);
    assert!((0.9..1.0).contains(&report(10.0).virtual_s));
    let twice = Settings { requests: 20, ..settings(2, 1.0) };
    assert_eq!(run(&trace, &twice, "kv").requests, 20);
}

#[test]
fn settings_that_make_no_sense_still_end() {
    let trace = Mix::named("chat").unwrap().generate(3, 7).unwrap();
    for load in [f64::NAN, -1.0, 0.0] {
        let settings = Settings { workers: 0, event_delay_ms: u64::MAX, ..settings(1, load) };
        assert!(run(&trace, &settings, "kv").requests > 0);
    }
}

#[test]
fn slow_workers_are_slower_and_the_router_sees_it_unless_they_hide_it() {
    let trace = Mix::named("agents").unwrap().generate(24, 7).unwrap();
    let slow = vec![Slow { workers: (1, 1), speed: 0.1, from_s: 300 }];
    let mean = |slow: &[Slow], slow_unseen: bool, policy: &str| {
        let settings = Settings { slow: slow.to_vec(), slow_unseen, ..settings(4, 3.0) };
        run(&trace, &settings, policy).ttft_ms.mean
    };
    let healthy = mean(&[], false, "kv");
    let (seen, unseen) = (mean(&slow, false, "kv"), mean(&slow, true, "kv"));
    assert!(healthy < seen && seen < unseen, "{healthy} {seen} {unseen}");
    assert!(mean(&slow, false, "round-robin") > 1.2 * mean(&[], false, "round-robin"));
    let late = [Slow { workers: (0, 9), speed: 0.1, from_s: 1 << 28 }];
    assert_eq!(mean(&late, false, "kv"), healthy, "after the end it changes nothing");
}

#[test]
fn urgent_requests_go_first_where_there_is_a_queue() {
    let trace = Mix::named("agents").unwrap().generate(24, 7).unwrap();
    let settings = Settings { urgent: 0.2, background: 0.3, ..settings(2, 12.0) };
    let report = run(&trace, &settings, "round-robin");
    let [urgent, ordinary, background] = &report.by_priority[..] else { panic!("three classes") };
    assert_eq!(urgent.priority, "urgent");
    assert!(urgent.ttft_ms.mean * 2.0 < background.ttft_ms.mean, "{:?}", report.by_priority);
    assert!(ordinary.ttft_ms.mean < background.ttft_ms.mean);
    let all: u64 = report.by_priority.iter().map(|class| class.requests).sum();
    assert_eq!(all, report.requests);
    assert!(
        run(&trace, &Settings { urgent: 0.0, background: 0.0, ..settings }, "kv")
            .by_priority
            .is_empty()
    );
}

#[test]
fn series_agree_with_the_figures_and_change_none() {
    let trace = Mix::named("agents").unwrap().generate(8, 7).unwrap();
    let settings = Settings { series: true, ..settings(2, 2.0) };
    let report = run(&trace, &settings, "kv");
    let plain = run(&trace, &Settings { series: false, ..settings }, "kv");
    let series = report.series.clone().unwrap();
    assert_eq!(Report { series: None, ..report }, plain);
    assert_eq!(series.ttft_cdf[49], (50.0, plain.ttft_ms.p50));
    assert_eq!(series.ttft_cdf[98], (99.0, plain.ttft_ms.p99));
    assert!(series.points.iter().any(|point| point.in_flight > 1.0));
}

#[test]
fn a_page_has_every_policy_and_the_same_bytes_each_time() {
    let trace = Mix::named("agents").unwrap().generate(6, 7).unwrap();
    let settings = Settings { series: true, urgent: 0.5, ..settings(2, 2.0) };
    let page = || {
        let reports = ["kv", "round-robin"].map(|policy| run(&trace, &settings, policy));
        let named = [("seed".to_owned(), "<1>".to_owned())];
        crate::comparison_page("two policies", &named, &reports)
    };
    let text = page();
    assert_eq!(text, page());
    assert_eq!(text.matches("<figure>").count(), 7);
    assert_eq!(text.matches("<td>round-robin</td>").count(), 1 + 2);
    assert!(text.contains("&lt;1&gt;") && !text.contains("NaN") && !text.contains("http"));
}

fn queued(threshold: f64, order: QueueOrder) -> QueueSettings {
    QueueSettings { threshold: Some(threshold), order, ..QueueSettings::default() }
}

#[test]
fn the_queue_keeps_every_request_and_the_same_bytes() {
    let trace = Mix::named("agents").unwrap().generate(12, 7).unwrap();
    // 48 sessions fill 16 places three times.
    let all: usize = (0..4).map(|_| trace.request_count()).sum();
    for order in QueueOrder::ALL {
        let settings = Settings { queue: queued(0.5, order), ..settings(2, 8.0) };
        let report = run(&trace, &settings, "kv");
        assert_eq!(report.requests as usize, all);
        assert!(report.queued > 0 && report.queue_ms.p99 > 0.0, "{}", order.name());
        assert_eq!(report, run(&trace, &settings, "kv"), "{}", order.name());
    }
    let settings_of = || settings(2, 8.0);
    let others = Settings { queue: queued(0.5, QueueOrder::Arrival), ..settings_of() };
    assert_eq!(run(&trace, &others, "round-robin").queued, 0, "others have no queue");
    let few = QueueSettings { requests_max: 2, ..queued(0.1, QueueOrder::Arrival) };
    let report = run(&trace, &Settings { queue: few, ..settings_of() }, "kv");
    assert!(report.turned_away > 0, "and comes again");
    assert_eq!(report.requests as usize, all);
}

#[test]
fn who_is_urgent_waits_less_where_he_says_so() {
    let trace = Mix::named("agents").unwrap().generate(24, 7).unwrap();
    let told = Settings {
        urgent: 0.2,
        urgent_priority: 30,
        queue: queued(1.0, QueueOrder::Arrival),
        profile: Profile::named("h200-8b").unwrap().with_cache(0.3),
        ..settings(2, 8.0)
    };
    let quiet = Settings { hints: false, ..told.clone() };
    let [told, quiet] = [told, quiet].map(|settings| run(&trace, &settings, "kv"));
    let urgent = |report: &Report| report.by_priority[0];
    assert_eq!((urgent(&told).priority, urgent(&quiet).priority), ("urgent", "urgent"));
    let (told, quiet) = (urgent(&told).ttft_ms, urgent(&quiet).ttft_ms);
    assert!(told.mean * 1.2 < quiet.mean && told.p99 * 1.3 < quiet.p99, "{told:?} {quiet:?}");
}

#[test]
fn host_memory_and_other_workers_save_computation() {
    let trace = Mix::named("agents").unwrap().generate(16, 7).unwrap();
    let small = Profile::named("h200-8b").unwrap().with_cache(0.3);
    let settings = Settings { profile: small, ..settings(4, 4.0) };
    let plain = run(&trace, &settings, "kv");
    let tiered = Settings { profile: settings.profile.clone().with_host(8.0), ..settings.clone() };
    let tiered = run(&trace, &tiered, "kv");
    assert_eq!((plain.loaded_tokens, plain.fetched_tokens), (0, 0));
    assert!(tiered.loaded_tokens > 0 && tiered.hit_share > plain.hit_share + 0.02);
    assert!(tiered.ttft_ms.mean < plain.ttft_ms.mean, "{:?} {:?}", tiered.ttft_ms, plain.ttft_ms);
    let given = run(&trace, &Settings { transfer: true, ..settings }, "kv");
    assert!(given.fetched_tokens > 0 && given.prefill_amplification < plain.prefill_amplification);
}

/// Agents beside strangers who bring more than the caches between their turns.
fn flooded(cache: f64, flood: f64) -> (Trace, Settings) {
    let trace = Mix::named("agents").unwrap().generate(16, 7).unwrap();
    let profile = Profile::named("h200-8b").unwrap().with_cache(cache);
    (trace, Settings { profile, flood, ..settings(2, 1.0) })
}

#[test]
fn sessions_find_after_a_pause_what_strangers_evict_without_lifecycle() {
    let (trace, plain) = flooded(0.5, 2.0);
    let kept = Settings { lifecycle: true, ..plain.clone() };
    let [plain, kept_report] = [&plain, &kept].map(|settings| run(&trace, settings, "kv"));
    let after = |report: &Report| {
        let late = report.after_traffic.iter().filter(|back| back.from >= 1.0);
        late.fold((0, 0.0), |(turns, hits), back| {
            (turns + back.turns, hits + back.hit_share * back.turns as f64)
        })
    };
    let ((lru_turns, lru), (turns, hits)) = (after(&plain), after(&kept_report));
    assert!(lru_turns > 50 && turns > 50, "{lru_turns} {turns}");
    let (lru, kept_share) = (lru / lru_turns as f64, hits / turns as f64);
    assert!(lru < 0.2 && kept_share > 0.85, "{lru} {kept_share}");
    assert!(plain.strangers > 100 && !plain.lifecycle && kept_report.lifecycle);
    assert_eq!(kept_report, run(&trace, &kept, "kv"), "the same bytes");
    assert_eq!(plain.requests, kept_report.requests, "strangers are no requests of sessions");
}

#[test]
fn pinned_beginnings_outlive_any_flood() {
    let (trace, plain) = flooded(0.25, 4.0);
    let settings = Settings { pin_tokens: 8_192, pinned: 0.3, ..plain };
    let report = run(&trace, &settings, "session-sticky");
    let pinned = report.pinned.unwrap();
    assert!(pinned.turns > 30 && pinned.others_turns > 30 && pinned.sessions > 1, "{pinned:?}");
    assert_eq!((pinned.hit_rate, pinned.refused), (1.0, 0));
    assert!(pinned.others_hit_rate < 0.9, "{pinned:?}");
}

#[test]
fn without_pauses_and_strangers_nothing_is_said_of_them() {
    let trace = Mix::named("agents").unwrap().generate(4, 7).unwrap();
    let report = run(&trace, &settings(2, 1.0), "kv");
    assert_eq!((report.strangers, report.pinned, report.lifecycle), (0, None, false));
    let turns: u64 = report.after_pause.iter().map(|back| back.turns).sum();
    let by_traffic: u64 = report.after_traffic.iter().map(|back| back.turns).sum();
    assert!(turns > 0 && turns == by_traffic && turns < report.requests);
    assert!(report.after_pause.iter().all(|back| back.hit_share <= 1.0));
}
