//! Tests of the pool: every task once, panics reach the caller, no call waits for another.

use super::*;
use std::sync::atomic::AtomicU64;

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 3, 5] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for tasks in [0, 1, 2, 3, 7, 64, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn many_short_calls_and_sleeps_between_them() {
    let pool = Pool::new(3);
    let sum = AtomicU64::new(0);
    for round in 0..20_000u64 {
        pool.run(4, &|index| {
            sum.fetch_add(round * index as u64, Ordering::Relaxed);
        });
        if round % 4_000 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    assert_eq!(sum.into_inner(), (0..20_000u64).map(|round| round * 6).sum());
}

#[test]
fn a_slow_worker_is_waited_for_in_sleep() {
    let pool = Pool::new(2);
    let done = AtomicUsize::new(0);
    let caller = std::thread::current().id();
    for _ in 0..3 {
        done.store(0, Ordering::Relaxed);
        pool.run(2, &|_| {
            if std::thread::current().id() != caller {
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    for threads in [1, 2, 4] {
        let pool = Pool::new(threads);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(50, &|index| assert!(index != 20, "task twenty"));
        }));
        let payload = result.expect_err("the panic is passed on");
        let text = payload.downcast_ref::<&str>().copied().unwrap_or_default();
        assert_eq!(text, "task twenty");
        let count = AtomicUsize::new(0);
        pool.run(50, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 50);
    }
}

#[test]
fn calls_inside_tasks_and_from_other_threads_do_not_wait() {
    let pool = Pool::new(3);
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(3, &|_| {
                        pool.run(2, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 4 * 200 * 3 * 2);
}
