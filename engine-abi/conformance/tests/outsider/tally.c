/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine in plain C as a vendor would write it from the header alone, without a model.
 *
 * It exists so that the conformance kit has an engine to judge that shares no code with the Rust side. Its "model"
 * is a 64-bit mix of all tokens so far, kept per cache block like real keys and values: a wrong hit gives wrong
 * tokens. One thread steps all requests; one mutex guards everything, and each hold of it is short. `fault` in the
 * configuration makes it wrong in one way (faults.h); without one it keeps every rule of the header. An input that
 * breaks a rule is refused, never trusted; when memory for a few bytes runs out the process ends, as it would soon.
 */
#define _GNU_SOURCE /* for the clock of condition variables, whatever -std says */
#include "cache.h"

/* ---- requests ---- */

static void free_request(request *r) {
  free(r->tokens);
  free(r->stop_tokens);
  free(r->table);
  free(r->hashes);
  free(r->ranges);
  free(r->leases);
  free(r);
}

static node *say(mse_engine *e, request *r, uint32_t finish) {
  node *n = must(calloc(1, sizeof *n));
  mse_out *out = &n->item.out;
  out->id = r->id;
  out->finish = finish;
  out->flags = finish == MSE_FINISH_NONE ? 0 : MSE_OUT_FINAL;
  out->cached_tokens = r->cached;
  if (is(e, FAULT_lying_hit) && r->cached) {
    uint64_t more = r->cached + e->config.block_tokens;
    out->cached_tokens = more < r->prompt_len ? (uint32_t)more : r->prompt_len;
  }
  if (!r->said_first) {
    uint64_t now = now_us(), admitted = r->was_admitted ? r->admitted_us : now;
    if (!is(e, FAULT_no_first)) out->flags |= MSE_OUT_FIRST;
    out->queue_us = admitted - r->submitted_us;
    out->prefill_us = now - admitted;
    r->said_first = 1;
  }
  n->token = NONE;
  return n;
}

static void say_again(mse_engine *e, uint64_t id, uint32_t flags, uint32_t finish, uint32_t token) {
  node *n = must(calloc(1, sizeof *n));
  n->item.out = (mse_out){.id = id, .flags = flags, .finish = finish};
  n->token = token;
  append(e, MSE_LANE_OUT, n);
}

/* Takes a request out of the list and ends it with this output. */
static void end_request(mse_engine *e, request *r, node *last, uint64_t now_ms) {
  request **link = &e->requests;
  while (*link != r) link = &(*link)->next;
  *link = r->next;
  e->running -= r->is_running;
  take_leases(e, r, now_ms);
  give_back(e, r, now_ms);
  uint32_t flags = last->item.out.flags & MSE_OUT_FINAL, finish = last->item.out.finish;
  int now_and_then = ++e->ended % FAULT_EVERY == 0;
  if (is(e, FAULT_drop_final) && e->ended % 5 == 0) free_node(last); else append(e, MSE_LANE_OUT, last);
  if (is(e, FAULT_double_final) && now_and_then) say_again(e, r->id, flags, finish, NONE);
  if (is(e, FAULT_late_tokens) && now_and_then) say_again(e, r->id, 0, MSE_FINISH_NONE, 1);
  if (is(e, FAULT_cancel_twice) && finish == MSE_FINISH_CANCELLED) {
    e->cancelled_ids[e->ended % 64] = r->id;
    while (--r->cancels) say_again(e, r->id, flags, finish, NONE);
  }
  free_request(r);
  if (!--e->live) pthread_cond_broadcast(&e->idle);
}

static void fail_request(mse_engine *e, request *r, mse_rc rc, const char *message, uint64_t now_ms) {
  node *n = say(e, r, MSE_FINISH_ERROR);
  n->item.out.rc = rc;
  n->msg = message;
  end_request(e, r, n, now_ms);
}

static void end_cancelled(mse_engine *e, uint64_t now_ms) {
  for (request *r = e->requests, *next; r; r = next) {
    next = r->next;
    if (r->cancels) end_request(e, r, say(e, r, MSE_FINISH_CANCELLED), now_ms);
  }
}

static uint32_t blocks_for(const mse_engine *e, uint64_t tokens) {
  return (uint32_t)((tokens + e->config.block_tokens - 1) / e->config.block_tokens);
}

/* Says whether all full blocks are hashed; a step has a budget, since callers wait for the lock meanwhile. */
static int hash_full_blocks(mse_engine *e, request *r, uint64_t *budget) {
  uint64_t size = e->config.block_tokens;
  for (; (r->hashed + 1) * size <= r->len; r->hashed++, *budget -= size) {
    if (*budget < size) return 0;
    mse_u128 root = is(e, FAULT_shared_namespace) ? (mse_u128){0, 0} : r->namespace_id;
    mse_u128 parent = r->hashed ? r->hashes[r->hashed - 1] : root;
    r->hashes[r->hashed] = hash_block(parent, r->tokens + r->hashed * size, size);
  }
  return 1;
}

/* Room is an estimate that takes every pinned block for idle, so it errs towards waiting while others run. */
static int has_room(mse_engine *e, const request *r, uint32_t hits) {
  uint64_t wanted = blocks_for(e, r->len + 1ull), taken = e->busy + e->pinned;
  if (!e->running) return 1;
  for (uint32_t n = 0; n < hits; n++) {
    const block *b = &e->blocks[lookup(e, r->hashes[n])];
    wanted -= b->refs || b->pins;
  }
  for (const request *o = e->requests; o; o = o->next)
    if (o->is_running) taken += blocks_for(e, o->len) - o->table_len;
  return wanted + taken <= e->config.blocks;
}

