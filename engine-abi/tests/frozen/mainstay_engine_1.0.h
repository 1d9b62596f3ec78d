/* SPDX-License-Identifier: Apache-2.0
 *
 * mainstay_engine.h: the C ABI between Mainstay's worker (the host) and an engine.
 *
 * This file is the normative artefact. The Rust mirror in engine-abi/src/raw.rs is checked against it.
 * ABI 1.0. What is here stays: engine-abi/tests/frozen holds each published minor, and a test holds this file to them.
 *
 * Rules
 *  R1 Versions. The major numbers must be equal, and the engine's min_host_minor no larger than the host's minor.
 *     Within a major, structs that begin with mse_hdr, the vtable among them, only grow at the end; all others, which lie
 *     in arrays or in other structs, stay as they are. Constants keep their values and functions their types; new
 *     meanings get new bits, new values or new extension nodes. Whatever its minor, an engine says the layout number of
 *     the header it was built with; where the host knows that minor, the number must be the one it knows. The side of the
 *     later minor gives the other no more than that one's minor has: no set bit, slot or field that it can't know.
 *  R2 Growth. Every struct passed by pointer starts with mse_hdr. `size` is the size its writer knows. A reader
 *     that knows less refuses non-zero bytes beyond what it knows (MSE_E_TOO_NEW), as it refuses an unknown
 *     extension node flagged MSE_EXT_CRITICAL; it ignores unknown nodes without the flag. A reader that knows
 *     more takes the missing tail as zero. mse_hdr.flags, `_reserved` fields and unknown bits of other flags are
 *     zero, and refused otherwise. A struct marked `out` is the caller's: the caller writes the header and zeroes
 *     the rest, the engine fills at most `size` bytes and leaves the header alone.
 *  R3 Errors. An int32 code, 0 or negative, and text in the caller's own mse_err. Outputs are untouched on error.
 *  R4 Memory. Inputs are borrowed for the call. A batch belongs to the engine until batch_release. Nothing is
 *     ever allocated on one side and freed on the other. Only `bytes` of mse_export and mse_import is lent for
 *     longer: until the op has ended, or the engine is destroyed. Strings are pointer and length, UTF-8, no terminator.
 *     mse_host's ctx and log stay valid until the process exits, so an engine may copy them in create.
 *  R5 No unwinding, longjmp or C++ exception crosses, in either direction. The host is never called back,
 *     except through mse_host.log.
 *  R6 Threads. [any] callable from any thread, never blocks longer than 50 us. [one:lane] one thread at a time
 *     per lane. [ctl] serialised by the host, may block up to its timeout. destroy is the last call: the host has
 *     released every batch and no other call runs.
 *  R7 Unloading. Never: a host opens an engine with RTLD_NOW|RTLD_LOCAL|RTLD_NODELETE and keeps it until exit.
 *  R8 Loss. Lane OUT never drops: the engine holds decoding back instead. Lane KV may overflow: then the epoch
 *     rises by one and its first item is MSE_KV_RESET. Lane OP never drops.
 *  R9 One final. Each accepted request ends in exactly one output with MSE_OUT_FINAL, whatever happens to it.
 */
#ifndef MAINSTAY_ENGINE_H
#define MAINSTAY_ENGINE_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define MSE_ABI_MAJOR 1u
#define MSE_ABI_MINOR 0u
#define MSE_MAGIC "MAINSTAY" /* 8 bytes, no terminator */
/* The layout number of this very header: FNV-1a over the names, sizes and offsets of all structs and fields. */
#define MSE_LAYOUT 0xf3ef1d4a4a894c1cull

typedef int32_t mse_rc; /* 0, or minus the gRPC code, or one of the codes below -99 */
#define MSE_OK 0
#define MSE_E_INVALID (-3)      /* the caller's arguments are wrong */
#define MSE_E_NOT_FOUND (-5)
#define MSE_E_EXISTS (-6)       /* that request id is live already */
#define MSE_E_EXHAUSTED (-8)    /* queue, cache or pin budget full; see retry_after_ms */
#define MSE_E_PRECONDITION (-9)
#define MSE_E_UNIMPLEMENTED (-12)
#define MSE_E_INTERNAL (-13)
#define MSE_E_UNAVAILABLE (-14) /* draining or dead */
#define MSE_E_TOO_NEW (-100)    /* R2: something critical is unknown to this side */

