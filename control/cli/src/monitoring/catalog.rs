//! Every metric that a process of this program may serve: the golden list.
//!
//! Names are an interface: dashboards and alerts hang on them. A test compares this list with the code in both
//! directions, and `docs/reference/metrics.md` is printed from it. Labels take values from short closed lists; sessions,
//! requests, tenants and prompts are never one.

/// What a metric counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Only rises, until the process starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

impl Kind {
    /// Its word in Prometheus' text.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    /// One sentence, without a full stop.
    pub(crate) help: &'static str,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, help }
}

/// All of them, by name within each group.
pub(crate) const GROUPS: [(&str, &[Metric]); 5] = [
    ("Every process", &PROCESS),
    ("Gateways", &GATEWAY),
    ("Workers", &WORKER),
    ("Tiers of workers", &TIERS),
    ("Control members", &CONTROL),
];

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Metric> {
    GROUPS.iter().flat_map(|(_, metrics)| metrics.iter())
}

const PROCESS: [Metric; 2] = [
    gauge(
        "mainstay_build_info",
        &["version", "role"],
        "1, with the program's version and what it runs as",
    ),
    counter(
        "mainstay_trace_spans_total",
        &["ended"],
        "Spans of traces that were sent to the collector, or lost because it took none",
    ),
];

const GATEWAY: [Metric; 30] = [
    counter(
        "mainstay_gateway_cached_tokens_total",
        &[],
        "Prompt tokens of answers that an engine found in its cache; over mainstay_gateway_prompt_tokens_total it is the hit rate achieved",
    ),
    counter("mainstay_gateway_completion_tokens_total", &[], "Tokens of answers"),
    counter(
        "mainstay_gateway_errors_total",
        &["status"],
        "Requests answered with an error, by HTTP status",
    ),
    gauge(
        "mainstay_gateway_index_age_ms",
        &[],
        "How old the state behind an answer may be, in milliseconds",
    ),
    counter(
        "mainstay_gateway_index_images_total",
        &[],
        "Whole images of the index that were taken because following was not possible",
    ),
    counter(
        "mainstay_gateway_lease_changes_total",
        &["ended"],
        "Changes of leases for workers: told, refused, late, gone with their worker, or lost for want of room",
    ),
    counter("mainstay_gateway_migrations_total", &[], "Requests that went on at another worker"),
    histogram(
        "mainstay_gateway_output_tokens_per_second",
        &["endpoint"],
        "Tokens a second of each answer, from its request to its last token",
    ),
    counter(
        "mainstay_gateway_pins_total",
        &["outcome"],
        "Pins that requests asked for, by what became of them",
    ),
    counter(
        "mainstay_gateway_placed_blocks_total",
        &["held"],
        "Blocks of placed prompts, by who held them: the chosen worker, only one elsewhere (computed again, or brought in), or nowhere; chosen and elsewhere together are the hit rate available",
    ),
    counter(
        "mainstay_gateway_prefetched_blocks_total",
        &[],
        "Blocks that prefetches brought into engines",
    ),
    counter(
        "mainstay_gateway_prefetches_total",
        &["asked", "ended"],
        "Prefetches of sessions' prefixes, by who asked for them (a predicted return, or a client) and what became of them: brought, held (all of it was there), nothing (nobody had more), called_off (the session was back first), crowded, under_way, unknown, nobody (no worker takes requests), refused or late",
    ),
    histogram(
        "mainstay_gateway_prompt_growth_tokens",
        &[],
        "Tokens by which a turn's prompt is longer than that of the turn before",
    ),
    counter("mainstay_gateway_prompt_tokens_total", &[], "Prompt tokens of answers"),
    counter(
        "mainstay_gateway_queue_refused_total",
        &["reason"],
        "Requests that the router's queue had no room for, by reason",
    ),
    histogram(
        "mainstay_gateway_queue_wait_seconds",
        &[],
        "How long requests waited in the router's queue",
    ),
    gauge("mainstay_gateway_queue_waiting", &[], "Requests in the router's queue"),
    counter(
        "mainstay_gateway_quota_refusals_total",
        &[],
        "Requests refused because a tenant's quota was used up",
    ),
    counter("mainstay_gateway_requests_total", &["endpoint"], "Requests, by endpoint"),
    counter(
        "mainstay_gateway_responses_stored_total",
        &["outcome"],
        "Stored responses: in the log, or local to this gateway because the log could not take them",
    ),
    counter(
        "mainstay_gateway_session_changes_lost_total",
        &[],
        "Changes of sessions that nobody was told because the queue was full",
    ),
    counter(
        "mainstay_gateway_session_changes_total",
        &["change", "why"],
        "Changes of sessions: started, paused, rested, resumed, compacted, forked, ended and why",
    ),
    gauge("mainstay_gateway_sessions", &["state"], "Sessions known to this gateway, by state"),
    counter(
        "mainstay_gateway_speculative_prefills_total",
        &["ended"],
        "Next turns that were to be computed ahead, by what became of them: computed, nothing (all of it was there), diverged (the next prompt begins otherwise), busy (the worker had others to compute for), crowded, quota, called_off (the turn came first), late or failed",
    ),
    counter(
        "mainstay_gateway_subagent_first_prompt_tokens_total",
        &["found"],
        "Tokens of subagents' first prompts: cached, or computed, which is their cold start",
    ),
    counter(
        "mainstay_gateway_subagent_starts_total",
        &[],
        "Subagents whose first turn was answered",
    ),
    counter(
        "mainstay_gateway_template_differences_total",
        &["model"],
        "Prompts that were rendered anew because the template did not go on from the turn before",
    ),
    histogram(
        "mainstay_gateway_tool_pause_seconds",
        &[],
        "How long sessions were away while tools ran, from an answer with calls to the next turn",
    ),
    histogram(
        "mainstay_gateway_ttft_seconds",
        &["endpoint"],
        "Time to first token of streamed answers",
    ),
    gauge("mainstay_gateway_websockets", &[], "Open connections by WebSocket"),
];

