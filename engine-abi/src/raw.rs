//! The `#[repr(C)]` mirror of `mainstay_engine.h`, field for field and in the header's order.
//!
//! The header is normative; this file exists so that Rust can speak it. Names differ only in case
//! (`mse_out` is [`MseOut`]), fields are equal. All types are plain data for which every bit pattern
//! that a C program can write is valid, so a hostile struct is read first and judged afterwards.
//! [`crate::layout`] checks sizes and offsets. Where the header takes a struct by pointer, so do the
//! function types here; whoever calls through them keeps the header's rules R4 and R6.

use std::ffi::c_void;

pub const ABI_MAJOR: u32 = 1;
pub const ABI_MINOR: u32 = 0;
pub const MAGIC: [u8; 8] = *b"MAINSTAY";
/// The exported symbols of an engine.
pub const SYMBOL_MAGIC: &str = "mse_magic_v1";
pub const SYMBOL_OPEN: &str = "mse_open_v1";

pub const OK: i32 = 0;
pub const EXT_CRITICAL: u32 = 1;
pub const ERR_FATAL: u32 = 1;

pub const SAMPLING_SEED: u32 = 1;
pub const SAMPLING_IGNORE_EOS: u32 = 2;

pub const GUIDED_JSON_SCHEMA: u32 = 1;
pub const GUIDED_REGEX: u32 = 2;
pub const GUIDED_LARK: u32 = 3;

pub const LEASE_AMEND: u32 = 1;
pub const LEASE_RELEASE: u32 = 2;
pub const LEASE_FINISH: u32 = 3;
pub const LEASE_COMPACT: u32 = 4;

pub const LANE_OUT: u32 = 0;
pub const LANE_KV: u32 = 1;
pub const LANE_OP: u32 = 2;

pub const OUT_FIRST: u32 = 1;
pub const OUT_FINAL: u32 = 2;
pub const FINISH_NONE: u32 = 0;
pub const FINISH_STOP: u32 = 1;
pub const FINISH_LENGTH: u32 = 2;
pub const FINISH_CANCELLED: u32 = 3;
pub const FINISH_ERROR: u32 = 4;

pub const KV_STORED: u32 = 1;
pub const KV_REMOVED: u32 = 2;
pub const KV_RESET: u32 = 3;
pub const KV_PIN_EXPIRED: u32 = 4;
pub const KV_SNAPSHOT: u32 = 1;
pub const CAUSE_NONE: u32 = 0;
pub const CAUSE_CAPACITY: u32 = 1;
pub const CAUSE_EXPIRY: u32 = 2;
pub const CAUSE_LIFECYCLE: u32 = 3;
pub const CAUSE_ADMIN: u32 = 4;

pub const HEALTH_STARTING: u32 = 0;
pub const HEALTH_OK: u32 = 1;
pub const HEALTH_DRAINING: u32 = 2;
pub const HEALTH_FATAL: u32 = 3;

/// The length of `mse_ages.by_power`.
pub const AGE_POWERS: usize = 40;
/// The length of `mse_stats.age_at_eviction`.
pub const CAUSES: usize = 5;
pub const AGES_TOLD: u32 = 1;

/// The length of `mse_err.msg`.
pub const ERR_MSG_BYTES: usize = 236;