static int admit(mse_engine *e, request *r, uint64_t *hash_budget, uint64_t now) {
  if (!hash_full_blocks(e, r, hash_budget)) return 0;
  uint32_t hits = 0, most = (uint32_t)((r->len - 1) / e->config.block_tokens); /* one token at least is computed */
  while (hits < most && lookup_hit(e, r->hashes[hits]) != NONE) hits++;
  if (!has_room(e, r, hits)) return 0;
  for (uint32_t n = 0; n < hits; n++) {
    r->table[n] = lookup(e, r->hashes[n]);
    note_age(e, &e->counters.age_at_hit, e->blocks[r->table[n]].used_ms, now / 1000);
    refer(e, r->table[n]);
  }
  r->table_len = r->stored = hits;
  r->computed = (uint32_t)(hits * e->config.block_tokens);
  r->state = hits ? e->blocks[r->table[hits - 1]].state : 0;
  r->is_running = 1;
  e->running++;
  if (!r->was_admitted) {
    r->was_admitted = 1;
    r->admitted_us = now;
    r->cached = r->computed;
    e->counters.query_tokens += r->prompt_len;
    e->counters.hit_tokens += r->cached;
  }
  return 1;
}

static void preempt(mse_engine *e, request *r, uint64_t now_ms) {
  give_back(e, r, now_ms);
  r->is_running = 0;
  r->computed = 0;
  e->running--;
  e->counters.preemptions++;
}

/* The last in order of service gives way. NULL when that is `r` and nobody else runs. */
static request *victim_for(mse_engine *e, request *r) {
  request *last = NULL;
  for (request *o = e->requests; o; o = o->next)
    if (o->is_running) last = o;
  return last == r && e->running == 1 ? NULL : last;
}

/* Computes up to `most` tokens; 0 when the request lost its place or ended. */
static int compute(mse_engine *e, request *r, uint32_t most, uint64_t now_ms) {
  while (most && r->computed < r->len) {
    if (r->computed / e->config.block_tokens == r->table_len) {
      uint32_t b;
      while ((b = allocate(e)) == NONE) {
        request *victim = victim_for(e, r);
        if (!victim) {
          fail_request(e, r, MSE_E_EXHAUSTED, "pins hold the blocks that this request needs; try again later", now_ms);
          return 0;
        }
        preempt(e, victim, now_ms);
        if (victim == r) return 0;
      }
      r->table[r->table_len++] = b;
    }
    r->state = mix_token(r->state, r->tokens[r->computed++]);
    most--;
    if (r->computed % e->config.block_tokens == 0) store(e, r, r->stored++);
  }
  return 1;
}

/* ---- drawing ---- */

/* The token at a rank: a permutation of the vocabulary that the state chooses. */
static uint32_t token_at(uint64_t state, uint32_t rank) {
  uint64_t m = mix(state ^ 0x746f6b656eu);
  return (uint32_t)(m + rank * ((m >> 31) | 1)) % VOCAB;
}

/* Each rank is half as likely as the one before; a temperature flattens that. */
static uint32_t draw_rank(const mse_engine *e, const request *r, uint64_t state) {
  const mse_sampling *s = &r->sampling;
  double q = (double)s->temperature / (1.0 + (double)s->temperature), tail = q, likelihood = q;
  uint32_t allowed = s->top_k && (uint32_t)s->top_k < VOCAB ? (uint32_t)s->top_k : VOCAB, rank = 0;
  if (q > 0.999) tail = likelihood = q = 0.999;
  uint64_t position = (uint64_t)r->sampled_before + r->drawn, seed = is(e, FAULT_unseeded) ? r->ordinal : r->seed;
  double u = (double)(mix(state ^ mix(seed ^ mix(position + 1))) >> 11) / 9007199254740992.0;
  while (rank + 1 < allowed && u < tail && 1.0 - tail < (double)s->top_p && likelihood >= (double)s->min_p) {
    tail *= q;
    likelihood *= q;
    rank++;
  }
  return rank;
}

static int is_end(const request *r, uint32_t token) {
  if (token == EOS && !(r->sampling.flags & MSE_SAMPLING_IGNORE_EOS)) return 1;
  for (uint64_t n = 0; n < r->sampling.stop_tokens_len; n++)
    if (r->stop_tokens[n] == token) return 1;
  return 0;
}

static void add_logprobs(node *n, const request *r, uint64_t state, uint32_t rank, uint32_t token) {
  uint32_t len = r->sampling.logprobs;
  if (!len) return;
  n->logprobs = must(malloc(len * sizeof *n->logprobs));
  n->logprobs[0] = (mse_logprob){token, -LN_2 * (float)(rank + 1), 0, 0};
  for (uint32_t k = 1; k < len; k++) n->logprobs[k] = (mse_logprob){token_at(state, k - 1), -LN_2 * (float)k, 0, k};
  n->item.out.logprob_len = len;
}

