/* SPDX-License-Identifier: Apache-2.0
 *
 * What all parts of tally.c stand on: its types, the checks of what a caller passes in, the queues of its lanes.
 *
 * One translation unit includes it once; nothing in it may be called without the engine's lock except the checks,
 * which look at the caller's memory and at the configuration alone.
 */
#ifndef TALLY_BASE_H
#define TALLY_BASE_H
#include "mainstay_engine.h"
#include "faults.h"
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define VOCAB 4096u
#define EOS 0u
#define NONE UINT32_MAX
#define LANES 3
#define PRIORITY_DEFAULT 35
#define PRIORITY_UNSET 255
#define PREFILL_TOKENS 512u      /* of one step: long prompts must not hold up those that decode */
#define HASH_TOKENS 2048u        /* of one step, among prompts to admit; no smaller than a block */
#define OUT_ITEMS_SOFT 1024u     /* queued outputs from which on nothing is stepped */
#define OPS_MAX 1024u            /* operations begun whose end was not polled yet */
#define PINS_MAX 1024u
#define PIN_EVENTS_KEPT 64u      /* ends of pins that outlive an overflow */
#define KV_EVENT_BLOCKS_MAX 4096u
#define BATCH_ENTRIES_SOFT (1u << 18)
#define RETRY_MS 20u
#define LN_2 0.69314718f
#define FAULT_EVERY 3u           /* how often a fault that happens now and then does */

typedef struct node {
  struct node *next;
  union { mse_out out; mse_kv kv; mse_op op; } item;
  uint32_t token;
  const char *msg;
  mse_logprob *logprobs;
  mse_u128 *blocks;
  uint32_t blocks_room;
} node;

typedef struct lane {
  node *first, *last;
  uint64_t len, weight, epoch, first_seq, polls;
  pthread_cond_t filled;
} lane;

typedef struct block {
  mse_u128 hash, namespace_id;
  uint64_t state;                   /* the mix after its last token: what a real block's keys and values are */
  uint64_t last_use, used_ms, timed_until_ms;
  uint32_t parent, refs, children, pins, next_same, prev, next, mark;
  uint8_t endless, timed;           /* the highest priority asked for without and with a duration */
  uint8_t leased, left;             /* the highest claim of a lease, and what ended ones left behind */
  uint8_t listed, is_stored, has_lapsed, has_ended, is_phantom;
} block;

typedef struct request {
  struct request *next;
  uint64_t id, state, seed, submitted_us, admitted_us, ordinal;
  mse_u128 namespace_id;
  mse_sampling sampling;
  uint32_t *tokens, *stop_tokens, *table;
  mse_u128 *hashes;
  mse_range *ranges;
  uint64_t ranges_len;
  mse_u128 *leases;
  uint32_t leases_len;
  uint32_t prompt_len, len, hashed, computed, stored, table_len, cached, drawn, sampled_before, cancels;
  int32_t priority;
  uint8_t is_running, was_admitted, said_first;
} request;

typedef struct lease_claim {
  struct lease_claim *next;
  const struct lease *lease;
  mse_u128 hash;
  uint64_t until_ms;
  uint8_t kind, priority, after;
} lease_claim;
typedef struct lease { struct lease *next; mse_u128 namespace_id, id; uint64_t len; lease_claim *claims; } lease;

typedef struct claim { struct claim *next; struct pin *pin; mse_u128 hash; } claim;
typedef struct pin { struct pin *next; mse_u128 id; uint64_t until_ms, len; claim *claims; } pin;

typedef enum op_kind { OP_SNAPSHOT, OP_PIN, OP_UNPIN } op_kind;
typedef struct op {
  struct op *next;
  op_kind kind;
  uint64_t id, until_ms, blocks_len;
  mse_u128 pin_id, blocks[];
} op;

struct mse_engine {
  pthread_mutex_t lock;
  pthread_cond_t work, idle;
  pthread_t thread;
  config config;
  int stopping, draining, leaked_fd;
  lane lanes[LANES];
  request *requests;                /* in order of service */
  uint32_t live, running, running_max;
  uint64_t ordinal, unseeded, ended, tokens_drawn, ops_ended, stores;
  uint64_t cancelled_ids[64];
  op *ops, **ops_last;
  uint64_t ops_open, kv_weight_max;
  block *blocks;
  uint32_t *free_blocks, free_len, *buckets, bucket_mask, *path;
  uint32_t leaf_first[101], leaf_last[101], busy, cached, pinned, marks;
  uint64_t uses, lapse_ms;
  pin *pins;
  claim **claims;
  uint32_t pins_len;
  lease *leases;                    /* the one that was taken longest ago first */
  lease_claim **lease_claims;
  uint32_t leases_len;
  uint64_t claimed;
  mse_stats counters;
};

/* ---- small things ---- */

static const char out_of_memory[] = "out of memory";
static _Atomic int out_on_error_seen; /* a configuration that can't be read can't name the fault, an earlier one did */

static int is(const mse_engine *e, fault f) { return e && e->config.fault == f; }

static void *must(void *memory) {
  if (!memory) abort();
  return memory;
}

/* The powers of two of the header: 0 ms, 1 ms, 2 and 3 ms, and so on. */
static void note_age(mse_engine *e, mse_ages *ages, uint64_t used_ms, uint64_t now_ms) {
  uint64_t age = now_ms > used_ms ? now_ms - used_ms : 0;
  uint32_t power = 0;
  if (is(e, FAULT_ages_us)) age *= 1000;
  for (uint64_t rest = age; rest && power < MSE_AGE_POWERS - 1; rest /= 2) power++;
  ages->by_power[power]++;
  ages->sum_ms += age;
}

