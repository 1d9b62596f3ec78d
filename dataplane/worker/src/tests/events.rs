//! Block events from the engine to the index, through losses, fences and restarts.

use super::fake_control::HASH_KEY;
use super::fake_engine::{SPACE, stored};
use super::*;

const SMALL: FrameLimits = FrameLimits {
    frame_blocks_max: 8,
    frame_events_max: 4,
    frame_named_max: 64,
    ring_frames_max: 16,
    ring_weight_max: 256,
    message_frames_max: 4,
    message_weight_max: 64,
    message_named_max: 256,
    plain_window_frames_max: 2,
    part_blocks_max: 16,
    part_events_max: 8,
    waiting_max: 32,
};

impl Stage {
    /// Waits until all these members hold exactly these blocks of those up to `most`.
    async fn indexed_by(&self, members: &[usize], held: &[u128], most: u128) {
        for &member in members {
            let what = format!("indexed by member {member}");
            eventually(&what, || self.control.indexed_at(member, most) == held).await;
        }
        assert!(self.control.faults().is_empty(), "{:?}", self.control.faults());
    }
}

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
    assert!(stage.control.faults().is_empty());
    let mut sequences = stage.control.sequences(1);
    // The last one may have been sent again to see whether it is still held.
    sequences.dedup();
    let expected: Vec<u64> = (1..=sequences.len() as u64).collect();
    assert_eq!(sequences, expected);
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
    assert!(stage.control.faults().is_empty());
    assert_eq!(stage.control.snapshots(0), 0, "nor a snapshot");
    let mut sequences = stage.control.sequences(1);
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
    stage.indexed_by(&[0], &held, 400).await;
    assert!(stage.control.snapshots(0) >= 1, "too much for a ring of 16 frames");
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
    assert_eq!(stage.control.snapshots(0), 1, "the map was full when the epoch began");
    stage.engine().store(3, &[4]);
    stage.indexed_by(&[0], &[1, 2, 3, 4], 9).await;
    assert_eq!(stage.control.sequences(2).first(), Some(&2), "the snapshot stands for frame 1");
    assert_eq!(stage.opener.opened(), 1, "the engine went on");
    assert!(stage.worker.is_ready());
}

