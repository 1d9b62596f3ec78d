//! Named limits of everything a client or a model can make large.
//!
//! They bound memory and time per request, not what is sensible to send: the largest recorded
//! harness bodies stay one to two orders of magnitude below each of them. Past a limit a parser
//! answers with a typed error that names it; hints past a limit are dropped with a warning.

/// Longest request body in bytes. Anthropic's own limit is 32 MB, so clients rely on that much.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// Most messages (or Responses input items) in one request.
pub const MESSAGES_MAX: usize = 20_000;
/// Most content blocks in one message, tool result or system prompt.
pub const BLOCKS_MAX: usize = 10_000;
/// Most tools in one request, after namespaces are flattened.
pub const TOOLS_MAX: usize = 2_048;
/// Longest grammar of a custom tool, in bytes.
pub const GRAMMAR_BYTES_MAX: usize = 256 << 10;
/// Most answers to one Chat request.
pub const CHOICES_MAX: u32 = 8;
/// Longest word of `reasoning` that is repeated, in bytes.
pub const REASONING_WORD_BYTES_MAX: usize = 64;
/// Most edits of one request's context.
pub const EDITS_MAX: usize = 16;
/// Longest tool name in bytes.
pub const TOOL_NAME_BYTES_MAX: usize = 256;
/// Longest model name in bytes.
pub const MODEL_BYTES_MAX: usize = 256;
/// Most stop strings in one request.
pub const STOP_STRINGS_MAX: usize = 16;
/// Longest stop string in bytes; also bounds how much text is held back while matching.
pub const STOP_STRING_BYTES_MAX: usize = 1_024;
/// Most alternatives reported per token.
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Most cache breakpoints honoured; past it the earliest of the messages are dropped.
pub const BREAKPOINTS_MAX: usize = 8;
/// Longest identifier (session, agent, call, cache key) that is taken over, in bytes.
pub const ID_BYTES_MAX: usize = 256;
/// Most warnings kept for one request.
pub const WARNINGS_MAX: usize = 32;
/// Most different things told of one request in the header `mainstay-hints`.
pub const TOLD_MAX: usize = 16;
/// Most annotations in `nvext` that are read.
pub const ANNOTATIONS_MAX: usize = 32;
/// Most actions of a KV-hints envelope that are read.
pub const KV_ACTIONS_MAX: usize = 16;
/// Longest name of a program that is kept, in bytes.
pub const CLIENT_BYTES_MAX: usize = 64;
/// Longest header value that is parsed as JSON, in bytes.
pub const HEADER_JSON_BYTES_MAX: usize = 16 << 10;
/// Most `metadata` members echoed in a Responses body.
pub const METADATA_MEMBERS_MAX: usize = 16;
/// Most output-token budget that can be asked for.
pub const OUTPUT_TOKENS_MAX: u32 = 16 << 20;

/// Most sessions of one tenant that are followed; past it the one that was silent for longest is let go.
pub const SESSIONS_PER_TENANT_MAX: usize = 4_096;
/// Most sessions of all tenants; past it the tenant that has most lets one go.
pub const SESSIONS_MAX: usize = 32_768;
/// Silence after which a session counts as ended.
pub const SESSION_IDLE_MS: u64 = 60 * 60 * 1_000;
/// How long an ended session is still told of.
pub const SESSION_ENDED_KEPT_MS: u64 = 10 * 60 * 1_000;
/// Most tools that a paused session is said to wait for.
pub const PAUSED_TOOLS_MAX: usize = 8;
/// Most subagents that a parent's results are searched for.
pub const CHILDREN_SEARCHED_MAX: usize = 64;
/// Most text of a parent's results that is searched for its subagents' ids, in bytes.
pub const RESULTS_SEARCHED_BYTES_MAX: usize = 64 << 10;
/// Most sessions that end or are forgotten in one look at the clock.
pub const SESSIONS_TICKED_MAX: usize = 1_024;

/// Time to live of a cache breakpoint that names none: Anthropic's five minutes.
pub const TTL_DEFAULT_MS: u64 = 5 * 60 * 1_000;
/// Shortest time to live; shorter ones are clipped up with a warning.
pub const TTL_MS_MIN: u64 = 1_000;
/// Longest time to live; longer ones are clipped down with a warning.
pub const TTL_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// Most instructions one rendering of a chat template may execute, so that none loops for ever.
pub const TEMPLATE_STEPS_MAX: u64 = 20_000_000;
/// Longest prompt text a chat template may produce, in bytes.
pub const PROMPT_BYTES_MAX: usize = 256 << 20;
/// Longest chat template source, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// Longest tool call the output parser buffers, in bytes; a longer one comes out as text.
pub const TOOL_CALL_BYTES_MAX: usize = 4 << 20;
/// Most newlines held back while waiting to see whether markup follows.
pub const HELD_NEWLINES_MAX: usize = 64;
/// Most tool calls in one answer; further ones come out as text.
pub const TOOL_CALLS_MAX: u32 = 256;
/// Most parameters of one call in a family that writes them one by one, and most items of a list there.
pub const TOOL_PARAMETERS_MAX: usize = 4_096;
/// Longest header of a message on a channel, in bytes; a longer one is text.
pub const CHANNEL_HEADER_BYTES_MAX: usize = 512;
/// Largest schema or grammar that an answer can be held to, in bytes, the tools' schemas together.
pub const FORM_BYTES_MAX: usize = 512 << 10;
/// Deepest nesting of a schema.
pub const SCHEMA_DEPTH_MAX: usize = 48;
/// Most values in a schema, inner ones included.
pub const SCHEMA_NODES_MAX: usize = 50_000;
