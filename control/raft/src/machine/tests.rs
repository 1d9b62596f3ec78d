//! openraft's own suite over log store and machine, and the image against the live state.

use mainstay_state::VERSION_OLDEST;
use mainstay_types::{Command, NamespaceId, PinId, PinRequest, PinScope, SequenceHash, TenantId};
use mainstay_types::{Stamp, Tenure};
use openraft::StorageError;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::*;
use crate::store::{Folder, LogStore};
use crate::types::{Body, LeaderId};

/// Kinds of stores that keep the same promises.
#[derive(Clone, Copy)]
enum Stores {
    Rocks,
    #[cfg(feature = "simulation")]
    Memory,
}

const KINDS: &[Stores] = &[
    Stores::Rocks,
    #[cfg(feature = "simulation")]
    Stores::Memory,
];

#[cfg(feature = "simulation")]
fn build_in_memory() -> (TempDir, Log, StateMachine) {
    let dir = tempfile::tempdir().unwrap();
    let disk = crate::simulation::Disk::new(0);
    let log = Log::in_memory(&disk).unwrap();
    let snapshots = Arc::new(SnapshotStore::in_memory(disk));
    let shared = Arc::new(Shared::new(Limits::standard()));
    let machine = StateMachine::new(shared, snapshots, log.clone());
    (dir, log, machine)
}

fn build() -> (TempDir, Log, StateMachine) {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::claim(dir.path(), 1).unwrap();
    let log = Log::Rocks(LogStore::open(&folder).unwrap());
    let snapshots = Arc::new(SnapshotStore::new(folder.snapshot()));
    let shared = Arc::new(Shared::new(Limits::standard()));
    let machine = StateMachine::new(shared, snapshots, log.clone());
    (dir, log, machine)
}

impl StoreBuilder<TypeConfig, Log, StateMachine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, Log, StateMachine), StorageError<TypeConfig>> {
        Ok(match self {
            Self::Rocks => build(),
            #[cfg(feature = "simulation")]
            Self::Memory => build_in_memory(),
        })
    }
}

type Conformance = Suite<TypeConfig, Log, StateMachine, Stores, TempDir>;

/// Runs cases of openraft's suite, each on stores of its own of every kind.
macro_rules! conform {
    ($($case:ident)*) => {
        $(
            for stores in KINDS {
                let (_dir, log, machine) = stores.build().await.unwrap();
                Conformance::$case(log, machine).await.expect(stringify!($case));
            }
        )*
    };
}

// Its cases that build images are left out: they apply entries that no log has, and images here are built from
// the log. The tests below are about images.
#[tokio::test]
async fn openrafts_suite_of_log_and_machine() {
    conform! {
        last_membership_in_log_initial
        last_membership_in_log
        last_membership_in_log_multi_step
        get_membership_initial
        get_membership_from_log_and_empty_sm
        get_membership_from_empty_log_and_sm
        get_membership_from_log_le_sm_last_applied
        get_membership_from_log_gt_sm_last_applied_1
        get_membership_from_log_gt_sm_last_applied_2
        get_initial_state_without_init
        get_initial_state_with_state
        get_initial_state_last_log_gt_sm
        get_initial_state_inverted_log_order
        get_initial_state_conflict_at_same_index
        save_vote
        get_log_entries
        limited_get_log_entries
        leader_bounded_stream
        entries_stream
        try_get_log_entry
        log_reader_reads_new_entries
        initial_logs
        get_log_state
        get_log_id
        last_id_in_log
        last_applied_state
        purge_logs_upto_0
        purge_logs_upto_5
        purge_logs_upto_20
        delete_logs_after_11
        delete_logs_after_5
        delete_logs_after_0
        delete_logs_after_none
        append_to_log
        apply_single
        apply_multiple
    }
}

fn pin(index: u64) -> Entry {
    let id = u128::from(index);
    let stamp =
        Stamp { tenure: Tenure { term: 1, node: 1, boot: 1 }, mono_ms: index, wall_ms: index };
    let command = Command::PutPin(PinRequest {
        id: PinId(id),
        tenant: TenantId::new("acme").unwrap(),
        namespace: NamespaceId(1),
        owner: None,
        blocks: vec![SequenceHash(id)],
        prefix_tokens: 16,
        ttl_ms: 60_000,
        priority: 1,
        copies_min: 1,
        tokens: None,
        scope: PinScope::default(),
    });
    let wire = mainstay_proto::convert::proposal_to_wire(&Proposal { stamp, command });
    let log_id = LogId::new(LeaderId { term: 1, node_id: 1 }, index);
    Entry { log_id, payload: EntryPayload::Normal(Body(wire.encode_to_vec().into())) }
}

async fn put(log: &mut Log, machine: &mut StateMachine, range: std::ops::RangeInclusive<u64>) {
    let entries: Vec<Entry> = range.map(pin).collect();
    log.blocking_append(entries.clone()).await.unwrap();
    let items = entries.into_iter().map(|e| Ok((e, None)));
    machine.apply(futures::stream::iter(items)).await.unwrap();
}

#[tokio::test]
async fn an_image_is_what_the_live_state_was_when_it_was_asked_for() {
    for copied_bytes_max in [0, u64::MAX] {
        image_of_a_moment(copied_bytes_max).await;
    }
}

