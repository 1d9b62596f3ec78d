//! Orders of the keeper, from the log to the engine and back as reports.

use mainstay_types::PinState;

use super::fake_engine::SPACE;
use super::*;

fn submitted(stage: &Stage) -> usize {
    stage.engine().notes.lock().submitted.len()
}

fn state(stage: &Stage, id: u128) -> Option<PinState> {
    stage.control.pin_state(id)
}

#[tokio::test]
async fn an_ordered_pin_is_computed_from_its_tokens_and_reported() {
    let stage = Stage::set().await;
    stage.control.put_kept_pin(7, &[1, 2], &[9, 8, 7, 6, 5, 4, 3, 2]);
    let order = || stage.control.order_pin(7, stage.worker.worker_id(), stage.worker.epoch());
    order();
    eventually("submitted", || submitted(&stage) == 1).await;
    // Another of the same joins it.
    order();
    let request = stage.engine().notes.lock().submitted[0].clone();
    assert_eq!((request.namespace, request.tokens), (SPACE, vec![9, 8, 7, 6, 5, 4, 3, 2]));
    assert_eq!(request.sampling.tokens_max, 1);
    assert!(request.priority < -1_000_000, "ahead of clients: {}", request.priority);
    assert_ne!(state(&stage, 7), Some(PinState::Active));
    stage.engine().store(SPACE, &[1, 2]);
    stage.engine().finish(request.id, &[1]);
    eventually("active", || state(&stage, 7) == Some(PinState::Active)).await;
    assert_eq!((submitted(&stage), stage.control.fetches()), (1, 1));
}

#[tokio::test]
async fn nothing_is_computed_where_the_blocks_are_at_hand() {
    let stage = Stage::set().await;
    stage.engine().store(SPACE, &[1, 2]);
    stage.control.put_kept_pin(7, &[1, 2], &[1; 8]);
    stage.control.order_pin(7, stage.worker.worker_id(), stage.worker.epoch());
    eventually("active", || state(&stage, 7) == Some(PinState::Active)).await;
    assert_eq!(submitted(&stage), 0);
}

#[tokio::test]
async fn what_fails_is_tried_again_and_what_ended_is_cancelled() {
    let stage = Stage::set().await;
    stage.engine().notes.lock().refuse = Some(mainstay_engine_abi::sdk::EngineError::new(
        mainstay_engine_abi::sdk::Code::Exhausted,
        "no room",
    ));
    stage.control.put_kept_pin(7, &[1, 2], &[1; 8]);
    stage.control.order_pin(7, stage.worker.worker_id(), stage.worker.epoch());
    eventually("asked twice", || stage.control.fetches() >= 2).await;
    assert_eq!(submitted(&stage), 0);
    stage.engine().notes.lock().refuse = None;
    eventually("submitted", || submitted(&stage) == 1).await;
    stage.control.release_pin(7);
    eventually("cancelled", || !stage.engine().notes.lock().cancelled.is_empty()).await;
}

#[tokio::test]
async fn few_run_at_a_time_and_all_have_their_turn() {
    let stage = Stage::set().await;
    for id in 1..=4 {
        stage.control.put_kept_pin(id, &[id * 10], &[id as u32; 4]);
        stage.control.order_pin(id, stage.worker.worker_id(), stage.worker.epoch());
    }
    let mut done = 0;
    while done < 4 {
        eventually("the next", || submitted(&stage) > done).await;
        assert!(submitted(&stage) <= done + 2, "more than two run");
        let request = stage.engine().notes.lock().submitted[done].clone();
        stage.engine().store(SPACE, &[u128::from(request.tokens[0]) * 10]);
        stage.engine().finish(request.id, &[1]);
        done += 1;
    }
    for id in 1..=4 {
        eventually("active", || state(&stage, id) == Some(PinState::Active)).await;
    }
    assert_eq!(submitted(&stage), 4);
}
