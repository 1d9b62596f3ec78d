//! The bridge to the C++ executor. All unsafe code of this crate is here, and most of it is cxx's.
//!
//! Errors of C++, of whatever type, come as [`Fault`]s.

#[cxx::bridge(namespace = "mainstay::trtllm")]
pub(crate) mod ffi {
    /// What an executor is opened with. 0 is "as it likes".
    #[derive(Debug, Clone, Default)]
    struct Settings {
        engine_dir: String,
        event_buffer: usize,
        kv_tokens_max: i32,
        kv_fraction: f32,
        host_cache_bytes: usize,
        /// Below 0 is "as it likes".
        offload_priority_min: i32,
        requests_max: i32,
    }

    /// A stretch of the prompt and its worth.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Span {
        start: i32,
        end: i32,
        priority: i32,
        /// 0 is no limit.
        duration_ms: u32,
    }

    /// A request.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Ask {
        client: u64,
        salt: u64,
        tokens: Vec<i32>,
        tokens_max: i32,
        tokens_min: i32,
        has_end: bool,
        end_id: i32,
        stop_tokens: Vec<i32>,
        /// 0 is greedy.
        temperature: f32,
        top_p: f32,
        top_k: i32,
        min_p: f32,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        has_seed: bool,
        seed: u64,
        priority: f32,
        has_retention: bool,
        ranges: Vec<Span>,
        decode_priority: i32,
        decode_duration_ms: u32,
        /// 0 is no limit.
        allotted_ms: u64,
    }

    /// A response.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Said {
        has_client: bool,
        client: u64,
        tokens: Vec<u32>,
        is_final: bool,
        /// `FinishReason`, by its number.
        finish: u8,
        has_error: bool,
        error: String,
        /// Below 0: it does not say.
        reused_blocks: i32,
        queue_us: u64,
    }

    /// A cache event.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Told {
        number: u64,
        /// 1 created, 2 stored, 3 removed, 4 updated.
        kind: u8,
        window: i32,
        is_of_a_rank: bool,
        /// Of a created one: blocks of the device.
        count: u64,
        has_parent: bool,
        parent: u64,
        hashes: Vec<u64>,
        /// Of a stored one: each block's. Of an updated one: the old and the new, or nothing.
        levels: Vec<i32>,
        lengths: Vec<u32>,
        /// Of a stored one: whether a block has an adapter or tokens that are more than tokens.
        foreign: Vec<bool>,
        tokens: Vec<u32>,
    }

    /// Sums over the steps since they were last asked for, and the last step's blocks.
    #[derive(Debug, Clone, Copy, Default)]
    struct Figures {
        steps: u64,
        paused: u64,
        blocks_used: u64,
    }

    unsafe extern "C++" {
        include!("mainstay-trtllm/src/shim.h");

        type Bridge;

        fn version() -> String;
        fn open(settings: &Settings) -> Result<UniquePtr<Bridge>>;
        fn enqueue(self: &Bridge, ask: &Ask) -> Result<u64>;
        fn cancel(self: &Bridge, request: u64) -> Result<()>;
        fn await_responses(self: &Bridge, timeout_ms: u32) -> Result<Vec<Said>>;
        fn await_events(self: &Bridge, timeout_ms: u32) -> Result<Vec<Told>>;
        fn figures(self: &Bridge) -> Result<Figures>;
        fn can_enqueue(self: &Bridge) -> Result<bool>;
    }
}

pub(crate) use ffi::{Ask, Bridge, Figures, Said, Settings, Span, Told};

// SAFETY: the bridge holds an Executor, which locks for itself, and may be dropped by any thread.
unsafe impl Send for Bridge {}
// SAFETY: its methods only call the Executor's, which are made to be called by several threads: the API's own servers
// enqueue from one and await from another. What else it has does not change after it was made.
unsafe impl Sync for Bridge {}

/// What `trycatch` in shim.h says of an exception that is not a standard one.
const NOT_STANDARD: &str = "\u{1}of no standard type";

/// An exception that ended a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Standard(String),
    #[error("an exception of no standard type")]
    Other,
}

impl From<cxx::Exception> for Fault {
    fn from(exception: cxx::Exception) -> Self {
        match exception.what() {
            NOT_STANDARD => Self::Other,
            words => Self::Standard(words.to_owned()),
        }
    }
}

/// What the library says it is.
pub(crate) fn version() -> String {
    ffi::version()
}

/// An executor of this process, until it is dropped.
pub(crate) struct Executor(cxx::UniquePtr<Bridge>);

impl Executor {
    pub(crate) fn open(settings: &Settings) -> Result<Self, Fault> {
        Ok(Self(ffi::open(settings)?))
    }

    /// Answers with the executor's own number of the request.
    pub(crate) fn enqueue(&self, ask: &Ask) -> Result<u64, Fault> {
        Ok(self.0.enqueue(ask)?)
    }

    pub(crate) fn cancel(&self, native: u64) -> Result<(), Fault> {
        Ok(self.0.cancel(native)?)
    }

    /// Blocks until there are some, or the time is over.
    pub(crate) fn responses(&self, timeout_ms: u32) -> Result<Vec<Said>, Fault> {
        Ok(self.0.await_responses(timeout_ms)?)
    }

    /// Blocks until there are some, or the time is over.
    pub(crate) fn events(&self, timeout_ms: u32) -> Result<Vec<Told>, Fault> {
        Ok(self.0.await_events(timeout_ms)?)
    }

    pub(crate) fn figures(&self) -> Result<Figures, Fault> {
        Ok(self.0.figures()?)
    }

    /// Whether it takes requests: one that has shut down does not.
    pub(crate) fn is_open(&self) -> bool {
        self.0.can_enqueue().unwrap_or(false)
    }
}