async fn image_of_a_moment(copied_bytes_max: u64) {
    let (_dir, mut log, mut machine) = build();
    machine.copied_bytes_max = copied_bytes_max;
    let first = Entry {
        log_id: LogId::new(LeaderId { term: 0, node_id: 0 }, 0),
        payload: EntryPayload::Blank,
    };
    log.blocking_append([first]).await.unwrap();
    put(&mut log, &mut machine, 1..=40).await;
    let digest = machine.shared.machine.read().digest();
    let mut builder = machine.get_snapshot_builder().await;
    put(&mut log, &mut machine, 41..=50).await;
    let snapshot = builder.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(pin(40).log_id));
    let image = decode_image(&snapshot.snapshot, &Limits::standard()).unwrap();
    assert_eq!(image.digest(), digest);

    // The next build starts from this image: what it covers is needed no more.
    log.purge(pin(40).log_id).await.unwrap();
    put(&mut log, &mut machine, 51..=80).await;
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(pin(80).log_id));
    let image = decode_image(&snapshot.snapshot, &Limits::standard()).unwrap();
    assert_eq!(image.digest(), machine.shared.machine.read().digest());

    let (_other, _, mut fresh) = build();
    fresh.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(fresh.shared.machine.read().digest(), image.digest());
    assert_eq!(fresh.applied_state().await.unwrap().0, Some(pin(80).log_id));
    assert_eq!(fresh.get_current_snapshot().await.unwrap().unwrap().meta, snapshot.meta);
}

#[tokio::test]
async fn a_build_that_an_installed_image_overtakes_gives_way_to_it() {
    let (_dir, mut log, mut machine) = build();
    machine.copied_bytes_max = 0;
    put(&mut log, &mut machine, 1..=20).await;
    // The log begins at 1 here, so the build has to look for entry 0 in vain.
    let mut builder = machine.get_snapshot_builder().await;
    assert!(builder.build_snapshot().await.is_err());
    let state = Bytes::from(machine.shared.machine.read().encode());
    let meta = SnapshotMeta { last_log_id: Some(pin(20).log_id), ..SnapshotMeta::default() };
    machine.install_snapshot(&meta, state).await.unwrap();
    assert_eq!(builder.build_snapshot().await.unwrap().meta, meta);
}

#[tokio::test]
async fn an_image_that_can_not_be_read_replaces_nothing() {
    let (_dir, mut log, mut machine) = build();
    put(&mut log, &mut machine, 1..=3).await;
    let digest = machine.shared.machine.read().digest();
    let meta = SnapshotMeta { last_log_id: Some(pin(9).log_id), ..SnapshotMeta::default() };
    assert!(machine.install_snapshot(&meta, Bytes::from_static(b"\xffnonsense")).await.is_err());
    assert_eq!(machine.shared.machine.read().digest(), digest);
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
}

fn raise(index: u64, version: u8) -> Entry {
    let stamp = Stamp::default();
    let command = Command::RaiseVersion { version };
    let wire = mainstay_proto::convert::proposal_to_wire(&Proposal { stamp, command });
    let log_id = LogId::new(LeaderId { term: 1, node_id: 1 }, index);
    Entry { log_id, payload: EntryPayload::Normal(Body(wire.encode_to_vec().into())) }
}

#[tokio::test]
async fn a_version_that_is_not_known_ends_the_member_and_says_why() {
    let (_dir, mut log, mut machine) = build();
    put(&mut log, &mut machine, 1..=3).await;
    let version = |machine: &StateMachine| machine.shared.version.load(Ordering::Acquire);
    assert_eq!(version(&machine), VERSION_OLDEST);
    let apply = |entry| futures::stream::iter([Ok((entry, None))]);
    machine.apply(apply(raise(4, VERSION_NEWEST))).await.unwrap();
    assert_eq!(version(&machine), VERSION_NEWEST);
    let error = machine.apply(apply(raise(5, VERSION_NEWEST + 1))).await.unwrap_err();
    let text =
        "entry 5: the cluster is at version 5, this program knows version 4; start a newer one";
    assert_eq!(error.to_string(), text);
    assert_eq!(machine.shared.machine.read().applied(), LogIndex(4));
}

#[tokio::test]
async fn an_image_of_an_earlier_version_and_the_log_that_raises_it_are_one_state() {
    let (_dir, mut log, mut machine) = build();
    machine.copied_bytes_max = 0;
    let first = Entry {
        log_id: LogId::new(LeaderId { term: 0, node_id: 0 }, 0),
        payload: EntryPayload::Blank,
    };
    log.blocking_append([first]).await.unwrap();
    put(&mut log, &mut machine, 1..=20).await;
    let image = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(image.snapshot[0], VERSION_OLDEST);
    log.blocking_append([raise(21, VERSION_NEWEST)]).await.unwrap();
    machine.apply(futures::stream::iter([Ok((raise(21, VERSION_NEWEST), None))])).await.unwrap();
    put(&mut log, &mut machine, 22..=40).await;
    // Built from the earlier image and the entries since.
    let image = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(image.snapshot[0], VERSION_NEWEST);
    let read = decode_image(&image.snapshot, &Limits::standard()).unwrap();
    assert_eq!(read.digest(), machine.shared.machine.read().digest());
}