/* Limits: beyond them a call is refused with MSE_E_INVALID, and an engine is taken for broken. */
#define MSE_REQUEST_TOKENS_MAX (1u << 22)
#define MSE_RANGES_MAX 1024u
#define MSE_LEASES_MAX 16u                /* of one request */
#define MSE_STOP_TOKENS_MAX 1024u
#define MSE_LOGPROBS_MAX 129u             /* of mse_sampling.logprobs */
#define MSE_GUIDED_BYTES_MAX (1u << 20)   /* of mse_guided.spec */
#define MSE_PIN_BLOCKS_MAX (1u << 18)
#define MSE_TRANSFER_BLOCKS_MAX (1u << 12) /* of one export or import */
#define MSE_TRANSFER_BYTES_MAX (1u << 26)
#define MSE_CONFIG_BYTES_MAX (1u << 20)
#define MSE_STRING_BYTES_MAX (1u << 16)   /* any other string */
#define MSE_BATCH_ITEMS_MAX (1u << 16)
#define MSE_BATCH_ENTRIES_MAX (1u << 22)  /* of each of a batch's arrays */
#define MSE_STRUCT_BYTES_MAX 4096u        /* a struct passed by pointer, an item of a batch */
#define MSE_EXT_NODES_MAX 64u

typedef struct mse_ext {
  uint32_t size, type;
  uint32_t flags; /* MSE_EXT_CRITICAL */
  uint32_t _reserved;
  const struct mse_ext *next;
} mse_ext;
#define MSE_EXT_CRITICAL 1u

typedef struct mse_hdr { uint32_t size; uint32_t flags; const mse_ext *next; } mse_hdr;
typedef struct mse_str { const char *ptr; uint64_t len; } mse_str;   /* ptr may be NULL when len is 0 */
typedef struct mse_u128 { uint64_t lo, hi; } mse_u128;
typedef struct mse_engine mse_engine;                                /* one engine instance, opaque */

#define MSE_ERR_FATAL 1u
typedef struct mse_err { uint32_t size; mse_rc rc; uint32_t retry_after_ms; uint32_t flags; uint32_t msg_len; char msg[236]; } mse_err;

/* Pure data, readable before anything else, without side effects. */
typedef struct mse_magic {
  char magic[8];
  uint32_t size, abi_major, abi_minor, min_host_minor;
  uint32_t pointer_bits, little_endian;
  uint64_t layout;                        /* MSE_LAYOUT of the header that the engine was built with */
  mse_str vendor, name, version;          /* live as long as the library */
} mse_magic;

typedef struct mse_host {
  mse_hdr h;
  uint32_t abi_major, abi_minor;
  void *ctx;
  void (*log)(void *ctx, uint32_t level /* 1 error .. 5 trace */, mse_str target, mse_str msg); /* [any] */
} mse_host;

/* Capabilities: a vtable slot is non-NULL exactly when its bit is set. */
#define MSE_CAP_NAMESPACE (1ull << 0)     /* requests of unequal namespaces never share a block; required by the host */
#define MSE_CAP_KV_EVENTS (1ull << 1)
#define MSE_CAP_KV_SNAPSHOT (1ull << 2)
#define MSE_CAP_PIN (1ull << 3)
#define MSE_CAP_PRIORITY (1ull << 4)
#define MSE_CAP_RETENTION (1ull << 5)     /* honours mse_range */
#define MSE_CAP_LOGPROBS (1ull << 6)
#define MSE_CAP_CANONICAL_HASH (1ull << 7) /* events carry Mainstay's own keyed sequence hash */
#define MSE_CAP_GUIDED (1ull << 8)        /* honours mse_guided */
#define MSE_CAP_TRANSFER (1ull << 9)      /* kv_export and kv_import; kv_layout is not 0 */
#define MSE_CAP_LEASE (1ull << 10)        /* honours the leases of mse_request, and has `lease` */
#define MSE_CAP_RESUME (1ull << 11)       /* a sampled request with sampled_before goes on with the very tokens that the
                                             engine before would have sampled; without it, only a greedy one does */

typedef struct mse_info {
  mse_hdr h;
  uint64_t caps;
  uint32_t block_tokens, vocab, context_tokens_max, requests_max;
  uint64_t blocks_total, block_bytes;
  mse_str model;        /* name for humans and for /v1/models; lives as long as the engine */
  mse_str model_dir;    /* folder with tokenizer.json and chat template, or empty */
  mse_str device;       /* "cpu", "cuda:0", ... */
  uint64_t kv_layout;   /* engines of equal numbers can read each other's blocks: number type, layers, heads, order,
                           tokens per block. Which weights made them is the namespace's business. */
} mse_info;             /* out */