/// `mse_engine`: one engine instance; only ever a pointer to it is seen.
#[repr(C)]
pub struct MseEngine {
    _opaque: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseExt {
    pub size: u32,
    pub r#type: u32,
    pub flags: u32,
    pub _reserved: u32,
    pub next: *const MseExt,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseHdr {
    pub size: u32,
    pub flags: u32,
    pub next: *const MseExt,
}

impl MseHdr {
    /// The header of a struct that this side writes.
    pub const fn of<T>() -> Self {
        assert!(size_of::<T>() <= 4096, "a struct of the boundary is small");
        Self { size: size_of::<T>() as u32, flags: 0, next: std::ptr::null() }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseStr {
    pub ptr: *const u8,
    pub len: u64,
}

impl MseStr {
    /// A view of `text`; whoever hands it out keeps `text` alive as long as the header demands.
    pub const fn of(text: &str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() as u64 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MseU128 {
    pub lo: u64,
    pub hi: u64,
}

impl From<u128> for MseU128 {
    fn from(value: u128) -> Self {
        Self { lo: value as u64, hi: (value >> 64) as u64 }
    }
}

impl From<MseU128> for u128 {
    fn from(value: MseU128) -> Self {
        Self::from(value.hi) << 64 | Self::from(value.lo)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseErr {
    pub size: u32,
    pub rc: i32,
    pub retry_after_ms: u32,
    pub flags: u32,
    pub msg_len: u32,
    pub msg: [u8; ERR_MSG_BYTES],
}

impl MseErr {
    /// An empty error for the other side to fill.
    pub const fn empty() -> Self {
        Self {
            size: size_of::<Self>() as u32,
            rc: 0,
            retry_after_ms: 0,
            flags: 0,
            msg_len: 0,
            msg: [0; ERR_MSG_BYTES],
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseMagic {
    pub magic: [u8; 8],
    pub size: u32,
    pub abi_major: u32,
    pub abi_minor: u32,
    pub min_host_minor: u32,
    pub pointer_bits: u32,
    pub little_endian: u32,
    pub layout: u64,
    pub vendor: MseStr,
    pub name: MseStr,
    pub version: MseStr,
}

/// `mse_host.log`: callable from any thread.
pub type LogFn = unsafe extern "C" fn(*mut c_void, u32, MseStr, MseStr);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseHost {
    pub h: MseHdr,
    pub abi_major: u32,
    pub abi_minor: u32,
    pub ctx: *mut c_void,
    pub log: Option<LogFn>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseInfo {
    pub h: MseHdr,
    pub caps: u64,
    pub block_tokens: u32,
    pub vocab: u32,
    pub context_tokens_max: u32,
    pub requests_max: u32,
    pub blocks_total: u64,
    pub block_bytes: u64,
    pub model: MseStr,
    pub model_dir: MseStr,
    pub device: MseStr,
    pub kv_layout: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseRange {
    pub start: u32,
    pub end: u32,
    pub priority: u8,
    pub after: u8,
    pub kind: u8,
    pub lease: u8,
    pub duration_ms: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseSampling {
    pub h: MseHdr,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub top_k: i32,
    pub tokens_max: u32,
    pub tokens_min: u32,
    pub logprobs: u32,
    pub seed: u64,
    pub flags: u32,
    pub _reserved: u32,
    pub stop_tokens: *const u32,
    pub stop_tokens_len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseGuided {
    pub h: MseHdr,
    pub kind: u32,
    pub _reserved: u32,
    pub spec: MseStr,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseRequest {
    pub h: MseHdr,
    pub id: u64,
    pub trace: MseU128,
    pub namespace_id: MseU128,
    pub tokens: *const u32,
    pub tokens_len: u64,
    pub sampled_before: u32,
    pub priority: i32,
    pub sampling: *const MseSampling,
    pub ranges: *const MseRange,
    pub ranges_len: u64,
    pub expected_output_tokens: u32,
    pub _reserved: u32,
    pub guided: *const MseGuided,
    pub leases: *const MseU128,
    pub leases_len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseLease {
    pub h: MseHdr,
    pub namespace_id: MseU128,
    pub lease_id: MseU128,
    pub how: u32,
    pub _reserved: u32,
    pub ranges: *const MseRange,
    pub ranges_len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseOut {
    pub id: u64,
    pub token_off: u32,
    pub token_len: u32,
    pub logprob_off: u32,
    pub logprob_len: u32,
    pub flags: u32,
    pub finish: u32,
    pub rc: i32,
    pub cached_tokens: u32,
    pub msg_off: u32,
    pub msg_len: u32,
    pub queue_us: u64,
    pub prefill_us: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseLogprob {
    pub token: u32,
    pub logprob: f32,
    pub position: u32,
    pub rank: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseKv {
    pub r#type: u32,
    pub tier: u32,
    pub cause: u32,
    pub flags: u32,
    pub block_off: u32,
    pub block_len: u32,
    pub parent: MseU128,
    pub namespace_id: MseU128,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseOp {
    pub op_id: u64,
    pub rc: i32,
    pub done: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseBatch {
    pub h: MseHdr,
    pub lane: u32,
    pub len: u32,
    pub epoch: u64,
    pub first_seq: u64,
    pub items: *const c_void,
    pub stride: u32,
    pub _reserved: u32,
    pub tokens: *const u32,
    pub tokens_len: u64,
    pub logprobs: *const MseLogprob,
    pub logprobs_len: u64,
    pub blocks: *const MseU128,
    pub blocks_len: u64,
    pub bytes: *const u8,
    pub bytes_len: u64,
    pub opaque: *mut c_void,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MsePin {
    pub h: MseHdr,
    pub op_id: u64,
    pub pin_id: MseU128,
    pub blocks: *const MseU128,
    pub blocks_len: u64,
    pub ttl_ms: u64,
    pub priority: u32,
    pub _reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseExport {
    pub h: MseHdr,
    pub op_id: u64,
    pub blocks: *const MseU128,
    pub blocks_len: u64,
    pub bytes: *mut u8,
    pub bytes_len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseImport {
    pub h: MseHdr,
    pub op_id: u64,
    pub namespace_id: MseU128,
    pub parent: MseU128,
    pub kv_layout: u64,
    pub blocks: *const MseU128,
    pub blocks_len: u64,
    pub bytes: *const u8,
    pub bytes_len: u64,
    pub priority: u32,
    pub duration_ms: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseAges {
    pub by_power: [u64; AGE_POWERS],
    pub sum_ms: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseStats {
    pub h: MseHdr,
    pub epoch: u64,
    pub kv_seq: u64,
    pub running: u32,
    pub waiting: u32,
    pub health: u32,
    pub _reserved: u32,
    pub blocks_used: u64,
    pub blocks_cached: u64,
    pub blocks_pinned: u64,
    pub hit_tokens: u64,
    pub query_tokens: u64,
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    pub preemptions: u64,
    pub evictions: u64,
    pub waiting_prefill_tokens: u64,
    pub ages: u32,
    pub _reserved2: u32,
    pub age_at_hit: MseAges,
    pub age_at_eviction: [MseAges; CAUSES],
    pub draft_tokens: u64,
    pub accepted_tokens: u64,
}

pub type CreateFn =
    unsafe extern "C" fn(*const MseHost, MseStr, *mut *mut MseEngine, *mut MseErr) -> i32;
pub type DestroyFn = unsafe extern "C" fn(*mut MseEngine);
pub type InfoFn = unsafe extern "C" fn(*const MseEngine, *mut MseInfo, *mut MseErr) -> i32;
pub type StatsFn = unsafe extern "C" fn(*const MseEngine, *mut MseStats, *mut MseErr) -> i32;
pub type SubmitFn = unsafe extern "C" fn(*mut MseEngine, *const MseRequest, *mut MseErr) -> i32;
pub type CancelFn = unsafe extern "C" fn(*mut MseEngine, u64) -> i32;
pub type WaitFn = unsafe extern "C" fn(*mut MseEngine, u32, u64) -> i32;
pub type PollFn = unsafe extern "C" fn(*mut MseEngine, u32, u32, *mut MseBatch, *mut MseErr) -> i32;
pub type BatchReleaseFn = unsafe extern "C" fn(*mut MseEngine, *mut MseBatch);
pub type DrainFn = unsafe extern "C" fn(*mut MseEngine, u64, *mut MseErr) -> i32;
pub type KvSnapshotFn = unsafe extern "C" fn(*mut MseEngine, u64, *mut MseErr) -> i32;
pub type PinFn = unsafe extern "C" fn(*mut MseEngine, *const MsePin, *mut MseErr) -> i32;
pub type UnpinFn = unsafe extern "C" fn(*mut MseEngine, u64, MseU128, *mut MseErr) -> i32;
pub type KvExportFn = unsafe extern "C" fn(*mut MseEngine, *const MseExport, *mut MseErr) -> i32;
pub type KvImportFn = unsafe extern "C" fn(*mut MseEngine, *const MseImport, *mut MseErr) -> i32;
pub type LeaseFn = unsafe extern "C" fn(*mut MseEngine, *const MseLease, *mut MseErr) -> i32;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MseVtable {
    pub h: MseHdr,
    pub create: Option<CreateFn>,
    pub destroy: Option<DestroyFn>,
    pub info: Option<InfoFn>,
    pub stats: Option<StatsFn>,
    pub submit: Option<SubmitFn>,
    pub cancel: Option<CancelFn>,
    pub wait: Option<WaitFn>,
    pub poll: Option<PollFn>,
    pub batch_release: Option<BatchReleaseFn>,
    pub drain: Option<DrainFn>,
    pub kv_snapshot: Option<KvSnapshotFn>,
    pub pin: Option<PinFn>,
    pub unpin: Option<UnpinFn>,
    pub kv_export: Option<KvExportFn>,
    pub kv_import: Option<KvImportFn>,
    pub lease: Option<LeaseFn>,
}

/// The type of `mse_magic_v1`.
pub type MagicFn = unsafe extern "C" fn() -> *const MseMagic;
/// The type of `mse_open_v1`.
pub type OpenFn = unsafe extern "C" fn(*const MseHost, *mut *const MseVtable, *mut MseErr) -> i32;