static void draw(mse_engine *e, request *r, uint64_t now_ms) {
  uint64_t state = is(e, FAULT_unstable) && r->cached ? mix(r->state) : r->state;
  uint32_t rank = r->sampling.temperature > 0 ? draw_rank(e, r, state) : 0;
  while (r->drawn < r->sampling.tokens_min && is_end(r, token_at(state, rank))) rank = (rank + 1) % VOCAB;
  uint32_t token = token_at(state, rank), tokens_max = r->sampling.tokens_max, finish = MSE_FINISH_NONE;
  if (is(e, FAULT_bad_token) && ++e->tokens_drawn % 8 == 0) token += VOCAB;
  r->tokens[r->len++] = token;
  if (r->drawn++ || !is(e, FAULT_miscounts)) e->counters.decode_tokens++;
  if (is(e, FAULT_too_many) && tokens_max < UINT32_MAX) tokens_max++;
  if (is_end(r, token)) finish = MSE_FINISH_STOP;
  else if (r->drawn >= tokens_max || r->len >= e->config.context) finish = MSE_FINISH_LENGTH;
  node *n = say(e, r, finish);
  n->token = token;
  add_logprobs(n, r, state, rank, token);
  if (finish == MSE_FINISH_NONE) append(e, MSE_LANE_OUT, n); else end_request(e, r, n, now_ms);
}

static void step(mse_engine *e, uint64_t now) {
  uint32_t budget = PREFILL_TOKENS;
  uint64_t hash_budget = HASH_TOKENS, unlimited = UINT64_MAX;
  for (request *r = e->requests; r && e->running < e->running_max; r = r->next)
    if (!r->is_running && !admit(e, r, &hash_budget, now)) break; /* nobody overtakes, or a long prompt would starve */
  for (request *r = e->requests, *next; r; r = next) {
    next = r->next;
    if (!r->is_running) continue;
    uint32_t left = r->len - r->computed, most = left == 1 ? 1 : left < budget ? left : budget;
    if (left > 1 || !r->drawn) e->counters.prefill_tokens += most;
    if (left > 1) budget -= most;
    hash_full_blocks(e, r, &unlimited); /* one more at most since it was admitted */
    if (compute(e, r, most, now / 1000) && r->computed == r->len) draw(e, r, now / 1000);
  }
}

/* ---- the thread ---- */

static void wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_us) {
  struct timespec until = {(time_t)(until_us / 1000000), (long)(until_us % 1000000 * 1000)};
  if (until_us / 1000000 > 1ull << 40) pthread_cond_wait(cond, lock); else pthread_cond_timedwait(cond, lock, &until);
}

static void *run(void *arg) {
  mse_engine *e = arg;
  uint64_t next_step = 0;
  pthread_mutex_lock(&e->lock);
  while (!e->stopping) {
    uint64_t now = now_us(), until = UINT64_MAX;
    obey(e);
    end_pins(e, now / 1000);
    end_lapsed(e, now / 1000);
    end_cancelled(e, now / 1000);
    if (e->live && e->lanes[MSE_LANE_OUT].len < OUT_ITEMS_SOFT) {
      if (now >= next_step) {
        step(e, now);
        next_step = now + (e->config.step_us ? e->config.step_us : 1); /* callers get the lock in between */
      }
      until = next_step;
    }
    uint64_t ends_ms = next_end_ms(e);
    if (ends_ms < until / 1000) until = ends_ms * 1000;
    if (!e->ops && until > now) wait_until(&e->work, &e->lock, until);
  }
  pthread_mutex_unlock(&e->lock);
  return NULL;
}

/* ---- the vtable ---- */

static void free_engine(mse_engine *e) {
  for (uint32_t n = 0; n < LANES; n++)
    while (e->lanes[n].first) {
      node *next = e->lanes[n].first->next;
      free_node(e->lanes[n].first);
      e->lanes[n].first = next;
    }
  while (e->requests) {
    request *next = e->requests->next;
    free_request(e->requests);
    e->requests = next;
  }
  while (e->ops) {
    op *next = e->ops->next;
    free(e->ops);
    e->ops = next;
  }
  while (e->pins) {
    pin *next = e->pins->next;
    free_pin(e->pins);
    e->pins = next;
  }
  free_leases(e);
  free(e->lease_claims);
  free(e->blocks);
  free(e->free_blocks);
  free(e->buckets);
  free(e->path);
  free(e->claims);
  free(e);
}

static int make_cache(mse_engine *e) {
  uint64_t blocks = e->config.blocks, buckets = 2;
  while (buckets < 2 * blocks) buckets *= 2;
  e->bucket_mask = (uint32_t)(buckets - 1);
  e->blocks = calloc(blocks, sizeof *e->blocks);
  e->free_blocks = malloc(blocks * sizeof *e->free_blocks);
  e->path = malloc(blocks * sizeof *e->path);
  e->buckets = malloc(buckets * sizeof *e->buckets);
  e->claims = calloc(buckets, sizeof(claim *));
  e->lease_claims = calloc(buckets, sizeof(lease_claim *));
  if (!e->blocks || !e->free_blocks || !e->path || !e->buckets || !e->claims || !e->lease_claims) return 0;
  memset(e->buckets, 0xff, buckets * sizeof *e->buckets);
  memset(e->leaf_first, 0xff, sizeof e->leaf_first);
  memset(e->leaf_last, 0xff, sizeof e->leaf_last);
  while (blocks) e->free_blocks[e->free_len++] = (uint32_t)--blocks;
  return 1;
}

static void *idle_for_ever(void *arg) {
  for (;;) pause();
  return arg;
}

