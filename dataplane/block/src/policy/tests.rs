//! What the rules say of single pauses, and what they take from the figures of a pool.

use super::*;

const TENANT: TenantSlot = TenantSlot(1);
const STAKES: Stakes = Stakes { reload_ms: 2_000.0, price_per_ms: 0.02, kept_ms: 0 };

fn parts() -> Vec<(Class, Range<usize>)> {
    vec![
        (Class::System, 0..4),
        (Class::Tools, 4..4),
        (Class::Tools, 4..6),
        (Class::History, 6..9),
        (Class::Reasoning, 9..10),
        (Class::Output, 10..12),
    ]
}

fn priority_of(terms: &[SpanTerms], class: Class) -> Option<(u8, u8)> {
    terms.iter().find(|span| span.class == class).map(|span| (span.priority, span.after))
}

#[test]
fn tools_hold_the_own_part_and_thoughts_fall_after_the_loop() {
    let policy = Policy::default();
    let held = policy.terms(&parts(), Next::Tools { hold_ms: 7_000 });
    assert_eq!(held.shared.len(), 2, "an empty stretch is none");
    assert!(held.own.iter().all(|s| s.priority == 80 && s.duration_ms == Some(7_000)));
    assert_eq!(priority_of(&held.shared, Class::System), Some((90, 60)));
    let unknown = policy.terms(&parts(), Next::Unknown);
    assert_eq!(priority_of(&unknown.own, Class::Reasoning), Some((60, 35)), "their loop goes on");
    let waits = policy.terms(&parts(), Next::User);
    assert_eq!(priority_of(&waits.own, Class::Reasoning), Some((5, 5)));
    assert_eq!(priority_of(&waits.own, Class::History), Some((60, 35)));
}

#[test]
fn a_side_request_is_worth_little_and_its_system_prompt_as_much_as_any() {
    let terms = Policy::default().terms(&parts(), Next::Nothing);
    assert!(terms.own.iter().all(|span| span.class == Class::Side && span.priority == 5));
    assert_eq!(terms.shared, [], "no lease: its use alone makes them worth what any block is");
}

#[test]
fn a_hold_is_as_long_as_the_tool_takes() {
    let mut policy = Policy::default();
    assert_eq!(policy.pause(TENANT, &["read"], STAKES, 0).hold_ms, Some(60_000));
    let dear = Stakes { price_per_ms: 0.2, ..STAKES };
    assert_eq!(policy.pause(TENANT, &["read"], dear, 0).hold_ms, Some(10_000));
    for turn in 0..20 {
        let pause = policy.pause(TENANT, &["read"], STAKES, turn * 1_000_000);
        policy.resume(&pause, turn * 1_000_000 + 5_000);
        let pause = policy.pause(TENANT, &["build", "test"], STAKES, turn * 1_000_000);
        policy.resume(&pause, turn * 1_000_000 + 600_000);
    }
    let read = policy.pause(TENANT, &["read"], STAKES, 0);
    assert!((5_001..=6_500).contains(&read.hold_ms.unwrap()), "{read:?}");
    assert_eq!(read.prefetch_after_ms, None, "nobody has come back later");
    // Ten minutes of keeping cost more than computing again; not so where memory is cheap.
    let built = policy.pause(TENANT, &["build", "test"], STAKES, 0);
    assert_eq!(built.hold_ms, Some(2_000));
    let cheap = Stakes { price_per_ms: 0.0, ..STAKES };
    assert!(policy.pause(TENANT, &["a", "b"], cheap, 0).hold_ms > Some(600_000));
    assert_eq!(policy.pause(TenantSlot(2), &["read"], STAKES, 0).hold_ms, Some(60_000));
}

#[test]
fn what_was_let_go_is_brought_back_before_anybody_returns() {
    let mut policy = Policy::default();
    for _ in 0..20 {
        let pause = policy.pause(TENANT, &["build"], STAKES, 0);
        policy.resume(&pause, 600_000);
    }
    let pause = policy.pause(TENANT, &["build"], STAKES, 0);
    let prefetch_ms = pause.prefetch_after_ms.unwrap();
    // Loading takes two seconds, and those who come back after ten minutes find it done.
    assert!(prefetch_ms + 2_000 <= 600_000, "{prefetch_ms}");
    assert!(prefetch_ms > 480_000, "{prefetch_ms}");
    // What stays that long anyway is neither held nor fetched.
    let roomy = Stakes { kept_ms: 900_000, ..STAKES };
    let pause = policy.pause(TENANT, &["build"], roomy, 0);
    assert_eq!((pause.hold_ms, pause.prefetch_after_ms), (None, None));
}