const WORKER: [Metric; 53] = [
    gauge("mainstay_worker_blocks", &["tier"], "Blocks that the worker told of as held, by tier"),
    counter(
        "mainstay_worker_blocks_published_total",
        &[],
        "Blocks named in frames that members took",
    ),
    counter(
        "mainstay_worker_blocks_refused_total",
        &[],
        "Blocks that were not told because the worker's own table was full",
    ),
    counter(
        "mainstay_worker_blocks_removed_total",
        &["tier", "cause"],
        "Blocks that left a tier, by cause: capacity, expiry, lifecycle, admin, or unsaid by the engine",
    ),
    counter(
        "mainstay_worker_cached_tokens_total",
        &[],
        "Prompt tokens of ended requests that the engine found in its cache",
    ),
    counter(
        "mainstay_worker_engine_accepted_tokens_total",
        &[],
        "Of the guessed tokens those that were right",
    ),
    histogram(
        "mainstay_worker_engine_age_at_eviction_seconds",
        &["cause"],
        "How long blocks that left the engine's cache had been without a use, by why they went; absent where an engine does not keep it",
    ),
    histogram(
        "mainstay_worker_engine_age_at_hit_seconds",
        &[],
        "How long blocks that a request found in the engine's cache had been without a use; absent where an engine does not keep it",
    ),
    gauge("mainstay_worker_engine_blocks_cached", &[], "Blocks that the engine keeps for later"),
    gauge("mainstay_worker_engine_blocks_capacity", &[], "Blocks of the engine's cache"),
    gauge("mainstay_worker_engine_blocks_pinned", &[], "Blocks that pins protect in the engine"),
    gauge("mainstay_worker_engine_blocks_used", &[], "Blocks that running requests use"),
    counter(
        "mainstay_worker_engine_decode_tokens_total",
        &[],
        "Tokens that the engine generated, as it counts them",
    ),
    counter(
        "mainstay_worker_engine_draft_tokens_total",
        &[],
        "Tokens of answers that the engine guessed and computed beside known ones",
    ),
    counter(
        "mainstay_worker_engine_evictions_total",
        &[],
        "Blocks that the engine evicted for want of room, as it counts them",
    ),
    counter(
        "mainstay_worker_engine_gaps_total",
        &[],
        "Times the engine's events had a gap and everything was asked of it anew",
    ),
    counter(
        "mainstay_worker_engine_preemptions_total",
        &[],
        "Running requests that the engine put back for want of blocks",
    ),
    counter(
        "mainstay_worker_engine_prefill_tokens_total",
        &[],
        "Prompt tokens that the engine computed",
    ),
    counter(
        "mainstay_worker_engine_restarts_total",
        &[],
        "Attempts to open the engine again after it ended",
    ),
    gauge("mainstay_worker_engine_running", &[], "Requests that the engine works on"),
    gauge("mainstay_worker_engine_waiting", &[], "Requests that wait in the engine"),
    gauge("mainstay_worker_epoch", &[], "The worker's epoch"),
    counter(
        "mainstay_worker_frames_published_total",
        &[],
        "Frames of block events that members took",
    ),
    counter(
        "mainstay_worker_gaps_total",
        &[],
        "Times a member lacked frames that were sent before",
    ),
    counter("mainstay_worker_generated_tokens_total", &[], "Tokens of ended requests"),
    counter(
        "mainstay_worker_lease_changes_total",
        &["ended"],
        "Changes of leases: taken or refused by the engine",
    ),
    counter(
        "mainstay_worker_loaded_blocks_total",
        &["from"],
        "Blocks that were brought in before a request started, by where from",
    ),
    counter(
        "mainstay_worker_loads_joined_total",
        &[],
        "Requests that waited for a load of another one",
    ),
    counter(
        "mainstay_worker_loads_total",
        &["ended", "from"],
        "Loads of blocks, by where from and what ended them",
    ),
    gauge("mainstay_worker_members_fed", &[], "Control members that are sent frames"),
    counter(
        "mainstay_worker_offload_blocks_total",
        &["ended"],
        "Blocks on their way to lower tiers, by what became of them",
    ),
    counter(
        "mainstay_worker_pin_refusals_total",
        &[],
        "Operations on pins that the engine refused",
    ),
    gauge("mainstay_worker_pins_in_force", &[], "Pins that the engine keeps"),
    gauge("mainstay_worker_pins_left_out", &[], "Live pins that the worker has no room to follow"),
    gauge("mainstay_worker_pins_live", &[], "Live pins that the worker follows"),
    counter("mainstay_worker_prompt_tokens_total", &[], "Prompt tokens of ended requests"),
    counter("mainstay_worker_publish_failures_total", &[], "Calls with frames that failed"),
    histogram(
        "mainstay_worker_publish_lag_seconds",
        &[],
        "From an event to a member's answer that took it",
    ),
    histogram(
        "mainstay_worker_queue_seconds",
        &[],
        "How long requests waited in the engine before they ran",
    ),
    counter(
        "mainstay_worker_recomputed_total",
        &["outcome"],
        "Pins established on order of the keeper: loaded, computed or failed",
    ),
    counter(
        "mainstay_worker_registrations_total",
        &[],
        "Registrations; each after the first is a new epoch",
    ),
    gauge("mainstay_worker_requests_in_flight", &[], "Requests in flight"),
    counter("mainstay_worker_requests_refused_total", &[], "Requests that the engine refused"),
    counter(
        "mainstay_worker_requests_total",
        &["finish"],
        "Ended requests: stop, length, cancelled, or the error's name",
    ),
    counter(
        "mainstay_worker_resyncs_total",
        &[],
        "Times the log of frames overflowed and was begun anew",
    ),
    gauge("mainstay_worker_ring_frames", &[], "Frames that are kept for members that lag"),
    counter(
        "mainstay_worker_snapshots_sent_total",
        &[],
        "Snapshots of all blocks sent to members that lacked frames",
    ),
    counter(
        "mainstay_worker_transfer_blocks_total",
        &["direction"],
        "Blocks moved between workers: in or out",
    ),
    counter(
        "mainstay_worker_transfer_bytes_total",
        &["direction"],
        "Bytes of blocks moved between workers: in or out",
    ),
    histogram("mainstay_worker_transfer_seconds", &[], "How long bringing blocks in took"),
    counter(
        "mainstay_worker_transfers_cut_total",
        &[],
        "Exports to other workers that took too long",
    ),
    counter(
        "mainstay_worker_transfers_total",
        &["ended"],
        "Attempts to bring blocks in, by what ended them",
    ),
    counter(
        "mainstay_worker_uploads_total",
        &["ended"],
        "Packs on their way to the store, by what became of them",
    ),
];

