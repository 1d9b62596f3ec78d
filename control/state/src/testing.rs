//! What the tests of this crate share: a log with a clock, and random commands over small worlds, so that ids,
//! sessions and prefixes meet often.

use mainstay_types::{
    BlockEvent, Command, Epoch, EventFrame, EventSequence, FenceCause, JoinRequest, JoinRole,
    JoinTokenRequest, KeptTokens, KeyId, LogIndex, ModelSpec, NamespaceId, Payload, PinId,
    PinRequest, PinScope, Proposal, Quota, Region, ResponseId, ResponseRecord, ResponseState,
    SecretHash, SequenceHash, SessionId, Stamp, TenantId, Tenure, Tier, WorkerId,
};
use proptest::prelude::*;

use crate::{Limits, Machine, Outcome, VERSION_NEWEST};

/// Limits small enough that random commands run into all of them.
pub(crate) fn small_limits() -> Limits {
    Limits {
        workers_max: 4,
        pins_max: 10,
        pins_per_tenant_max: 7,
        pin_blocks_max: 12,
        pinned_blocks_max: 60,
        pinned_blocks_per_tenant_max: 24,
        pin_token_bytes_max: 250,
        kept_token_bytes_max: 900,
        kept_token_bytes_per_tenant_max: 600,
        ttl_ms_max: 10_000,
        index_blocks_max: 40,
        tenants_max: 3,
        keys_max: 5,
        keys_per_tenant_max: 3,
        join_tokens_max: 3,
        response_payload_bytes_max: 300,
        response_bytes_max: 2_400,
        response_bytes_per_tenant_max: 1_500,
        response_chain_max: 3,
    }
}

pub(crate) fn stamp(mono_ms: u64) -> Stamp {
    let tenure = Tenure { term: 1, node: 1, boot: 1 };
    Stamp { tenure, mono_ms, wall_ms: 1_000_000 + mono_ms }
}

/// A machine with a log that counts and a clock that the test moves.
pub(crate) struct Log {
    pub(crate) machine: Machine,
    pub(crate) now_ms: u64,
    index: u64,
}

/// A machine whose log was raised to the newest version before its first entry.
pub(crate) fn machine(limits: Limits) -> Machine {
    Machine { version: VERSION_NEWEST, ..Machine::new(limits) }
}

impl Log {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { machine: machine(limits), now_ms: 0, index: 0 }
    }

    /// A log of the oldest version.
    pub(crate) fn old(limits: Limits) -> Self {
        Self { machine: Machine::new(limits), now_ms: 0, index: 0 }
    }

    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let proposal = Proposal { stamp: stamp(self.now_ms), command };
        self.machine.apply(LogIndex(self.index), &proposal)
    }

    /// Moves the clock and tells the machine.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        assert_eq!(self.apply(Command::Tick), Outcome::Ticked);
    }
}

pub(crate) fn register(name: &str, incarnation: u64) -> Command {
    register_in(name, incarnation, Region::LOCAL)
}

pub(crate) fn register_in(name: &str, incarnation: u64, region: &str) -> Command {
    Command::RegisterWorker {
        name: name.to_owned(),
        address: "127.0.0.1:7000".to_owned(),
        incarnation,
        model: ModelSpec {
            name: "tiny".to_owned(),
            revision: "1".to_owned(),
            block_tokens: 16,
            context_tokens_max: 4_096,
        },
        blocks_total: 100,
        region: Region::new(region).expect("a name"),
    }
}

pub(crate) fn fence(worker: u32, epoch: u64) -> Command {
    let (worker, epoch) = (WorkerId(worker), Epoch(epoch));
    Command::FenceWorker { worker, epoch, cause: FenceCause::LeaseExpired }
}

pub(crate) fn frame(worker: u32, epoch: u64, sequence: u64, events: Vec<BlockEvent>) -> Command {
    let (worker, epoch, sequence) = (WorkerId(worker), Epoch(epoch), EventSequence(sequence));
    Command::Blocks(EventFrame { worker, epoch, sequence, events })
}

pub(crate) fn report(worker: u32, epoch: u64, id: u128, blocks_held: u32) -> Command {
    let (worker, epoch, id) = (WorkerId(worker), Epoch(epoch), PinId(id));
    Command::ReportPin { worker, epoch, id, blocks_held }
}

/// The first `length` blocks of a branch of a conversation; branches part after two blocks.
pub(crate) fn prefix(branch: u128, length: usize) -> Vec<SequenceHash> {
    let hash = |depth: u128| if depth < 2 { depth } else { 100 * (branch + 1) + depth };
    (0..length as u128).map(|depth| SequenceHash(hash(depth))).collect()
}

pub(crate) fn stored(blocks: Vec<SequenceHash>) -> BlockEvent {
    let namespace = NamespaceId(9);
    BlockEvent::Stored { namespace, parent: SequenceHash(9), blocks, tier: Tier::Device }
}