/* What a stretch is: for figures of what was evicted, and for amendments of leases. */
#define MSE_KIND_PLAIN 0u
#define MSE_KIND_SYSTEM 1u
#define MSE_KIND_TOOLS 2u
#define MSE_KIND_HISTORY 3u
#define MSE_KIND_USER_TURN 4u
#define MSE_KIND_OUTPUT 5u
#define MSE_KIND_REASONING 6u
#define MSE_KIND_SIDE 7u
typedef struct mse_range {
  uint32_t start, end;            /* tokens, end exclusive, UINT32_MAX = to the end */
  uint8_t priority;               /* 0..100 */
  uint8_t after;                  /* the priority once duration_ms is over: 0 = the usual one, n + 1 = n; never above
                                     `priority` */
  uint8_t kind;
  uint8_t lease;                  /* 0 = none, n = the request's n-th lease */
  uint32_t duration_ms;           /* from the request's end; 0 = no limit */
} mse_range;

#define MSE_SAMPLING_SEED 1u       /* `seed` is set */
#define MSE_SAMPLING_IGNORE_EOS 2u
typedef struct mse_sampling {
  mse_hdr h;
  float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  int32_t top_k;                 /* 0 = off */
  uint32_t tokens_max, tokens_min; /* of this engine's own tokens; tokens_max is at least 1 */
  uint32_t logprobs;             /* 0 = none, n + 1 = the chosen token and the n likeliest */
  uint64_t seed;
  uint32_t flags, _reserved;
  const uint32_t *stop_tokens; uint64_t stop_tokens_len;
} mse_sampling;

/* A form that the output must have. The tokens counted by `sampled_before` are the start of that output already.
   A spec that the engine does not understand ends the request with MSE_E_INVALID, before any token. */
#define MSE_GUIDED_JSON_SCHEMA 1u /* spec is a JSON schema */
#define MSE_GUIDED_REGEX 2u       /* spec is a regular expression that the whole output matches */
#define MSE_GUIDED_LARK 3u        /* spec is a grammar in llguidance's form of Lark; <[n]> is the token n */
typedef struct mse_guided {
  mse_hdr h;
  uint32_t kind, _reserved;
  mse_str spec;
} mse_guided;

typedef struct mse_request {
  mse_hdr h;
  uint64_t id;                    /* chosen by the host, unique while live */
  mse_u128 trace;
  mse_u128 namespace_id;          /* parent of the first block's sequence hash */
  const uint32_t *tokens; uint64_t tokens_len;
  uint32_t sampled_before;        /* how many of the last tokens were sampled by an earlier engine: a migrated
                                     request; penalties and the sampling counter go on from there */
  int32_t priority;               /* higher first, 0 neutral */
  const mse_sampling *sampling;
  const mse_range *ranges; uint64_t ranges_len;
  uint32_t expected_output_tokens, _reserved;
  const mse_guided *guided;       /* NULL = free; only for an engine with MSE_CAP_GUIDED */
  const mse_u128 *leases; uint64_t leases_len; /* the names of the leases that ranges are of, unique within the
                                     namespace; only for an engine with MSE_CAP_LEASE. At the request's end each takes
                                     the place of the lease of its name. */
} mse_request;

/* Changes or ends a lease before its time. Leases are claims and no promises: blocks are worth the maximum of the
   claims on them, and the end of one never makes a block worth more. */
#define MSE_LEASE_AMEND 1u        /* ranges say by `kind` what it claims from now on; of other kinds it keeps its claims */
#define MSE_LEASE_RELEASE 2u      /* no claim any more; its blocks are like any others */
#define MSE_LEASE_FINISH 3u       /* its owner will not come back: what nobody else claims goes first */
#define MSE_LEASE_COMPACT 4u      /* the same: a summary has replaced what it named */
typedef struct mse_lease {
  mse_hdr h;
  mse_u128 namespace_id, lease_id;
  uint32_t how, _reserved;
  const mse_range *ranges; uint64_t ranges_len; /* with MSE_LEASE_AMEND: 0 to the end each, duration_ms from now */
} mse_lease;

#define MSE_LANE_OUT 0u
#define MSE_LANE_KV 1u
#define MSE_LANE_OP 2u