static int start(mse_engine *e) {
  pthread_condattr_t monotonic;
  pthread_mutex_init(&e->lock, NULL);
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&e->work, &monotonic);
  pthread_cond_init(&e->idle, &monotonic);
  for (int n = 0; n < LANES; n++) pthread_cond_init(&e->lanes[n].filled, &monotonic);
  pthread_condattr_destroy(&monotonic);
  pthread_t helper;
  if (is(e, FAULT_leak_thread) && !pthread_create(&helper, NULL, idle_for_ever, NULL)) pthread_detach(helper);
  if (is(e, FAULT_leak_fd)) e->leaked_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return !pthread_create(&e->thread, NULL, run, e);
}

static mse_rc create(const mse_host *host, mse_str json, mse_engine **out, mse_err *err) {
  mse_host known;
  config c;
  if (!out || (uintptr_t)out % _Alignof(mse_engine *)) return fail(err, MSE_E_INVALID, "out is null or misaligned");
  mse_rc rc = read_struct(NULL, host, &known, sizeof known, err);
  if (!rc) rc = check_array(json.ptr, json.len, MSE_CONFIG_BYTES_MAX, 1, "the configuration is null or too long", err);
  if (rc) return rc;
  const char *wrong = read_config(json.ptr, json.len, &c);
  if (c.fault == FAULT_out_on_error) out_on_error_seen = 1;
  if (wrong) {
    if (out_on_error_seen) *out = (mse_engine *)&out_on_error_seen;
    return fail(err, MSE_E_INVALID, wrong);
  }
  mse_engine *e = calloc(1, sizeof *e);
  if (!e) return fail(err, MSE_E_EXHAUSTED, out_of_memory);
  e->config = c;
  /* A longer request could never end well. */
  if (c.context > c.blocks * c.block_tokens) e->config.context = c.blocks * c.block_tokens;
  e->running_max = (uint32_t)(c.requests + 3) / 4;
  e->kv_weight_max = 3 * c.blocks + 2 * PIN_EVENTS_KEPT;
  e->lapse_ms = UINT64_MAX;
  e->ops_last = &e->ops;
  if (!make_cache(e) || !start(e)) {
    free_engine(e);
    return fail(err, MSE_E_EXHAUSTED, "no memory or no thread for the engine");
  }
  if (known.log) known.log(known.ctx, 3, text("tally"), text("created"));
  *out = e;
  return MSE_OK;
}

static void destroy(mse_engine *e) {
  if (!e) return;
  while (is(e, FAULT_hang_destroy)) pause();
  pthread_mutex_lock(&e->lock);
  e->stopping = 1;
  pthread_cond_signal(&e->work);
  pthread_mutex_unlock(&e->lock);
  pthread_join(e->thread, NULL);
  if (is(e, FAULT_exit_dirty)) {
    volatile int *volatile nowhere = NULL; /* read at run time, or the compiler drops the whole branch */
    *nowhere = 1;
  }
  for (int n = 0; n < LANES; n++) pthread_cond_destroy(&e->lanes[n].filled);
  pthread_cond_destroy(&e->work);
  pthread_cond_destroy(&e->idle);
  pthread_mutex_destroy(&e->lock);
  free_engine(e);
}

static mse_rc info(const mse_engine *e, mse_info *out, mse_err *err) {
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  mse_info value = {
      .caps = MSE_CAP_NAMESPACE | MSE_CAP_KV_EVENTS | MSE_CAP_KV_SNAPSHOT | MSE_CAP_PIN | MSE_CAP_PRIORITY |
              MSE_CAP_RETENTION | MSE_CAP_LOGPROBS | MSE_CAP_RESUME | MSE_CAP_LEASE,
      .block_tokens = (uint32_t)e->config.block_tokens,
      .vocab = VOCAB,
      .context_tokens_max = (uint32_t)e->config.context,
      .requests_max = e->running_max,
      .blocks_total = is(e, FAULT_over_budget) ? (e->config.blocks + 1) / 2 : e->config.blocks,
      .block_bytes = sizeof(block),
      .model = text("tally"),
      .model_dir = {NULL, 0},
      .device = text("cpu")};
  if (is(e, FAULT_caps_lie) && FAULT_BUILT_IN != FAULT_caps_lie) value.caps &= ~MSE_CAP_KV_SNAPSHOT;
  return write_struct(e, out, &value, sizeof value, err);
}

static mse_rc stats(const mse_engine *engine, mse_stats *out, mse_err *err) {
  mse_engine *e = (mse_engine *)(uintptr_t)engine; /* its lock changes, nothing that a caller could see */
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  pthread_mutex_lock(&e->lock);
  const lane *kv = &e->lanes[MSE_LANE_KV];
  mse_stats value = e->counters;
  value.epoch = kv->epoch;
  value.kv_seq = kv->first_seq + kv->len;
  value.running = e->running;
  value.waiting = e->live - e->running;
  value.ages = MSE_AGES_TOLD;
  value.health = e->draining ? MSE_HEALTH_DRAINING : MSE_HEALTH_OK;
  value.blocks_used = e->busy;
  value.blocks_cached = e->cached;
  value.blocks_pinned = e->pinned;
  for (const request *r = e->requests; r; r = r->next)
    if (r->len - r->computed > 1) value.waiting_prefill_tokens += r->len - r->computed;
  pthread_mutex_unlock(&e->lock);
  return write_struct(e, out, &value, sizeof value, err);
}

static mse_rc check_tokens(const uint32_t *tokens, uint64_t len, mse_err *err) {
  for (uint64_t n = 0; n < len; n++)
    if (tokens[n] >= VOCAB) return fail(err, MSE_E_INVALID, "a token is not below the vocabulary");
  return MSE_OK;
}