/// A pin of tenant `acme` and session `s`, for one worker and one second.
pub(crate) fn pin(id: u128, blocks: Vec<SequenceHash>) -> PinRequest {
    PinRequest {
        id: PinId(id),
        tenant: TenantId::new("acme").expect("a name"),
        namespace: NamespaceId(9),
        owner: SessionId::new("s"),
        prefix_tokens: blocks.len() as u32 * 16,
        blocks,
        ttl_ms: 1_000,
        priority: 50,
        copies_min: 1,
        tokens: None,
        scope: PinScope::default(),
    }
}

/// Tokens of so many blocks.
pub(crate) fn tokens(blocks: usize) -> KeptTokens {
    KeptTokens::new("tiny", "1", &(0..blocks as u32 * 16).collect::<Vec<u32>>())
}

pub(crate) fn order(id: u128, worker: u32, epoch: u64) -> Command {
    Command::OrderPin { id: PinId(id), worker: WorkerId(worker), epoch: Epoch(epoch) }
}

fn request() -> impl Strategy<Value = PinRequest> {
    let world = (0_u128..14, 0_u128..3, 1_usize..14, 0_usize..2, 0_usize..3, any::<bool>());
    let scope =
        prop_oneof![3 => Just("region:local"), 2 => Just("global"), 1 => Just("region:far")];
    let promise = (0_u64..4_000, 1_u32..3, prop_oneof![9 => Just(50_u8), 1 => 0_u8..110], scope);
    (world, promise).prop_map(
        |((id, branch, length, tenant, owner, kept), (ttl_ms, copies_min, priority, scope))| {
            PinRequest {
                tenant: TenantId::new(["acme", "zeta"][tenant]).expect("a name"),
                owner: [None, SessionId::new("s"), SessionId::new("t")][owner].clone(),
                ttl_ms,
                priority,
                copies_min,
                tokens: kept.then(|| tokens(length)),
                scope: PinScope::parse(scope).expect("a scope"),
                ..pin(id, prefix(branch, length))
            }
        },
    )
}

fn events() -> impl Strategy<Value = Vec<BlockEvent>> {
    let store =
        (0_u128..3, 0_usize..12).prop_map(|(branch, length)| stored(prefix(branch, length)));
    let remove = (0_u128..3, 0_usize..12).prop_map(|(branch, at)| BlockEvent::Removed {
        blocks: prefix(branch, 12).split_off(at),
        tier: Tier::Device,
    });
    let event = prop_oneof![6 => store, 3 => remove, 1 => Just(BlockEvent::Cleared)];
    proptest::collection::vec(event, 0..4)
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a name")
}

pub(crate) fn key_id(name: &str) -> KeyId {
    KeyId::new(name).expect("a name")
}

pub(crate) fn put_tenant(name: &str, pinned_blocks_max: Option<u64>) -> Command {
    let quota = Quota { pinned_blocks_max, ..Quota::default() };
    Command::PutTenant { name: tenant(name), quota }
}

pub(crate) fn put_key(name: &str, key: &str, hash: u8) -> Command {
    Command::PutKey { tenant: tenant(name), key: key_id(key), hash: SecretHash([hash; 32]) }
}

pub(crate) fn join_token(id: &str, hash: u8, role: JoinRole, node: Option<&str>) -> Command {
    Command::PutJoinToken(JoinTokenRequest {
        id: key_id(id),
        hash: SecretHash([hash; 32]),
        role,
        node: node.map(str::to_owned),
        ttl_ms: 1_000,
    })
}

pub(crate) fn join(token: u8, role: JoinRole, node: &str, key: u8) -> Command {
    Command::UseJoinToken(JoinRequest {
        token: SecretHash([token; 32]),
        role,
        node: node.to_owned(),
        key: SecretHash([key; 32]),
    })
}

pub(crate) fn response_id(id: u64) -> ResponseId {
    ResponseId::new(&format!("resp_{id}")).expect("a name")
}

/// An ended response of tenant `acme`, for one second, of so many bytes that depend on its id.
pub(crate) fn response(id: u64, previous: Option<u64>, bytes: usize) -> ResponseRecord {
    let held: Vec<u8> = (0..bytes).map(|at| (id as usize + at) as u8).collect();
    ResponseRecord {
        tenant: tenant("acme"),
        id: response_id(id),
        previous: previous.map(response_id),
        ttl_ms: 1_000,
        state: ResponseState::Ended,
        payload: Payload::new(&held).expect("short"),
    }
}

pub(crate) fn end_response(name: &str, id: u64, cancelled: bool) -> Command {
    Command::EndResponse { tenant: tenant(name), id: response_id(id), cancelled }
}