#define MSE_OUT_FIRST 1u
#define MSE_OUT_FINAL 2u
#define MSE_FINISH_NONE 0u
#define MSE_FINISH_STOP 1u        /* end-of-sequence or a stop token; that token is in the output */
#define MSE_FINISH_LENGTH 2u
#define MSE_FINISH_CANCELLED 3u
#define MSE_FINISH_ERROR 4u
typedef struct mse_out {
  uint64_t id;
  uint32_t token_off, token_len;          /* into batch.tokens */
  uint32_t logprob_off, logprob_len;      /* into batch.logprobs */
  uint32_t flags, finish;
  mse_rc rc;                              /* not MSE_OK exactly with MSE_FINISH_ERROR */
  uint32_t cached_tokens;                 /* valid with FIRST and FINAL */
  uint32_t msg_off, msg_len;              /* into batch.bytes, with an error */
  uint64_t queue_us, prefill_us;          /* valid with FIRST */
} mse_out;
typedef struct mse_logprob { uint32_t token; float logprob; uint32_t position; /* index in this output */ uint32_t rank; /* 0 = the chosen token */ } mse_logprob;

#define MSE_KV_STORED 1u
#define MSE_KV_REMOVED 2u
#define MSE_KV_RESET 3u           /* the engine holds nothing from here on; stored items follow */
#define MSE_KV_PIN_EXPIRED 4u
#define MSE_TIER_DEVICE 0u
#define MSE_TIER_HOST 1u
#define MSE_TIER_DISK 2u
#define MSE_TIER_REMOTE 3u
#define MSE_CAUSE_NONE 0u
#define MSE_CAUSE_CAPACITY 1u
#define MSE_CAUSE_EXPIRY 2u
#define MSE_CAUSE_LIFECYCLE 3u
#define MSE_CAUSE_ADMIN 4u
typedef struct mse_kv {
  uint32_t type, tier, cause, flags; /* flags: MSE_KV_SNAPSHOT */
  uint32_t block_off, block_len;     /* into batch.blocks */
  mse_u128 parent;                   /* sequence hash of the block before the first, or the namespace id;
                                        of MSE_KV_PIN_EXPIRED: the pin's id */
  mse_u128 namespace_id;
} mse_kv;
#define MSE_KV_SNAPSHOT 1u
typedef struct mse_op { uint64_t op_id; mse_rc rc; uint32_t done; } mse_op;

typedef struct mse_batch {
  mse_hdr h;
  uint32_t lane, len;
  uint64_t epoch, first_seq;         /* sequence number of item 0, +1 each, from 0 in every epoch; a batch is of one
                                        epoch; only lane KV ever leaves epoch 0 */
  const void *items; uint32_t stride, _reserved; /* mse_out, mse_kv or mse_op; `stride` bytes apart */
  const uint32_t *tokens; uint64_t tokens_len;
  const mse_logprob *logprobs; uint64_t logprobs_len;
  const mse_u128 *blocks; uint64_t blocks_len;
  const uint8_t *bytes; uint64_t bytes_len;
  void *opaque;
} mse_batch;                         /* out; views live until batch_release */

/* A pin is a lease: the engine keeps these blocks, those it holds and those it will come to hold. */
typedef struct mse_pin {
  mse_hdr h;
  uint64_t op_id;
  mse_u128 pin_id;
  const mse_u128 *blocks; uint64_t blocks_len;
  uint64_t ttl_ms;                   /* from now, by the engine's monotonic clock; not 0 */
  uint32_t priority, _reserved;      /* 0..100 */
} mse_pin;

/* Copies blocks out, first to last; done = how many, up to the first that is not held. */
typedef struct mse_export {
  mse_hdr h;
  uint64_t op_id;
  const mse_u128 *blocks; uint64_t blocks_len; /* one at least */
  uint8_t *bytes; uint64_t bytes_len;  /* blocks_len * info.block_bytes; R4 */
} mse_export;

/* Takes blocks in, as if they had been computed: STORED is told, requests hit them. done = how many of them are held
   now, first to last; fewer where there is no room. An unknown parent ends the op with MSE_E_PRECONDITION. */
typedef struct mse_import {
  mse_hdr h;
  uint64_t op_id;
  mse_u128 namespace_id;
  mse_u128 parent;                     /* of the first block: a block that is held, or the namespace id */
  uint64_t kv_layout;                  /* of the engine that made the bytes; another one's is refused
                                          (MSE_E_PRECONDITION) */
  const mse_u128 *blocks; uint64_t blocks_len; /* one at least; each is the parent of the next. One that
                                          is held behind another parent, or in another namespace, ends the op with
                                          MSE_E_PRECONDITION, and nothing is taken in */
  const uint8_t *bytes; uint64_t bytes_len;    /* blocks_len * info.block_bytes; R4 */
  uint32_t priority, duration_ms;      /* retention, as of mse_range */
} mse_import;