const TIERS: [Metric; 23] = [
    histogram(
        "mainstay_tier_age_at_eviction_seconds",
        &["tier"],
        "How long evicted blocks had been in the tier",
    ),
    histogram(
        "mainstay_tier_age_at_hit_seconds",
        &["tier"],
        "How long found blocks had been in the tier",
    ),
    gauge("mainstay_tier_blocks", &["tier"], "Blocks held"),
    gauge("mainstay_tier_bytes", &["tier"], "Bytes of the blocks held"),
    gauge("mainstay_tier_capacity_bytes", &["tier"], "Bytes of blocks that there is room for"),
    counter("mainstay_tier_corrupt_total", &["tier"], "Blocks whose checksum was wrong"),
    counter("mainstay_tier_evicted_total", &["tier"], "Blocks that made room"),
    counter("mainstay_tier_faults_total", &["tier"], "Failed calls to the disk or store"),
    counter("mainstay_tier_forgotten_total", &["tier"], "Blocks whose journal was lost"),
    gauge(
        "mainstay_tier_health",
        &["tier"],
        "Of the disk: 0 good, 1 small, 2 takes nothing for now, 3 failing",
    ),
    counter("mainstay_tier_hits_total", &["tier"], "Blocks found"),
    counter("mainstay_tier_misses_total", &["tier"], "Blocks not found"),
    gauge("mainstay_tier_pinned_blocks", &[], "Blocks in host memory and on disk that pins hold"),
    counter("mainstay_tier_pins_left_out_total", &[], "Blocks of pins beyond half of host memory"),
    counter("mainstay_tier_present_total", &["tier"], "Blocks that were there already"),
    counter("mainstay_tier_quarantined_total", &["tier"], "Places put aside after damage"),
    counter("mainstay_tier_read_bytes_total", &["tier"], "Bytes read"),
    counter("mainstay_tier_recovered_total", &["tier"], "Blocks found again at a start"),
    counter("mainstay_tier_refused_total", &["tier"], "Blocks that were not taken"),
    counter("mainstay_tier_stored_total", &["tier"], "Blocks stored"),
    counter("mainstay_tier_timeouts_total", &["tier"], "Calls that took too long"),
    counter(
        "mainstay_tier_writes_dropped_total",
        &["tier"],
        "Writes that found no room in the queue",
    ),
    counter("mainstay_tier_written_bytes_total", &["tier"], "Bytes written"),
];