/// Commands about stored responses.
pub(crate) fn responses() -> impl Strategy<Value = Command> {
    const NAMES: [&str; 3] = ["acme", "zeta", "c"];
    let name = || proptest::sample::select(&NAMES[..]);
    let state = prop_oneof![
        6 => Just(ResponseState::Ended), 2 => Just(ResponseState::Running),
        1 => Just(ResponseState::Cancelled)
    ];
    let what = (0_u64..12, proptest::option::of(0_u64..12), 0_usize..320);
    let put = (name(), what, 0_u64..4_000, state).prop_map(
        |(name, (id, before, bytes), ttl_ms, state)| {
            // Mostly what a gateway would write: one that comes after the one that it continues.
            let before = before.filter(|before| before != &id);
            Command::PutResponse(ResponseRecord {
                tenant: tenant(name),
                ttl_ms,
                state,
                ..response(id, before, bytes)
            })
        },
    );
    prop_oneof![
        8 => put,
        1 => (name(), 0_u64..12, any::<bool>()).prop_map(|(n, id, c)| end_response(n, id, c)),
    ]
}

/// Commands about tenants, keys and join tokens.
fn access() -> impl Strategy<Value = Command> {
    const NAMES: [&str; 5] = ["acme", "zeta", "c", "d", "e"];
    let name = || proptest::sample::select(&NAMES[..]);
    let role = || proptest::sample::select(&JoinRole::ALL[..]);
    let node = || proptest::option::of(name());
    prop_oneof![
        4 => (name(), proptest::option::of(0_u64..30)).prop_map(|(n, max)| put_tenant(n, max)),
        1 => name().prop_map(|n| Command::RemoveTenant { name: tenant(n) }),
        4 => (name(), name(), 0_u8..8).prop_map(|(n, key, hash)| put_key(n, key, hash)),
        1 => (name(), name())
            .prop_map(|(n, key)| Command::RemoveKey { tenant: tenant(n), key: key_id(key) }),
        4 => (name(), 0_u8..8, role(), node()).prop_map(|(n, h, r, node)| join_token(n, h, r, node)),
        4 => (0_u8..8, role(), name(), 0_u8..2).prop_map(|(t, r, node, key)| join(t, r, node, key)),
        1 => name().prop_map(|n| Command::RemoveJoinToken { id: key_id(n) }),
    ]
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let registers = (0_usize..6, 0_u64..4, 0_usize..3).prop_map(|(name, incarnation, region)| {
        let region = [Region::LOCAL, Region::LOCAL, "far"][region];
        register_in(["a", "b", "c", "d", "e", "f"][name], incarnation, region)
    });
    let frames = (1_u32..7, 1_u64..4, 0_u64..6, events())
        .prop_map(|(worker, epoch, sequence, events)| frame(worker, epoch, sequence, events));
    let pin_id = || (0_u128..14).prop_map(PinId);
    prop_oneof![
        1 => Just(Command::Tick),
        1 => (0_u8..6).prop_map(|version| Command::RaiseVersion { version }),
        1 => (0_u8..3).prop_map(|byte| Command::Bootstrap { hash_key: [byte; 16] }),
        5 => registers,
        2 => (1_u32..7, 0_u64..4).prop_map(|(worker, epoch)| fence(worker, epoch)),
        6 => frames,
        12 => request().prop_map(Command::PutPin),
        2 => (pin_id(), 0_u64..11_000).prop_map(|(id, ttl_ms)| Command::ExtendPin { id, ttl_ms }),
        2 => pin_id().prop_map(|id| Command::ReleasePin { id }),
        8 => (1_u32..7, 1_u64..3, 0_u128..14, 0_u32..13)
            .prop_map(|(worker, epoch, id, held)| report(worker, epoch, id, held)),
        4 => (0_u128..14, 1_u32..7, 1_u64..3)
            .prop_map(|(id, worker, epoch)| order(id, worker, epoch)),
        8 => access(),
        9 => responses(),
    ]
}

/// A log of random commands, some milliseconds apart, led by one member after another.
pub(crate) fn log(entries: usize) -> impl Strategy<Value = Vec<Proposal>> {
    let entry = (command(), 0_u64..600, proptest::bool::weighted(0.05), 0_u64..500);
    proptest::collection::vec(entry, 0..entries).prop_map(|entries| {
        let (mut now_ms, mut term) = (10_000, 1);
        let mut proposals = Vec::new();
        for (command, passed_ms, elected, off_ms) in entries {
            now_ms += passed_ms;
            term += u64::from(elected);
            let tenure = Tenure { term, node: term % 3, boot: 1 };
            let stamp = Stamp { tenure, mono_ms: now_ms, wall_ms: now_ms - 250 + off_ms };
            proposals.push(Proposal { stamp, command });
        }
        proposals
    })
}
