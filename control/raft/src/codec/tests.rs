//! Round trips of everything members say to each other, and hostile bytes.

use openraft::raft::TransferLeaderError;
use proptest::prelude::*;

use super::*;

fn id(term: u64, node: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: node }, index)
}

fn membership() -> Membership {
    let peers = BTreeMap::from([
        (1, Peer { address: "a:1".into(), instance: u64::MAX }),
        (2, Peer { address: "b:2".into(), instance: 7 }),
        (3, Peer { address: "c:3".into(), instance: 0 }),
    ]);
    Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], peers).unwrap()
}

fn entries() -> Vec<Entry> {
    vec![
        Entry { log_id: id(1, 2, 5), payload: EntryPayload::Blank },
        Entry {
            log_id: id(1, 2, 6),
            payload: EntryPayload::Normal(Body(Bytes::from_static(b"hi"))),
        },
        // An empty body is a body and not a blank entry.
        Entry { log_id: id(1, 2, 7), payload: EntryPayload::Normal(Body(Bytes::new())) },
        Entry { log_id: id(1, 2, 8), payload: EntryPayload::Membership(membership()) },
    ]
}

fn there_and_back<T: Coded>(value: &T) -> T {
    T::decode(value.encode()).unwrap()
}

#[test]
fn entries_round_trip() {
    for entry in entries() {
        assert_eq!(there_and_back(&entry), entry);
    }
}

#[test]
fn requests_and_replies_round_trip() {
    let vote = Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: true };
    let append = AppendEntriesRequest::<TypeConfig> {
        vote,
        prev_log_id: Some(id(1, 2, 4)),
        entries: entries(),
        leader_commit: Some(id(1, 2, 3)),
    };
    let back = there_and_back(&append);
    assert_eq!(back.vote, vote);
    assert_eq!(back.prev_log_id, append.prev_log_id);
    assert_eq!(back.entries, append.entries);
    assert_eq!(back.leader_commit, append.leader_commit);

    let replies: [StreamAppendResult<TypeConfig>; 4] = [
        Ok(None),
        Ok(Some(id(1, 2, 3))),
        Err(StreamAppendError::Conflict(id(4, 5, 6))),
        Err(StreamAppendError::HigherVote(vote)),
    ];
    for reply in replies {
        assert_eq!(there_and_back(&reply), reply);
    }
    let request = VoteRequest::<TypeConfig>::new(vote, Some(id(1, 1, 1)));
    assert_eq!(there_and_back(&request), request);
    let transfers: [TransferLeaderResponse<TypeConfig>; 3] = [
        Ok(()),
        Err(TransferLeaderError::VoteChanged { expected: vote, actual: vote }),
        Err(TransferLeaderError::LogNotFlushed { expected: None, actual: Some(id(1, 1, 9)) }),
    ];
    for reply in transfers {
        assert_eq!(there_and_back(&reply), reply);
    }
}

#[test]
fn a_snapshots_head_round_trips_even_before_any_membership() {
    let vote = Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: false };
    let full = SnapshotMeta {
        last_log_id: Some(id(2, 2, 20)),
        last_membership: StoredMembership::new(Some(id(1, 1, 0)), membership()),
    };
    for meta in [SnapshotMeta::default(), full] {
        let head = SnapshotHead { vote, meta, bytes: 77 };
        assert_eq!(there_and_back(&head), head);
    }
}

#[test]
fn memberships_from_before_instances_are_read() {
    // As an earlier version wrote it: one voter, whose peer has an id and an address.
    let old = Bytes::from_static(b"\x0a\x03\x0a\x01\x05\x12\x07\x08\x05\x12\x03a:1");
    let read = MembershipForm::decode(old).unwrap().open().unwrap();
    let peer = Peer { address: "a:1".into(), instance: 0 };
    assert_eq!(read.nodes().collect::<Vec<_>>(), vec![(&5, &peer)]);
    assert_eq!(read.voter_ids().collect::<Vec<_>>(), vec![5]);
}

#[test]
fn entries_with_a_hole_are_refused() {
    let mut holed = entries();
    holed.remove(1);
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed: true },
        prev_log_id: Some(id(1, 2, 4)),
        entries: holed,
        leader_commit: None,
    };
    let error = AppendEntriesRequest::<TypeConfig>::decode(append.encode()).unwrap_err();
    assert_eq!(error, CodecError("order of entries"));
}

#[test]
fn an_empty_message_is_not_a_vote_request() {
    assert!(VoteRequest::<TypeConfig>::decode(Bytes::new()).is_err());
    assert!(AppendEntriesRequest::<TypeConfig>::decode(Bytes::new()).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = Entry::decode(bytes.clone());
        let _ = SnapshotHead::decode(bytes.clone());
        let _ = AppendEntriesRequest::<TypeConfig>::decode(bytes.clone());
        let _ = StreamAppendResult::<TypeConfig>::decode(bytes.clone());
        let _ = TransferLeaderResponse::<TypeConfig>::decode(bytes);
    }

    #[test]
    fn ids_round_trip(term in any::<u64>(), node in any::<u64>(), index in any::<u64>(), committed in any::<bool>()) {
        prop_assert_eq!(there_and_back(&id(term, node, index)), id(term, node, index));
        let vote = Vote { leader_id: LeaderId { term, node_id: node }, committed };
        prop_assert_eq!(there_and_back(&vote), vote);
    }
}