#define MSE_HEALTH_STARTING 0u
#define MSE_HEALTH_OK 1u
#define MSE_HEALTH_DRAINING 2u
#define MSE_HEALTH_FATAL 3u
/* How long blocks had been without a use, counted by powers of two since `create`: by_power[0] are those of 0 ms,
   by_power[n] those of 2^(n-1) ms up to below 2^n, and the last one all that are older. */
#define MSE_AGE_POWERS 40u
typedef struct mse_ages { uint64_t by_power[MSE_AGE_POWERS]; uint64_t sum_ms; /* of all of them */ } mse_ages;
#define MSE_CAUSES 5u             /* MSE_CAUSE_NONE to MSE_CAUSE_ADMIN */
#define MSE_AGES_TOLD 1u          /* the ages below are kept; else all of them are 0 */
typedef struct mse_stats {
  mse_hdr h;
  uint64_t epoch, kv_seq;
  uint32_t running, waiting, health, _reserved;
  uint64_t blocks_used, blocks_cached, blocks_pinned;
  uint64_t hit_tokens, query_tokens; /* of prompts, when they are first admitted */
  uint64_t prefill_tokens;           /* computed of prompts, and again of what a preemption threw away */
  uint64_t decode_tokens;            /* of answers: all that outputs carry */
  uint64_t preemptions, evictions;
  uint64_t waiting_prefill_tokens;
  uint32_t ages, _reserved2;         /* MSE_AGES_TOLD, or 0 of an engine that keeps none */
  mse_ages age_at_hit;               /* of registered blocks that a request found again */
  mse_ages age_at_eviction[MSE_CAUSES]; /* of those that went, by their MSE_CAUSE_*; they add up to `evictions` */
  /* Tokens of answers that were guessed and computed beside a known one, and those of them that were right; the latter
     are among decode_tokens. */
  uint64_t draft_tokens, accepted_tokens;
} mse_stats;                         /* out */

typedef struct mse_vtable {
  mse_hdr h;
  mse_rc (*create)(const mse_host *, mse_str config_json, mse_engine **out, mse_err *);        /* [ctl] */
  void   (*destroy)(mse_engine *);                                                             /* [ctl] joins every thread it made */
  mse_rc (*info)(const mse_engine *, mse_info *, mse_err *);                                   /* [any] */
  mse_rc (*stats)(const mse_engine *, mse_stats *, mse_err *);                                 /* [any] */
  mse_rc (*submit)(mse_engine *, const mse_request *, mse_err *);                              /* [any] */
  mse_rc (*cancel)(mse_engine *, uint64_t id);                                                 /* [any] idempotent; a final output follows */
  mse_rc (*wait)(mse_engine *, uint32_t lane, uint64_t timeout_us);                            /* [one:lane] MSE_OK: something is there; MSE_E_NOT_FOUND: timed out; MSE_E_UNAVAILABLE: closed */
  mse_rc (*poll)(mse_engine *, uint32_t lane, uint32_t items_max, mse_batch *out, mse_err *);  /* [one:lane] out->len is 0 when empty */
  void   (*batch_release)(mse_engine *, mse_batch *);                                          /* [any] */
  mse_rc (*drain)(mse_engine *, uint64_t timeout_us, mse_err *);                               /* [ctl] admits nothing more; cancels what is left at the timeout */
  mse_rc (*kv_snapshot)(mse_engine *, uint64_t op_id, mse_err *);                              /* [any] a RESET under a new epoch, then stored items flagged SNAPSHOT, then the op */
  mse_rc (*pin)(mse_engine *, const mse_pin *, mse_err *);                                     /* [any] done = blocks held now */
  mse_rc (*unpin)(mse_engine *, uint64_t op_id, mse_u128 pin_id, mse_err *);                   /* [any] */
  mse_rc (*kv_export)(mse_engine *, const mse_export *, mse_err *);                            /* [any] an op follows */
  mse_rc (*kv_import)(mse_engine *, const mse_import *, mse_err *);                            /* [any] an op follows */
  mse_rc (*lease)(mse_engine *, const mse_lease *, mse_err *);                                 /* [any] nothing follows; an unknown lease is nothing */
} mse_vtable;

#define MSE_EXPORT __attribute__((visibility("default")))
MSE_EXPORT const mse_magic *mse_magic_v1(void);
MSE_EXPORT mse_rc mse_open_v1(const mse_host *host, const mse_vtable **out, mse_err *err); /* [ctl] */

#ifdef __cplusplus
}
#endif
#endif
