//! Block events from the engine to the index, through losses, fences and restarts.

use super::fake_control::HASH_KEY;
use super::fake_engine::{SPACE, stored};
use super::*;

const SMALL: FrameLimits = FrameLimits {
    frame_blocks_max: 8,
    frame_events_max: 4,
    frames_unacknowledged_max: 2,
    waiting_max: 32,
};

#[tokio::test]
async fn the_engine_gets_the_clusters_hash_key_and_the_cluster_the_engines_size() {
    let stage = Stage::set().await;
    let config: serde_json::Value =
        serde_json::from_str(&stage.opener.configs.lock()[0]).expect("json");
    assert_eq!(config["hash_key"], mainstay_types::HashKey(HASH_KEY).to_hex());
    let (epoch, blocks_total, address, model) = stage.control.look(|machine| {
        let worker = machine.worker_named("w1").expect("registered");
        (worker.epoch, worker.blocks_total, worker.address.clone(), worker.model.clone())
    });
    assert_eq!(epoch, stage.worker.epoch());
    assert_eq!((blocks_total, address), (64, stage.worker.address().to_string()));
    assert_eq!((model.name.as_str(), model.block_tokens), ("toy", 4));
    assert!(stage.worker.is_ready());
}

#[tokio::test]
async fn frames_are_numbered_from_1_without_holes_and_reach_the_index() {
    let stage = Stage::set().await;
    for n in 1..=20 {
        stage.engine().store(if n == 1 { SPACE } else { n - 1 }, &[n]);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    stage.engine().remove(&[20]);
    let held: Vec<u128> = (1..=19).collect();
    eventually("indexed", || stage.control.indexed(30) == held).await;
    let sequences = stage.control.sequences(1);
    let expected: Vec<u64> = (1..=sequences.len() as u64).collect();
    assert_eq!(sequences, expected);
    assert!(sequences.len() < 21, "events of a moment share a frame");
}

#[tokio::test]
async fn lost_publishes_and_lost_answers_are_made_good_under_the_same_numbers() {
    let stage = Stage::set().await;
    stage.engine().store(SPACE, &[1, 2]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2]).await;
    stage.control.lose_answers(2);
    stage.engine().store(2, &[3]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 3]).await;
    stage.engine().store(3, &[4]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 3, 4]).await;
    stage.control.lose_publishes(3);
    stage.engine().store(4, &[5]);
    stage.engine().remove(&[1]);
    eventually("indexed", || stage.control.indexed(9) == [2, 3, 4, 5]).await;
    assert_eq!(stage.worker.epoch().0, 1, "no new epoch was needed");
    let mut sequences = stage.control.sequences(1);
    assert!(sequences.len() > sequences.iter().max().copied().unwrap_or(0) as usize, "sent again");
    sequences.dedup();
    sequences.sort_unstable();
    sequences.dedup();
    let expected: Vec<u64> = (1..=sequences.len() as u64).collect();
    assert_eq!(sequences, expected);
}

#[tokio::test]
async fn an_overflow_while_the_control_plane_is_away_ends_in_an_equal_index() {
    let stage = Stage::set_with(|_| {}, SMALL).await;
    stage.engine().store(SPACE, &[1, 2, 3]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 3]).await;
    stage.control.go_away(true);
    for n in 10..300 {
        stage.engine().store(SPACE, &[n]);
        if n % 3 == 0 {
            stage.engine().remove(&[n]);
        }
    }
    // Serving goes on meanwhile.
    let mut events = stage.client().generate(Stage::request()).await.expect("taken").into_inner();
    let id = stage.engine().notes.lock().submitted[0].id;
    stage.engine().finish(id, &[7]);
    assert_eq!(events.message().await.expect("served").expect("an event").tokens, [7]);
    stage.control.go_away(false);
    let held: Vec<u128> = [1, 2, 3].into_iter().chain((10..300).filter(|n| n % 3 != 0)).collect();
    eventually("indexed", || stage.control.indexed(400) == held).await;
}

#[tokio::test]
async fn a_fenced_worker_begins_a_new_epoch_and_tells_everything_again() {
    let stage = Stage::set().await;
    stage.engine().store(SPACE, &[1, 2, 3]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 3]).await;
    stage.control.fence(stage.worker.worker_id(), stage.worker.epoch());
    assert!(stage.control.indexed(9).is_empty());
    eventually("epoch 2", || stage.worker.epoch().0 == 2).await;
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 3]).await;
    assert_eq!(stage.control.sequences(2).first(), Some(&1));
    assert_eq!(stage.opener.opened(), 1, "the engine went on");
    assert!(stage.worker.is_ready());
}

#[tokio::test]
async fn an_idle_worker_renews_its_lease() {
    let stage = Stage::set().await;
    eventually("settled", || !stage.control.sequences(1).is_empty()).await;
    let before = stage.control.publishes();
    eventually("renewed", || stage.control.publishes() >= before + 4).await;
    assert_eq!(stage.control.sequences(1), [1], "renewals carry no frames");
}

#[tokio::test]
async fn a_gap_in_the_engines_events_is_answered_with_a_snapshot() {
    let stage = Stage::set().await;
    stage.engine().store(SPACE, &[1, 2, 3]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 3]).await;
    stage.engine().batch(true, true, vec![stored(SPACE, &[5])]);
    eventually("asked for a snapshot", || stage.engine().notes.lock().snapshots == 1).await;
    stage.engine().batch(true, false, vec![stored(SPACE, &[1, 2]), stored(SPACE, &[5])]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 5]).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(stage.engine().notes.lock().snapshots, 1, "once is enough");
}

#[tokio::test]
async fn an_engine_with_hashes_of_its_own_is_not_indexed() {
    use mainstay_engine_abi::sdk::caps;
    let control = FakeControl::start().await;
    let opener = Arc::new(FakeOpener::default());
    *opener.caps.lock() = caps::KNOWN & !caps::CANONICAL_HASH;
    let settings = settings(&control);
    let worker = start_with(settings, Arc::clone(&opener) as _, SMALL).await.expect("starts");
    opener.current().store(SPACE, &[1, 2, 3]);
    let before = control.publishes();
    eventually("renewed", || control.publishes() >= before + 2).await;
    assert!(control.indexed(9).is_empty());
    drop(worker);
}

#[tokio::test]
async fn another_hash_key_replaces_the_engine() {
    let stage = Stage::set().await;
    stage.control.set_hash_key([8; 16]);
    stage.control.fence(stage.worker.worker_id(), stage.worker.epoch());
    eventually("a second engine", || stage.opener.opened() == 2).await;
    let configs = stage.opener.configs.lock().clone();
    assert!(configs[1].contains(&mainstay_types::HashKey([8; 16]).to_hex()));
    eventually("ready", || stage.worker.is_ready()).await;
}