#[tokio::test]
async fn an_idle_worker_renews_its_lease() {
    let stage = Stage::set().await;
    let before = stage.control.publishes();
    eventually("renewed", || stage.control.publishes() >= before + 4).await;
    assert!(stage.control.sequences(1).is_empty(), "there is nothing to tell");
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

#[tokio::test]
async fn all_members_are_fed_and_one_that_was_away_catches_up() {
    let stage = Stage::set_among(3, false, FrameLimits::standard()).await;
    stage.engine().store(SPACE, &[1, 2, 3]);
    stage.indexed_by(&[0, 1, 2], &[1, 2, 3], 9).await;
    stage.control.member_away(2, true);
    for n in 4..40 {
        stage.engine().store(n - 1, &[n]);
    }
    stage.engine().remove(&[39, 38, 37, 36]);
    let held: Vec<u128> = (1..36).collect();
    stage.indexed_by(&[0, 1], &held, 50).await;
    assert_eq!(stage.control.indexed_at(2, 50), [1, 2, 3], "it is away");
    stage.control.member_away(2, false);
    stage.indexed_by(&[2], &held, 50).await;
    assert_eq!(stage.control.snapshots(2), 0, "the ring had it all");
    assert_eq!(stage.worker.epoch().0, 1);
}

#[tokio::test]
async fn a_member_that_fell_out_of_the_ring_gets_a_snapshot_in_parts() {
    let stage = Stage::set_among(2, false, SMALL).await;
    stage.control.member_away(1, true);
    for n in 1..=200 {
        stage.engine().store(if n % 50 == 1 { SPACE } else { n - 1 }, &[n]);
        if n % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let held: Vec<u128> = (1..=200).collect();
    stage.indexed_by(&[0], &held, 200).await;
    stage.control.member_away(1, false);
    stage.indexed_by(&[1], &held, 200).await;
    assert!(stage.control.snapshots(1) >= 1);
    // How many blocks there were when it first fell out is a matter of pace, but more than a part of 16.
    assert!(stage.control.parts(1) >= 2, "{}", stage.control.parts(1));
    stage.engine().store(200, &[201]);
    let held: Vec<u128> = (1..=201).collect();
    stage.indexed_by(&[0, 1], &held, 201).await;
}

#[tokio::test]
async fn a_member_that_lost_everything_is_told_although_nothing_happens() {
    let stage = Stage::set_among(3, false, FrameLimits::standard()).await;
    stage.engine().store(SPACE, &[1, 2, 3]);
    stage.indexed_by(&[0, 1, 2], &[1, 2, 3], 9).await;
    stage.control.member_forgets(1);
    assert!(stage.control.indexed_at(1, 9).is_empty());
    stage.indexed_by(&[0, 1, 2], &[1, 2, 3], 9).await;
    // After a snapshot the ring may be empty, and the member's loss must be seen all the same.
    stage.control.fence(stage.worker.worker_id(), stage.worker.epoch());
    eventually("epoch 2", || stage.worker.epoch().0 == 2).await;
    stage.indexed_by(&[0, 1, 2], &[1, 2, 3], 9).await;
    stage.control.member_forgets(2);
    stage.indexed_by(&[0, 1, 2], &[1, 2, 3], 9).await;
    assert_eq!(stage.worker.epoch().0, 2);
}

#[tokio::test]
async fn a_member_that_does_not_know_the_epoch_yet_is_waited_for() {
    let stage = Stage::set_among(2, false, FrameLimits::standard()).await;
    stage.control.member_behind(1, true);
    stage.engine().store(SPACE, &[1, 2, 3]);
    stage.indexed_by(&[0], &[1, 2, 3], 9).await;
    stage.control.member_behind(1, false);
    stage.indexed_by(&[1], &[1, 2, 3], 9).await;
    assert_eq!(stage.worker.epoch().0, 1);
}

#[tokio::test]
async fn the_stream_goes_on_while_the_leader_moves() {
    let stage = Stage::set_among(3, false, FrameLimits::standard()).await;
    stage.control.lead(2);
    stage.control.member_away(0, true);
    stage.engine().store(SPACE, &[1, 2]);
    stage.indexed_by(&[1, 2], &[1, 2], 9).await;
    stage.control.put_pin(7, &[1, 2], 60_000);
    let active = Some(mainstay_types::PinState::Active);
    eventually("the new leader hears", || stage.control.pin_state(7) == active).await;
    stage.control.member_away(0, false);
    stage.indexed_by(&[0], &[1, 2], 9).await;
    assert_eq!(stage.worker.epoch().0, 1);
}

#[tokio::test]
async fn members_that_the_configuration_does_not_name_are_fed_once_the_leader_names_them() {
    let control = FakeControl::start_with(3, false).await;
    let all = control.addresses();
    control.name_members(all[..2].to_vec());
    let first = |settings: &mut Settings| settings.control.truncate(1);
    let stage = Stage::set_before(control, first, FrameLimits::standard()).await;
    stage.engine().store(SPACE, &[1]);
    stage.indexed_by(&[0, 1], &[1], 9).await;
    assert!(stage.control.frames(2).is_empty());
    stage.control.name_members(all.clone());
    stage.indexed_by(&[2], &[1], 9).await;
    stage.control.name_members(all[..2].to_vec());
    // The next renewal brings the news.
    let before = stage.control.publishes();
    eventually("renewed", || stage.control.publishes() >= before + 12).await;
    stage.engine().store(1, &[2]);
    stage.indexed_by(&[0, 1], &[1, 2], 9).await;
    assert_eq!(stage.control.indexed_at(2, 9), [1], "no member any more");
}

#[tokio::test]
async fn epochs_follow_each_other_at_all_members_while_events_go_on() {
    let stage = Stage::set_among(3, false, SMALL).await;
    for epoch in 1..=3_u64 {
        for n in 0..60 {
            let block = u128::from(epoch) * 100 + n;
            stage.engine().store(SPACE, &[block]);
            if n % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        stage.control.fence(stage.worker.worker_id(), stage.worker.epoch());
        eventually("the next epoch", || stage.worker.epoch().0 > epoch).await;
    }
    let held: Vec<u128> = (1..=3).flat_map(|epoch| (0..60).map(move |n| epoch * 100 + n)).collect();
    stage.indexed_by(&[0, 1, 2], &held, 400).await;
}

#[tokio::test]
async fn the_plain_form_sends_frames_to_the_leader_alone() {
    let stage = Stage::set_among(2, true, SMALL).await;
    stage.engine().store(SPACE, &[1, 2, 3]);
    stage.indexed_by(&[0], &[1, 2, 3], 9).await;
    stage.control.lose_answers(2);
    stage.engine().store(3, &[4]);
    stage.indexed_by(&[0], &[1, 2, 3, 4], 9).await;
    stage.control.go_away(true);
    for n in 10..300 {
        stage.engine().store(SPACE, &[n]);
    }
    stage.control.go_away(false);
    let held: Vec<u128> = (1..=4).chain(10..300).collect();
    stage.indexed_by(&[0], &held, 400).await;
    stage.control.fence(stage.worker.worker_id(), stage.worker.epoch());
    eventually("epoch 2", || stage.worker.epoch().0 == 2).await;
    stage.indexed_by(&[0], &held, 400).await;
    assert_eq!(stage.control.sequences(2).first(), Some(&1));
    assert!(stage.control.frames(1).is_empty(), "the other member gets its blocks from the log");
    assert_eq!(stage.control.parts(0) + stage.control.parts(1), 0);
}
