//! Buckets by hand and by chance; requests in flight and their end.

use super::*;

fn tenant() -> TenantId {
    TenantId::new("acme").expect("a name")
}

#[test]
fn a_bucket_gives_a_minutes_worth_at_once_and_then_its_rate() {
    let mut bucket = TokenBucket::new(60, 5_000);
    for _ in 0..60 {
        assert_eq!(bucket.take(5_000, 1), Ok(()));
    }
    assert_eq!(bucket.take(5_000, 1), Err(1_000));
    assert_eq!(bucket.take(5_999, 1), Err(1));
    assert_eq!(bucket.take(6_000, 1), Ok(()));
    // A clock that goes back gives nothing and takes nothing.
    assert_eq!(bucket.take(0, 1), Err(1_000));
    assert_eq!(bucket.take(6_000 + 600_000, 60), Ok(()));
    assert_eq!(bucket.take(6_000 + 600_000, 1), Err(1_000));
}

#[test]
fn what_is_larger_than_a_minute_passes_a_full_bucket_and_leaves_a_debt() {
    let mut bucket = TokenBucket::new(100, 0);
    assert_eq!(bucket.take(0, 300), Ok(()));
    assert_eq!(bucket.take(0, 1), Err(60_000), "waits are told up to a minute");
    assert_eq!(bucket.take(120_000, 1), Err(600));
    assert_eq!(bucket.take(120_600, 1), Ok(()));
    bucket.charge(120_600, 50);
    assert_eq!(bucket.take(120_600, 1), Err(30_600));
    assert_eq!(TokenBucket::new(0, 0).take(u64::MAX, 0), Err(60_000), "none is none");
}

#[test]
fn another_rate_keeps_what_was_taken() {
    let mut bucket = TokenBucket::new(10, 0);
    assert_eq!(bucket.take(0, 10), Ok(()));
    bucket.set_rate(0, 12);
    assert_eq!(bucket.take(0, 2), Ok(()));
    assert_eq!(bucket.take(0, 1), Err(5_000));
    bucket.set_rate(0, 4);
    assert!(bucket.take(0, 1).is_err());
}

#[test]
fn numbers_at_their_ends_do_not_panic() {
    let mut bucket = TokenBucket::new(u64::MAX, 0);
    assert_eq!(bucket.take(0, u64::MAX), Ok(()));
    for now_ms in [1, u64::MAX] {
        bucket.charge(now_ms, u64::MAX);
    }
    assert!(bucket.take(u64::MAX, u64::MAX).is_err());
}

/// Over any stretch no more passes than one burst and the rate.
#[test]
fn no_order_of_requests_gets_more_than_the_rate() {
    let mut seed = 1_u64;
    let mut draw = |most: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % most
    };
    for rate in [1, 7, 60, 1_000] {
        let (mut bucket, mut now_ms, mut passed) = (TokenBucket::new(rate, 0), 0, 0);
        for _ in 0..5_000 {
            now_ms += draw(400);
            let amount = 1 + draw(rate);
            match bucket.take(now_ms, amount) {
                Ok(()) => passed += amount,
                Err(wait_ms) => {
                    assert!(bucket.clone().take(now_ms + wait_ms, amount).is_ok());
                    assert!(bucket.clone().take(now_ms + wait_ms - 1, amount).is_err());
                }
            }
            assert!(passed <= rate + now_ms * rate / 60_000 + 1, "{passed} after {now_ms} ms");
        }
        assert!(passed * 60_000 >= now_ms * rate / 4, "it starves");
    }
}

#[test]
fn requests_in_flight_end_when_they_are_dropped() {
    let quotas = Quotas::new();
    let quota = Quota { in_flight_max: Some(2), ..Quota::default() };
    let admit = || quotas.admit(&tenant(), quota, |_| true);
    let first = admit().unwrap_or_else(|e| panic!("{e}"));
    let _second = admit().unwrap_or_else(|e| panic!("{e}"));
    let error = admit().err().expect("there are two");
    assert_eq!((error.kind, error.retry_after_s()), (ErrorKind::RateLimited, Some(1)));
    drop(first);
    assert!(admit().is_ok());
}

#[test]
fn tokens_of_answers_are_waited_for_by_later_prompts() {
    let quotas = Quotas::new();
    let quota = Quota { tokens_per_minute: Some(1_000), ..Quota::default() };
    let spending = quotas.admit(&tenant(), quota, |_| true).unwrap_or_else(|e| panic!("{e}"));
    spending.prompt(600).unwrap_or_else(|e| panic!("{e}"));
    spending.answer(400);
    let error = spending.prompt(500).expect_err("all is used up");
    assert_eq!(error.kind, ErrorKind::RateLimited);
    let seconds = error.retry_after_s().unwrap_or_default();
    assert!((29..=30).contains(&seconds), "{seconds}");
    Spending::free(&quotas, &tenant()).prompt(u64::MAX).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn meters_of_tenants_that_are_gone_are_dropped() {
    let quotas = Quotas::new();
    let named = |n: u32| TenantId::new(&format!("t{n}")).expect("a name");
    for n in 0..100 {
        let kept = |tenant: &TenantId| *tenant == named(n.max(1) - 1);
        assert!(quotas.admit(&named(n), Quota::default(), kept).is_ok());
        assert!(quotas.meters.lock().len() <= 2);
    }
}
