/* SPDX-License-Identifier: Apache-2.0
 *
 * The leases of tally.c: what sessions claim for blocks by name, renewed, amended and ended.
 *
 * A lease is a list of claims on hashes, which outlast the blocks: one that is computed again is claimed as before.
 * A block is worth the highest claim on it. What a lease leaves behind when it goes never makes a block worth more.
 * All of it is called with the engine's lock held.
 */
#ifndef TALLY_LEASES_H
#define TALLY_LEASES_H
#include "base.h"

#define LEASES_KEPT 256u         /* the one that was taken longest ago makes room */

static uint32_t lookup(mse_engine *e, mse_u128 hash);
static void relist(mse_engine *e, uint32_t b);
static uint8_t worth(const block *b);

static lease_claim **claims_on(mse_engine *e, mse_u128 hash) { return &e->lease_claims[hash.lo & e->bucket_mask]; }

/* What leases say that a block of that hash is worth; PRIORITY_UNSET where none does. */
static uint8_t leased_worth(mse_engine *e, mse_u128 hash) {
  uint8_t most = PRIORITY_UNSET;
  for (const lease_claim *c = *claims_on(e, hash); c; c = c->next)
    if (same(c->hash, hash) && (most == PRIORITY_UNSET || c->priority > most)) most = c->priority;
  return most;
}

static void weigh(mse_engine *e, mse_u128 hash) {
  uint32_t b = lookup(e, hash);
  if (b == NONE) return;
  e->blocks[b].leased = leased_worth(e, hash);
  relist(e, b);
}

/* The range that says what lease `n` of a request (0: none) claims for a block: the highest that touches it, and of
   those the longest. */
static const mse_range *range_of(const mse_engine *e, const request *r, uint32_t n, uint32_t index) {
  uint64_t start = (uint64_t)index * e->config.block_tokens, end = start + e->config.block_tokens;
  const mse_range *best = NULL;
  for (uint64_t at = 0; at < r->ranges_len && !is(e, FAULT_retention_blind); at++) {
    const mse_range *range = &r->ranges[at];
    if (range->lease != n || range->start >= end || range->end <= start) continue;
    int is_longer = best && range->duration_ms - 1 > best->duration_ms - 1; /* 0 is no limit: it wraps to the longest */
    if (!best || range->priority > best->priority || (range->priority == best->priority && is_longer)) best = range;
  }
  return best;
}

static int is_leased(const mse_engine *e, const request *r, uint32_t index) {
  for (uint32_t n = 1; n <= r->leases_len && !is(e, FAULT_lease_blind); n++)
    if (range_of(e, r, n, index)) return 1;
  return 0;
}

static void set_terms(mse_engine *e, lease_claim *c, const mse_range *range, uint64_t now_ms) {
  uint8_t after = range->after ? range->after - 1 : PRIORITY_DEFAULT;
  c->kind = range->kind;
  c->priority = range->priority;
  c->after = after < range->priority ? after : range->priority;
  c->until_ms = range->duration_ms ? sum(now_ms, range->duration_ms) : UINT64_MAX;
  if (c->until_ms < e->lapse_ms) e->lapse_ms = c->until_ms;
}

static void unlink_claim(mse_engine *e, lease_claim *c) {
  lease_claim **link = claims_on(e, c->hash);
  while (*link != c) link = &(*link)->next;
  *link = c->next;
}

static int claims_too(mse_engine *e, const lease *l, mse_u128 hash) {
  for (const lease_claim *c = *claims_on(e, hash); c; c = c->next)
    if (c->lease == l && same(c->hash, hash)) return 1;
  return 0;
}

/* A lease goes; what the next of its name claims too is that one's business. */
static void drop_lease(mse_engine *e, lease **link, const lease *next, uint32_t how) {
  lease *l = *link;
  *link = l->next;
  e->leases_len--;
  for (uint64_t n = 0; n < l->len; n++) {
    mse_u128 hash = l->claims[n].hash;
    uint32_t b = lookup(e, hash);
    uint8_t was = b == NONE ? 0 : worth(&e->blocks[b]);
    unlink_claim(e, &l->claims[n]);
    if (b == NONE || claims_too(e, next, hash)) continue;
    uint8_t left = how != MSE_LEASE_RELEASE ? 0 : was < PRIORITY_DEFAULT ? was : PRIORITY_DEFAULT;
    block *at = &e->blocks[b];
    if (at->left == PRIORITY_UNSET || at->left < left) at->left = left;
    at->has_ended |= how != MSE_LEASE_RELEASE;
    weigh(e, hash);
  }
  free(l->claims);
  free(l);
}