static mse_str text(const char *s) { return (mse_str){s, strlen(s)}; }

static int same(mse_u128 a, mse_u128 b) { return a.lo == b.lo && a.hi == b.hi; }

static uint64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static uint64_t sum(uint64_t a, uint64_t b) { return a + b < a ? UINT64_MAX : a + b; }

static mse_rc fail_soon(mse_err *err, mse_rc rc, uint32_t retry_after_ms, const char *message) {
  size_t fixed = offsetof(mse_err, msg);
  if (!err || (uintptr_t)err % _Alignof(mse_err) || err->size < fixed || err->size > MSE_STRUCT_BYTES_MAX) return rc;
  size_t room = err->size - fixed, len = strlen(message); /* all messages are ASCII and may be cut anywhere */
  err->rc = rc;
  err->retry_after_ms = retry_after_ms;
  err->flags = 0;
  err->msg_len = (uint32_t)(len < room ? len : room);
  memcpy((char *)err + fixed, message, err->msg_len);
  return rc;
}

static mse_rc fail(mse_err *err, mse_rc rc, const char *message) { return fail_soon(err, rc, 0, message); }

static uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

static uint64_t mix_token(uint64_t state, uint32_t token) { return mix(state + 0x9e3779b97f4a7c15u * (token + 1ull)); }

static mse_u128 hash_block(mse_u128 parent, const uint32_t *tokens, uint64_t len) {
  mse_u128 h = {mix(parent.lo ^ 0x7461u), mix(parent.hi ^ 0x6c6c79u)};
  for (uint64_t n = 0; n < len; n++) {
    h.lo = mix_token(h.lo, tokens[n]);
    h.hi = mix_token(h.hi ^ h.lo, tokens[n]);
  }
  return h;
}

/* ---- what comes in (R2) ---- */

static mse_rc check_array(const void *ptr, uint64_t len, uint64_t len_max, size_t align, const char *what,
                          mse_err *err) {
  if (!len) return MSE_OK;
  return len > len_max || !ptr || (uintptr_t)ptr % align ? fail(err, MSE_E_INVALID, what) : MSE_OK;
}

static mse_rc check_header(const mse_engine *e, const void *from, mse_err *err) {
  const mse_hdr *h = from;
  if (!h || (uintptr_t)h % 8) return fail(err, MSE_E_INVALID, "a struct is null or misaligned");
  if (h->size < sizeof *h || h->size > MSE_STRUCT_BYTES_MAX)
    return fail(err, MSE_E_INVALID, "a struct has an impossible size");
  if (h->flags) return fail(err, MSE_E_TOO_NEW, "a struct has unknown flags");
  const mse_ext *ext = h->next;
  for (uint32_t n = 0; ext; ext = ext->next, n++) {
    if (n == MSE_EXT_NODES_MAX) return fail(err, MSE_E_INVALID, "a struct has too many extensions");
    if ((uintptr_t)ext % 8 || ext->size < sizeof *ext || ext->size > MSE_STRUCT_BYTES_MAX)
      return fail(err, MSE_E_INVALID, "an extension is misaligned or of an impossible size");
    if (ext->flags & MSE_EXT_CRITICAL && !is(e, FAULT_ext_blind))
      return fail(err, MSE_E_TOO_NEW, "an unknown critical extension");
  }
  return MSE_OK;
}

/* Copies what both sides know; the rest of `to` is zero, and the rest of `from` has to be. */
static mse_rc read_struct(const mse_engine *e, const void *from, void *to, size_t known, mse_err *err) {
  mse_rc rc = check_header(e, from, err);
  if (rc) return rc;
  size_t size = ((const mse_hdr *)from)->size;
  for (size_t n = known; n < size && !is(e, FAULT_tail_blind); n++)
    if (((const uint8_t *)from)[n]) return fail(err, MSE_E_TOO_NEW, "a struct sets what this engine does not know");
  memset(to, 0, known);
  memcpy(to, from, size < known ? size : known);
  return MSE_OK;
}

static mse_rc write_struct(const mse_engine *e, void *to, const void *from, size_t known, mse_err *err) {
  mse_rc rc = check_header(e, to, err);
  if (rc) return rc;
  size_t size = is(e, FAULT_size_blind) ? known : ((mse_hdr *)to)->size;
  if (size > known) size = known;
  memcpy((uint8_t *)to + sizeof(mse_hdr), (const uint8_t *)from + sizeof(mse_hdr), size - sizeof(mse_hdr));
  return MSE_OK;
}

/* ---- lanes ---- */

static void append(mse_engine *e, uint32_t which, node *n) {
  lane *l = &e->lanes[which];
  n->next = NULL;
  if (l->last) l->last->next = n; else l->first = n;
  l->last = n;
  l->len++;
  pthread_cond_signal(&l->filled);
}

static void free_node(node *n) {
  free(n->logprobs);
  free(n->blocks);
  free(n);
}

static void end_op(mse_engine *e, uint64_t op_id, mse_rc rc, uint32_t done) {
  if (is(e, FAULT_lost_op) && ++e->ops_ended % FAULT_EVERY == 0) return;
  node *n = must(calloc(1, sizeof *n));
  n->item.op = (mse_op){op_id, rc, done};
  append(e, MSE_LANE_OP, n);
}
#endif