/* Comparisons are written so that a NaN fails them. */
static mse_rc check_sampling(const mse_sampling *s, mse_err *err) {
  if (s->_reserved || s->flags & ~(MSE_SAMPLING_SEED | MSE_SAMPLING_IGNORE_EOS))
    return fail(err, MSE_E_TOO_NEW, "mse_sampling has unknown flags");
  int sound = s->temperature >= 0 && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1 &&
              s->repetition_penalty > 0 && s->top_k >= 0;
  int finite = isfinite(s->temperature) && isfinite(s->repetition_penalty) && isfinite(s->frequency_penalty) &&
               isfinite(s->presence_penalty);
  if (!sound || !finite) return fail(err, MSE_E_INVALID, "a value of mse_sampling is out of range");
  if (!s->tokens_max || s->tokens_min > s->tokens_max)
    return fail(err, MSE_E_INVALID, "tokens_min and tokens_max leave nothing to generate");
  if (s->logprobs > MSE_LOGPROBS_MAX) return fail(err, MSE_E_INVALID, "too many logprobs");
  mse_rc rc = check_array(s->stop_tokens, s->stop_tokens_len, MSE_STOP_TOKENS_MAX, 4,
                          "the stop list is null, misaligned or too long", err);
  return rc ? rc : check_tokens(s->stop_tokens, s->stop_tokens_len, err);
}

static mse_rc check_ranges(const mse_engine *e, const mse_range *ranges, uint64_t len, uint64_t leases,
                           mse_err *err) {
  mse_rc rc = check_array(ranges, len, MSE_RANGES_MAX, 4, "the list of ranges is null, misaligned or too long", err);
  for (uint64_t n = 0; !rc && n < len; n++) {
    if (ranges[n].kind > MSE_KIND_SIDE)
      rc = fail(err, MSE_E_TOO_NEW, "mse_range has an unknown kind");
    else if (ranges[n].lease > leases && !is(e, FAULT_lease_range_unchecked))
      rc = fail(err, MSE_E_INVALID, "a range is of a lease that the request does not name");
    else if (ranges[n].after > ranges[n].priority + 1)
      rc = fail(err, MSE_E_INVALID, "a range is worth more after its time");
    else if (ranges[n].start >= ranges[n].end || ranges[n].priority > 100)
      rc = fail(err, MSE_E_INVALID, "a range is empty or its priority above 100");
  }
  return rc;
}

static mse_rc check_guided(const mse_engine *e, const mse_guided *from, mse_err *err) {
  mse_guided g;
  if (!from) return MSE_OK;
  mse_rc rc = read_struct(e, from, &g, sizeof g, err);
  if (rc) return rc;
  if (g._reserved || g.kind < MSE_GUIDED_JSON_SCHEMA || g.kind > MSE_GUIDED_LARK)
    return fail(err, MSE_E_TOO_NEW, "mse_guided has an unknown kind or sets a reserved field");
  return fail(err, MSE_E_UNIMPLEMENTED, "this engine gives its outputs no form");
}

static mse_rc check_request(const mse_engine *e, const mse_request *from, mse_request *r, mse_sampling *s,
                            mse_err *err) {
  mse_rc rc = read_struct(e, from, r, sizeof *r, err);
  if (rc) return rc;
  if (r->_reserved) return fail(err, MSE_E_TOO_NEW, "mse_request sets a reserved field");
  if (!r->tokens_len) return fail(err, MSE_E_INVALID, "the prompt is empty");
  rc = check_array(r->tokens, r->tokens_len, MSE_REQUEST_TOKENS_MAX, 4,
                   "the prompt is null, misaligned or too long", err);
  if (rc) return rc;
  if (r->tokens_len > e->config.context) return fail(err, MSE_E_INVALID, "the prompt is longer than the context");
  if (r->sampled_before > r->tokens_len) return fail(err, MSE_E_INVALID, "sampled_before exceeds the prompt");
  rc = check_tokens(r->tokens, r->tokens_len, err);
  if (!rc) rc = read_struct(e, r->sampling, s, sizeof *s, err);
  if (!rc) rc = check_sampling(s, err);
  if (!rc)
    rc = check_array(r->leases, r->leases_len, MSE_LEASES_MAX, 8,
                     "the list of leases is null, misaligned or too long", err);
  if (!rc) rc = check_ranges(e, r->ranges, r->ranges_len, r->leases_len, err);
  return rc ? rc : check_guided(e, r->guided, err);
}

