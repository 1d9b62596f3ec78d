//! Pins from the cluster to the engine, and what is held from the engine to the cluster.

use mainstay_types::{PinId, PinState};

use super::fake_engine::SPACE;
use super::*;

fn pinned(stage: &Stage, id: u128) -> bool {
    stage.engine().notes.lock().pins.contains_key(&id)
}

#[tokio::test]
async fn a_pin_is_kept_reported_and_released() {
    let stage = Stage::set().await;
    stage.engine().store(SPACE, &[1, 2, 3]);
    stage.control.put_pin(7, &[1, 2, 3], 60_000);
    eventually("pinned", || pinned(&stage, 7)).await;
    let ttl_ms = stage.engine().notes.lock().pins[&7].ttl_ms;
    assert!(ttl_ms > 60_000, "{ttl_ms} ms end before the cluster's lease");
    eventually("active", || stage.control.pin_state(7) == Some(PinState::Active)).await;
    stage.control.release_pin(7);
    eventually("released", || !pinned(&stage, 7)).await;
}

#[tokio::test]
async fn reports_follow_the_blocks() {
    let stage = Stage::set().await;
    stage.control.put_pin(7, &[1, 2, 3], 60_000);
    eventually("pinned", || pinned(&stage, 7)).await;
    assert_eq!(stage.control.pin_state(7), Some(PinState::Pending), "nothing is held yet");
    stage.engine().store(SPACE, &[1, 2]);
    eventually("partial", || stage.control.pin_state(7) == Some(PinState::Partial)).await;
    stage.engine().store(2, &[3]);
    eventually("active", || stage.control.pin_state(7) == Some(PinState::Active)).await;
    stage.engine().remove(&[3]);
    eventually("degraded", || stage.control.pin_state(7) == Some(PinState::Degraded)).await;
    let last = stage.control.reports().last().copied();
    assert_eq!(last, Some((PinId(7), 2)));
}

#[tokio::test]
async fn pins_that_lived_before_the_worker_and_before_the_engine_are_taken_up() {
    let control = FakeControl::start().await;
    control.put_pin(5, &[1], 60_000);
    let opener = Arc::new(FakeOpener::default());
    let settings = settings(&control);
    let limits = FrameLimits::standard();
    let worker = start_with(settings, Arc::clone(&opener) as _, limits).await.expect("starts");
    let stage = Stage { control, opener, worker };
    eventually("pinned", || pinned(&stage, 5)).await;
    stage.engine().store(SPACE, &[1]);
    eventually("active", || stage.control.pin_state(5) == Some(PinState::Active)).await;
    stage.engine().crash();
    eventually("degraded", || stage.control.pin_state(5) == Some(PinState::Degraded)).await;
    eventually("a second engine", || stage.opener.opened() == 2).await;
    eventually("pinned again", || pinned(&stage, 5)).await;
    stage.engine().store(SPACE, &[1]);
    eventually("active again", || stage.control.pin_state(5) == Some(PinState::Active)).await;
}

#[tokio::test]
async fn a_fence_is_followed_by_new_reports() {
    let stage = Stage::set().await;
    stage.engine().store(SPACE, &[1]);
    stage.control.put_pin(7, &[1], 60_000);
    eventually("active", || stage.control.pin_state(7) == Some(PinState::Active)).await;
    stage.control.fence(stage.worker.worker_id(), stage.worker.epoch());
    eventually("epoch 2", || stage.worker.epoch().0 == 2).await;
    eventually("active", || stage.control.pin_state(7) == Some(PinState::Active)).await;
}

#[tokio::test]
async fn an_extended_pin_gets_a_longer_lease_and_an_expired_one_none() {
    let stage = Stage::set().await;
    stage.control.put_pin(7, &[1], 60_000);
    stage.control.put_pin(8, &[2], 300);
    eventually("pinned", || pinned(&stage, 7)).await;
    stage.control.extend_pin(7, 900_000);
    eventually("renewed", || stage.engine().notes.lock().pins[&7].ttl_ms > 900_000).await;
    eventually("expired", || stage.control.pin_state(8) == Some(PinState::Expired)).await;
    eventually("let go", || !pinned(&stage, 8)).await;
}