static lease **find_lease(mse_engine *e, mse_u128 namespace_id, mse_u128 id) {
  lease **link = &e->leases;
  while (*link && !(same((*link)->id, id) && same((*link)->namespace_id, namespace_id))) link = &(*link)->next;
  return link;
}

/* At a request's end: its leases take the place of those of their names. */
static void take_leases(mse_engine *e, const request *r, uint64_t now_ms) {
  for (uint32_t n = 1; n <= r->leases_len && !is(e, FAULT_lease_blind); n++) {
    lease *l = must(calloc(1, sizeof *l));
    l->namespace_id = r->namespace_id;
    l->id = r->leases[n - 1];
    l->claims = must(calloc(r->table_len + 1, sizeof *l->claims));
    for (uint32_t index = 0; index < r->table_len; index++) {
      const mse_range *range = range_of(e, r, n, index);
      const block *b = &e->blocks[r->table[index]];
      if (!range || !b->is_stored) continue;
      lease_claim *c = &l->claims[l->len++], **link = claims_on(e, b->hash);
      *c = (lease_claim){.next = *link, .lease = l, .hash = b->hash};
      *link = c;
      set_terms(e, c, range, now_ms);
    }
    lease **old = find_lease(e, l->namespace_id, l->id);
    if (*old) drop_lease(e, old, l, MSE_LEASE_RELEASE);
    lease **last = &e->leases;
    while (*last) last = &(*last)->next;
    *last = l;
    if (++e->leases_len > LEASES_KEPT) drop_lease(e, &e->leases, NULL, MSE_LEASE_RELEASE);
    for (uint64_t at = 0; at < l->len; at++) weigh(e, l->claims[at].hash);
  }
}

static void amend_lease(mse_engine *e, lease *l, const mse_range *ranges, uint64_t len, uint64_t now_ms) {
  for (uint64_t n = 0; n < l->len; n++)
    for (uint64_t at = 0; at < len; at++) {
      if (ranges[at].kind != l->claims[n].kind) continue;
      set_terms(e, &l->claims[n], &ranges[at], now_ms);
      weigh(e, l->claims[n].hash);
      break;
    }
}

static void change_known_lease(mse_engine *e, const mse_lease *change, uint64_t now_ms) {
  lease **link = find_lease(e, change->namespace_id, change->lease_id);
  if (change->how == MSE_LEASE_AMEND && is(e, FAULT_amend_wide)) {
    for (lease *l = e->leases; l; l = l->next) amend_lease(e, l, change->ranges, change->ranges_len, now_ms);
    return;
  }
  if (!*link) return;
  if (change->how == MSE_LEASE_AMEND) {
    if (!is(e, FAULT_amend_blind)) amend_lease(e, *link, change->ranges, change->ranges_len, now_ms);
  } else if (!is(e, FAULT_lease_end_blind)) {
    drop_lease(e, link, NULL, change->how);
  }
}

/* A claim whose time is over is worth what was said for after. */
static void end_lapsed_claims(mse_engine *e, uint64_t now_ms) {
  for (lease *l = e->leases; l; l = l->next)
    for (uint64_t n = 0; n < l->len; n++) {
      lease_claim *c = &l->claims[n];
      if (c->until_ms <= now_ms) {
        c->priority = c->after;
        c->until_ms = UINT64_MAX;
        uint32_t b = lookup(e, c->hash);
        if (b != NONE) e->blocks[b].has_lapsed = 1;
        weigh(e, c->hash);
      } else if (c->until_ms < e->lapse_ms) {
        e->lapse_ms = c->until_ms;
      }
    }
}

static void free_leases(mse_engine *e) {
  while (e->leases) {
    lease *next = e->leases->next;
    free(e->leases->claims);
    free(e->leases);
    e->leases = next;
  }
}
#endif