const CONTROL: [Metric; 25] = [
    gauge("mainstay_control_applied_index", &[], "Log index of the last entry applied"),
    gauge(
        "mainstay_control_committed_index",
        &[],
        "Log index of the last entry that a quorum is known to have",
    ),
    counter("mainstay_control_cut_sources_total", &[], "Streams named in cuts"),
    counter("mainstay_control_cuts_total", &[], "Cuts that were committed"),
    counter(
        "mainstay_control_divergence_total",
        &[],
        "Times the live state differed from the replayed log; always 0 in health",
    ),
    counter("mainstay_control_entries_applied_total", &[], "Log entries applied"),
    counter(
        "mainstay_control_frame_gaps_total",
        &[],
        "Frames that could not be applied because one before them was missing",
    ),
    counter("mainstay_control_frames_applied_total", &[], "Frames of block events applied"),
    histogram("mainstay_control_fsync_seconds", &[], "How long making the log durable took"),
    counter(
        "mainstay_control_fsync_waiters_total",
        &[],
        "Writers that waited for an fsync; over mainstay_control_fsyncs_total it is how many share one",
    ),
    counter("mainstay_control_fsyncs_total", &[], "Times the log was made durable"),
    gauge(
        "mainstay_control_index_drift",
        &[],
        "How often a stream was found to differ from its worker or a cut; always 0 in health",
    ),
    counter(
        "mainstay_control_index_snapshot_parts_total",
        &[],
        "Parts of workers' snapshots taken",
    ),
    gauge("mainstay_control_index_streams_behind", &[], "Streams that were behind the last cut"),
    gauge("mainstay_control_last_log_index", &[], "Log index of the last entry in the log"),
    gauge("mainstay_control_leader", &[], "1 at the member that leads, else 0"),
    counter(
        "mainstay_control_leases_expired_total",
        &[],
        "Workers fenced because they were silent for longer than their lease",
    ),
    histogram("mainstay_control_snapshot_build_seconds", &[], "How long building a snapshot took"),
    gauge("mainstay_control_snapshot_bytes", &[], "Size of the last snapshot built"),
    gauge("mainstay_control_snapshot_index", &[], "Log index that the last snapshot covers"),
    counter("mainstay_control_snapshots_installed_total", &[], "Snapshots taken from a leader"),
    gauge("mainstay_control_term", &[], "The Raft term"),
    counter(
        "mainstay_control_watchers_lagged_total",
        &[],
        "Watchers that fell behind and were sent an image",
    ),
    counter(
        "mainstay_keeper_orders_total",
        &["outcome"],
        "Orders of the keeper to compute a pin again, by outcome; at the member that leads",
    ),
    histogram(
        "mainstay_keeper_degraded_seconds",
        &[],
        "How long pins were degraded until they were whole again; at the member that leads",
    ),
];