/* The engine's own copy of everything that the caller only lends; NULL without memory. */
static request *copy_request(const mse_engine *e, const mse_request *from, const mse_sampling *s) {
  uint64_t len = from->tokens_len, room = len + s->tokens_max + 1ull;
  if (room > e->config.context + 2) room = e->config.context + 2;
  uint64_t blocks = blocks_for(e, room);
  request *r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->tokens = malloc(room * sizeof *r->tokens);
  r->table = malloc(blocks * sizeof *r->table);
  r->hashes = malloc(blocks * sizeof *r->hashes);
  r->stop_tokens = malloc((s->stop_tokens_len + 1) * sizeof *r->stop_tokens);
  r->ranges = malloc((from->ranges_len + 1) * sizeof *r->ranges);
  r->leases = malloc((from->leases_len + 1) * sizeof *r->leases);
  if (!r->tokens || !r->table || !r->hashes || !r->stop_tokens || !r->ranges || !r->leases) {
    free_request(r);
    return NULL;
  }
  memcpy(r->tokens, from->tokens, len * sizeof *r->tokens);
  if (s->stop_tokens_len) memcpy(r->stop_tokens, s->stop_tokens, s->stop_tokens_len * sizeof *r->stop_tokens);
  if (from->ranges_len) memcpy(r->ranges, from->ranges, from->ranges_len * sizeof *r->ranges);
  if (from->leases_len) memcpy(r->leases, from->leases, from->leases_len * sizeof *r->leases);
  r->leases_len = (uint32_t)from->leases_len;
  r->id = from->id;
  r->namespace_id = from->namespace_id;
  r->sampling = *s;
  r->ranges_len = from->ranges_len;
  r->prompt_len = r->len = (uint32_t)len;
  r->sampled_before = from->sampled_before;
  r->priority = is(e, FAULT_priority_blind) ? 0 : from->priority;
  r->submitted_us = now_us();
  return r;
}

static mse_rc enter(mse_engine *e, request *r, mse_err *err) {
  request **link = &e->requests;
  if (e->draining && !is(e, FAULT_drain_admits)) return fail(err, MSE_E_UNAVAILABLE, "draining");
  for (const request *o = e->requests; o; o = o->next)
    if (o->id == r->id) return fail(err, MSE_E_EXISTS, "that request id is live already");
  if (e->live >= e->config.requests) return fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, "too many requests are live");
  if (e->lanes[MSE_LANE_OUT].len >= OUT_ITEMS_SOFT)
    return fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, "the host does not keep up with the outputs");
  r->ordinal = ++e->ordinal;
  r->seed = r->sampling.flags & MSE_SAMPLING_SEED ? r->sampling.seed : mix(++e->unseeded);
  while (*link && (*link)->priority >= r->priority) link = &(*link)->next;
  r->next = *link;
  *link = r;
  e->live++;
  pthread_cond_signal(&e->work);
  return MSE_OK;
}

static mse_rc submit(mse_engine *e, const mse_request *from, mse_err *err) {
  mse_request checked;
  mse_sampling sampling;
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  if (is(e, FAULT_slow_any)) nanosleep(&(struct timespec){0, 20000000}, NULL);
  mse_rc rc = check_request(e, from, &checked, &sampling, err);
  if (rc) return rc;
  request *r = copy_request(e, &checked, &sampling);
  if (!r) return fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, out_of_memory);
  pthread_mutex_lock(&e->lock);
  rc = enter(e, r, err);
  pthread_mutex_unlock(&e->lock);
  if (rc) free_request(r);
  return rc;
}

static mse_rc cancel(mse_engine *e, uint64_t id) {
  if (!e) return MSE_E_INVALID;
  if (is(e, FAULT_ignore_cancel)) return MSE_OK;
  pthread_mutex_lock(&e->lock);
  request *r = e->requests;
  while (r && r->id != id) r = r->next;
  if (r) {
    r->cancels = is(e, FAULT_cancel_twice) ? r->cancels + 1 : 1;
    pthread_cond_signal(&e->work);
  }
  for (int n = 0; !r && id && is(e, FAULT_cancel_twice) && n < 64; n++)
    if (e->cancelled_ids[n] == id) {
      e->cancelled_ids[n] = 0;
      say_again(e, id, MSE_OUT_FINAL, MSE_FINISH_CANCELLED, NONE);
    }
  pthread_mutex_unlock(&e->lock);
  return MSE_OK;
}

static mse_rc wait_lane(mse_engine *e, uint32_t which, uint64_t timeout_us) {
  if (!e || which >= LANES) return MSE_E_INVALID;
  uint64_t until = sum(now_us(), timeout_us);
  pthread_mutex_lock(&e->lock);
  while (!e->lanes[which].len && now_us() < until) wait_until(&e->lanes[which].filled, &e->lock, until);
  mse_rc rc = e->lanes[which].len ? MSE_OK : MSE_E_NOT_FOUND;
  pthread_mutex_unlock(&e->lock);
  return rc;
}

typedef struct sizes { uint32_t items; uint64_t tokens, logprobs, blocks, bytes; } sizes;

static sizes measure(const lane *l, uint32_t which, uint32_t items_max) {
  sizes s = {0};
  for (const node *n = l->first; n && s.items < items_max; n = n->next, s.items++) {
    if (s.items && s.tokens + s.logprobs + s.blocks > BATCH_ENTRIES_SOFT) break;
    if (which == MSE_LANE_KV) s.blocks += n->item.kv.block_len;
    if (which != MSE_LANE_OUT) continue;
    s.tokens += n->token != NONE;
    s.logprobs += n->item.out.logprob_len;
    s.bytes += n->msg ? strlen(n->msg) : 0;
  }
  return s;
}