#[test]
fn a_free_hold_is_none_and_one_that_does_not_pay_is_short() {
    let mut policy = Policy::default();
    let free = Stakes { price_per_ms: 0.0, kept_ms: u64::MAX, ..STAKES };
    assert_eq!(policy.pause(TENANT, &["read"], free, 0).hold_ms, None, "nothing has to go");
    let kept = |kept_ms| Stakes { kept_ms, ..STAKES };
    assert_eq!(policy.pause(TENANT, &["new"], kept(60_000), 0).hold_ms, None);
    assert_eq!(policy.pause(TENANT, &["new"], kept(59_999), 0).hold_ms, Some(60_000));
    for turn in 0..20 {
        let pause = policy.pause(TENANT, &["read"], STAKES, 0);
        // Four of twenty take ten minutes, for which it does not pay to wait.
        policy.resume(&pause, if turn % 5 == 0 { 600_000 } else { 5_000 });
    }
    assert_eq!(policy.pause(TENANT, &["read"], kept(30_000), 0).hold_ms, None);
    for _ in 0..40 {
        let pause = policy.pause(TENANT, &["read"], STAKES, 0);
        policy.resume(&pause, 600_000);
    }
    assert_eq!(policy.pause(TENANT, &["read"], kept(30_000), 0).hold_ms, Some(2_000));
}

#[test]
fn a_long_name_of_a_tool_is_not_kept() {
    let name = "x".repeat(100_000);
    let pause = Policy::default().pause(TENANT, &[&name], STAKES, 0);
    assert_eq!(pause.tool.map(|tool| tool.len()), Some(super::super::TOOL_NAME_BYTES_MAX));
}

#[test]
fn holds_that_ran_out_are_pressure_too() {
    let earlier = Figures::default();
    let mut now = earlier;
    (0..9).for_each(|_| now.evicted(Cause::Expiry, (35, Class::History), 5_000, 0));
    assert_eq!(Pressure::between(&earlier, &now).kept_ms, Some(4_096));
    (0..11).for_each(|_| now.evicted(Cause::Capacity, (35, Class::Plain), 600, 0));
    now.hits_by_worth.add(35);
    let pressure = Pressure::between(&earlier, &now);
    assert_eq!(pressure, Pressure { kept_ms: Some(512), used_share: 1.0 / 21.0 });
}

#[test]
fn a_price_comes_from_what_a_pool_does() {
    let mut earlier = Figures::default();
    earlier.hits_by_worth.add(35);
    earlier.evicted(Cause::Capacity, (35, Class::Plain), 1, 0);
    let mut now = earlier;
    assert_eq!(
        Pressure::between(&earlier, &now),
        Pressure { kept_ms: None, used_share: 0.0 },
        "what was before does not count"
    );
    let free = Stakes::of(100, 2.0, 50.0, Pressure::between(&earlier, &now));
    assert_eq!(free, Stakes { reload_ms: 250.0, price_per_ms: 0.0, kept_ms: u64::MAX });
    for _ in 0..30 {
        now.hits_by_worth.add(35);
        // Of those that are worth more none had to go.
        now.hits_by_worth.add(80);
    }
    for _ in 0..10 {
        now.evicted(Cause::Capacity, (35, Class::Plain), 9_000, 0);
        now.evicted(Cause::Lifecycle, (0, Class::Finished), 1, 0);
    }
    // Half of those that went were dead, of the other half three in four would have been used again.
    let pressure = Pressure::between(&earlier, &now);
    assert_eq!(pressure, Pressure { kept_ms: Some(8_192), used_share: 0.375 });
    let stakes = Stakes::of(100, 2.0, 0.0, pressure);
    assert_eq!(stakes.reload_ms, 200.0);
    assert!((stakes.price_per_ms - 75.0 / 8_192.0).abs() < 1e-12, "{stakes:?}");
}

#[test]
fn amendments_say_what_terms_say() {
    let policy = Policy::default();
    for next in [Next::User, Next::Tools { hold_ms: 7_000 }] {
        let amendments = policy.amendments(next);
        for span in policy.terms(&parts(), next).own {
            let same = amendments.iter().find(|amended| amended.class == span.class).unwrap();
            assert_eq!(
                (same.priority, same.after, same.duration_ms),
                (span.priority, span.after, span.duration_ms)
            );
        }
        assert!(amendments.iter().all(|amended| !is_shared(amended.class)));
    }
}