/* Moves a queue's items into the batch's arrays: one piece of memory, items, blocks, logprobs, tokens, bytes. */
static void fill(mse_batch *b, node *list, uint32_t which, const sizes *s) {
  uint8_t *items = b->opaque;
  mse_u128 *blocks = (mse_u128 *)(items + (size_t)s->items * b->stride);
  mse_logprob *logprobs = (mse_logprob *)(blocks + s->blocks);
  uint32_t *tokens = (uint32_t *)(logprobs + s->logprobs);
  uint8_t *bytes = (uint8_t *)(tokens + s->tokens);
  b->items = items;
  b->blocks = blocks;
  b->logprobs = logprobs;
  b->tokens = tokens;
  b->bytes = bytes;
  for (uint32_t n = 0; n < s->items; n++, items += b->stride) {
    node *at = list;
    list = at->next;
    if (which == MSE_LANE_OUT) {
      mse_out *out = &at->item.out;
      out->token_off = (uint32_t)b->tokens_len;
      out->logprob_off = (uint32_t)b->logprobs_len;
      out->msg_off = (uint32_t)b->bytes_len;
      if ((out->token_len = at->token != NONE)) tokens[b->tokens_len++] = at->token;
      if (out->logprob_len) memcpy(logprobs + b->logprobs_len, at->logprobs, out->logprob_len * sizeof *logprobs);
      b->logprobs_len += out->logprob_len;
      out->msg_len = at->msg ? (uint32_t)strlen(at->msg) : 0;
      if (at->msg) memcpy(bytes + b->bytes_len, at->msg, out->msg_len);
      b->bytes_len += out->msg_len;
    } else if (which == MSE_LANE_KV) {
      at->item.kv.block_off = (uint32_t)b->blocks_len;
      if (at->item.kv.block_len) memcpy(blocks + b->blocks_len, at->blocks, at->item.kv.block_len * sizeof *blocks);
      b->blocks_len += at->item.kv.block_len;
    }
    memcpy(items, &at->item, b->stride);
    free_node(at);
  }
}

/* Takes the items off the lane; the numbers of the next batch go on after them. */
static node *detach(mse_engine *e, uint32_t which, const sizes *s) {
  lane *l = &e->lanes[which];
  node *list = l->first;
  uint64_t before = l->len;
  for (uint32_t n = 0; n < s->items; n++) l->first = l->first->next;
  if (!l->first) l->last = NULL;
  l->len -= s->items;
  l->first_seq += s->items;
  if (which == MSE_LANE_KV) l->weight -= s->items + s->blocks;
  if (which == MSE_LANE_OP) e->ops_open -= s->items;
  if (which == MSE_LANE_OUT && before >= OUT_ITEMS_SOFT && l->len < OUT_ITEMS_SOFT) pthread_cond_signal(&e->work);
  int now_and_then = ++l->polls % FAULT_EVERY == 0;
  int skips = (which == MSE_LANE_KV && is(e, FAULT_skip_seq)) || (which == MSE_LANE_OUT && is(e, FAULT_out_seq));
  l->first_seq += now_and_then && skips;
  return list;
}

static mse_rc poll_lane(mse_engine *e, uint32_t which, uint32_t items_max, mse_batch *out, mse_err *err) {
  static const uint32_t strides[LANES] = {sizeof(mse_out), sizeof(mse_kv), sizeof(mse_op)};
  mse_batch b;
  if (!e || which >= LANES) return fail(err, MSE_E_INVALID, "there is no such lane");
  mse_rc rc = read_struct(e, out, &b, sizeof b, err);
  if (rc) return rc;
  if (out->h.size < sizeof b) return fail(err, MSE_E_INVALID, "mse_batch is too small to hold a batch");
  memset(&b, 0, sizeof b);
  b.lane = which;
  pthread_mutex_lock(&e->lock);
  lane *l = &e->lanes[which];
  sizes s = measure(l, which, items_max < MSE_BATCH_ITEMS_MAX ? items_max : MSE_BATCH_ITEMS_MAX);
  b.epoch = l->epoch;
  b.first_seq = l->first_seq;
  node *list = NULL;
  if (s.items) {
    b.stride = strides[which];
    b.opaque = malloc((size_t)s.items * b.stride + s.blocks * sizeof(mse_u128) + s.logprobs * sizeof(mse_logprob) +
                      s.tokens * sizeof(uint32_t) + s.bytes);
    if (b.opaque) list = detach(e, which, &s);
  }
  pthread_mutex_unlock(&e->lock);
  if (s.items && !list) return fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, out_of_memory);
  b.len = s.items;
  if (list) fill(&b, list, which, &s);
  return write_struct(e, out, &b, sizeof b, err);
}

static void batch_release(mse_engine *e, mse_batch *batch) {
  mse_batch empty = {0};
  if (!batch || (uintptr_t)batch % 8 || batch->h.size < sizeof empty) return;
  empty.lane = batch->lane;
  free(batch->opaque);
  write_struct(e, batch, &empty, sizeof empty, NULL); /* so that a second release is harmless */
}

static mse_rc drain(mse_engine *e, uint64_t timeout_us, mse_err *err) {
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  uint64_t until = sum(now_us(), timeout_us);
  pthread_mutex_lock(&e->lock);
  e->draining = 1;
  while (e->live && now_us() < until) wait_until(&e->idle, &e->lock, until);
  for (request *r = e->requests; r; r = r->next) r->cancels += !r->cancels;
  pthread_cond_signal(&e->work);
  for (until = sum(now_us(), 1000000); e->live && now_us() < until;) wait_until(&e->idle, &e->lock, until);
  int is_stuck = e->live && !is(e, FAULT_drain_admits);
  pthread_mutex_unlock(&e->lock);
  return is_stuck ? fail(err, MSE_E_INTERNAL, "requests are stuck") : MSE_OK;
}

static mse_rc begin_op(mse_engine *e, op *o, mse_err *err) {
  pthread_mutex_lock(&e->lock);
  int has_place = e->ops_open < OPS_MAX;
  if (has_place) {
    e->ops_open++;
    *e->ops_last = o;
    e->ops_last = &o->next;
    pthread_cond_signal(&e->work);
  }
  pthread_mutex_unlock(&e->lock);
  if (has_place) return MSE_OK;
  free(o);
  return fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, "too many operations at once");
}

static op *new_op(op_kind kind, uint64_t op_id, uint64_t blocks_len) {
  op *o = calloc(1, sizeof *o + blocks_len * sizeof *o->blocks);
  if (!o) return NULL;
  o->kind = kind;
  o->id = op_id;
  o->blocks_len = blocks_len;
  return o;
}

static mse_rc kv_snapshot(mse_engine *e, uint64_t op_id, mse_err *err) {
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  op *o = new_op(OP_SNAPSHOT, op_id, 0);
  return o ? begin_op(e, o, err) : fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, out_of_memory);
}

static mse_rc pin_blocks(mse_engine *e, const mse_pin *from, mse_err *err) {
  mse_pin p;
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  mse_rc rc = read_struct(e, from, &p, sizeof p, err);
  if (rc) return rc;
  if (p._reserved) return fail(err, MSE_E_TOO_NEW, "mse_pin sets a reserved field");
  rc = check_array(p.blocks, p.blocks_len, MSE_PIN_BLOCKS_MAX, 8,
                   "the pin's list of blocks is null, misaligned or too long", err);
  if (rc) return rc;
  if (!p.blocks_len || !p.ttl_ms || p.priority > 100)
    return fail(err, MSE_E_INVALID, "the pin has no blocks, no ttl_ms or a priority above 100");
  op *o = new_op(OP_PIN, p.op_id, p.blocks_len);
  if (!o) return fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, out_of_memory);
  memcpy(o->blocks, p.blocks, p.blocks_len * sizeof *o->blocks);
  o->pin_id = p.pin_id;
  o->until_ms = sum(now_us() / 1000, p.ttl_ms);
  return begin_op(e, o, err);
}

static mse_rc unpin(mse_engine *e, uint64_t op_id, mse_u128 pin_id, mse_err *err) {
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  op *o = new_op(OP_UNPIN, op_id, 0);
  if (!o) return fail_soon(err, MSE_E_EXHAUSTED, RETRY_MS, out_of_memory);
  o->pin_id = pin_id;
  return begin_op(e, o, err);
}

static mse_rc check_lease(const mse_engine *e, const mse_lease *from, mse_lease *known, mse_err *err) {
  mse_rc rc = read_struct(e, from, known, sizeof *known, err);
  if (rc) return rc;
  if (known->_reserved) return fail(err, MSE_E_TOO_NEW, "mse_lease sets a reserved field");
  rc = check_ranges(e, known->ranges, known->ranges_len, 0, err);
  if (rc || is(e, FAULT_lease_unchecked)) return rc;
  if (known->how < MSE_LEASE_AMEND || known->how > MSE_LEASE_COMPACT)
    return fail(err, MSE_E_INVALID, "mse_lease says no change that there is");
  if (!known->ranges_len != (known->how != MSE_LEASE_AMEND))
    return fail(err, MSE_E_INVALID, "a lease is amended by ranges, and ended without");
  for (uint64_t n = 0; n < known->ranges_len; n++)
    if (known->ranges[n].start || known->ranges[n].end != UINT32_MAX)
      return fail(err, MSE_E_INVALID, "a lease is amended by kind, from 0 to the end");
  return MSE_OK;
}

static mse_rc change_lease(mse_engine *e, const mse_lease *from, mse_err *err) {
  mse_lease known;
  if (!e) return fail(err, MSE_E_INVALID, "the engine is null");
  mse_rc rc = check_lease(e, from, &known, err);
  if (rc) return rc;
  pthread_mutex_lock(&e->lock);
  change_known_lease(e, &known, now_us() / 1000);
  pthread_cond_signal(&e->work); /* the next end of a claim may be another one */
  pthread_mutex_unlock(&e->lock);
  return MSE_OK;
}

static const mse_vtable vtable = {
    {sizeof(mse_vtable), 0, NULL}, create, destroy, info, stats, submit, cancel, wait_lane, poll_lane,
    batch_release, drain, FAULT_BUILT_IN == FAULT_caps_lie ? NULL : kv_snapshot, pin_blocks, unpin,
    NULL, NULL, change_lease};

static const mse_magic magic = {
    {'M', 'A', 'I', 'N', 'S', 'T', 'A', 'Y'}, sizeof(mse_magic), MSE_ABI_MAJOR, MSE_ABI_MINOR, 0, 64, 1,
    MSE_LAYOUT, {"outsider", 8}, {"tally", 5}, {"1.0", 3}};

MSE_EXPORT const mse_magic *mse_magic_v1(void) { return &magic; }

MSE_EXPORT mse_rc mse_open_v1(const mse_host *host, const mse_vtable **out, mse_err *err) {
  mse_host known;
  if (!out || (uintptr_t)out % _Alignof(const mse_vtable *))
    return fail(err, MSE_E_INVALID, "out is null or misaligned");
  mse_rc rc = read_struct(NULL, host, &known, sizeof known, err);
  if (rc) return rc;
  if (known.abi_major != MSE_ABI_MAJOR)
    return fail(err, MSE_E_TOO_NEW, "the host speaks another version");
  *out = &vtable;
  return MSE_OK;
}
