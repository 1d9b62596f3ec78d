/* SPDX-License-Identifier: Apache-2.0
 *
 * The paged cache of tally.c: blocks under chained hashes, eviction, retention, pins, and what lane KV hears of it.
 *
 * Leaves go first, of these the lowest priority, of these the one whose use is longest ago; a block in use or
 * pinned stays, and with it those before it. All of it is called with the engine's lock held.
 */
#ifndef TALLY_CACHE_H
#define TALLY_CACHE_H
#include "leases.h"

/* ---- lane KV ---- */

static void append_kv(mse_engine *e, mse_kv kv, const mse_u128 *blocks) {
  lane *l = &e->lanes[MSE_LANE_KV];
  node *last = l->last;
  mse_kv *before = last ? &last->item.kv : NULL;
  uint32_t held = before ? before->block_len : 0;
  int goes_on = before && held && held + kv.block_len <= KV_EVENT_BLOCKS_MAX && before->type == kv.type &&
                before->cause == kv.cause && before->flags == kv.flags && kv.block_len &&
                (kv.type == MSE_KV_REMOVED ||
                 (same(last->blocks[held - 1], kv.parent) && same(before->namespace_id, kv.namespace_id)));
  l->weight += kv.block_len + !goes_on;
  if (!goes_on) {
    last = must(calloc(1, sizeof *last));
    last->item.kv = kv;
    last->item.kv.block_len = held = 0;
    append(e, MSE_LANE_KV, last);
  }
  if (!kv.block_len) return;
  if (held + kv.block_len > last->blocks_room) {
    last->blocks_room = 2 * (held + kv.block_len);
    last->blocks = must(realloc(last->blocks, last->blocks_room * sizeof *blocks));
  }
  memcpy(last->blocks + held, blocks, kv.block_len * sizeof *blocks);
  last->item.kv.block_len = held + kv.block_len;
}

/* Each walk goes up to a block that was told before and is told downwards, so that no parent comes late. */
static uint32_t tell_stored(mse_engine *e) {
  uint32_t told = 0;
  e->marks++;
  for (uint32_t n = 0; n < e->config.blocks; n++) {
    uint32_t depth = 0;
    uint32_t b = n;
    for (; b != NONE && e->blocks[b].is_stored && e->blocks[b].mark != e->marks; b = e->blocks[b].parent) {
      e->blocks[b].mark = e->marks;
      e->path[depth++] = b;
    }
    while (depth--) {
      const block *at = &e->blocks[e->path[depth]];
      if (is(e, FAULT_snapshot_partial) && e->path[depth] % 10 == 5) continue;
      mse_u128 parent = at->parent == NONE ? at->namespace_id : e->blocks[at->parent].hash;
      mse_kv kv = {MSE_KV_STORED, MSE_TIER_DEVICE, MSE_CAUSE_NONE, MSE_KV_SNAPSHOT, 0, 1, parent, at->namespace_id};
      append_kv(e, kv, &at->hash);
      told++;
    }
  }
  return told;
}

/* A new epoch. Ends of pins are not in the picture of the cache, so those that wait are told again. */
static uint32_t restart_kv(mse_engine *e) {
  lane *l = &e->lanes[MSE_LANE_KV];
  node *old = l->first;
  uint32_t kept = 0;
  l->first = l->last = NULL;
  l->len = l->weight = l->first_seq = 0;
  l->epoch++;
  append_kv(e, (mse_kv){.type = MSE_KV_RESET}, NULL);
  uint32_t told = tell_stored(e);
  while (old) {
    node *next = old->next;
    if (old->item.kv.type == MSE_KV_PIN_EXPIRED && kept++ < PIN_EVENTS_KEPT) append_kv(e, old->item.kv, NULL);
    free_node(old);
    old = next;
  }
  return told;
}

/* A ring that overwrites its oldest, and numbers what it gives out: nobody sees that anything is gone. */
static void lose_oldest(lane *l) {
  node *oldest = l->first;
  l->weight -= 1 + oldest->item.kv.block_len;
  l->len--;
  if (!(l->first = oldest->next)) l->last = NULL;
  free_node(oldest);
}

/* Call it after the change: on overflow the picture that is told instead has the change in it. */
static void tell_kv(mse_engine *e, mse_kv kv, const mse_u128 *hash) {
  lane *l = &e->lanes[MSE_LANE_KV];
  while (is(e, FAULT_no_reset) && l->first && l->weight + 1 + kv.block_len > e->kv_weight_max) lose_oldest(l);
  if (l->weight + 1 + kv.block_len <= e->kv_weight_max) append_kv(e, kv, hash); else restart_kv(e);
}

/* ---- the cache ---- */

static uint32_t *bucket(mse_engine *e, mse_u128 hash) { return &e->buckets[hash.lo & e->bucket_mask]; }

static uint32_t lookup(mse_engine *e, mse_u128 hash) {
  uint32_t b = *bucket(e, hash);
  while (b != NONE && !same(e->blocks[b].hash, hash)) b = e->blocks[b].next_same;
  return b;
}

/* The highest of all that is said of it, and the usual where nothing is. */
static uint8_t worth(const block *b) {
  uint8_t said[] = {b->endless, b->timed, b->leased, b->left}, most = PRIORITY_UNSET;
  for (size_t n = 0; n < sizeof said; n++)
    if (said[n] != PRIORITY_UNSET && (most == PRIORITY_UNSET || said[n] > most)) most = said[n];
  return most == PRIORITY_UNSET ? PRIORITY_DEFAULT : most;
}

static void unlist(mse_engine *e, uint32_t b) {
  block *at = &e->blocks[b];
  if (at->listed == PRIORITY_UNSET) return;
  if (at->prev == NONE) e->leaf_first[at->listed] = at->next; else e->blocks[at->prev].next = at->next;
  if (at->next == NONE) e->leaf_last[at->listed] = at->prev; else e->blocks[at->next].prev = at->prev;
  at->listed = PRIORITY_UNSET;
}

/* Lists a block that may be evicted among its like, the one whose use is longest ago first. Most come from the end
   of a request and go to the back; a parent whose last child went belongs near the front. */
static void relist(mse_engine *e, uint32_t b) {
  block *at = &e->blocks[b];
  unlist(e, b);
  if (!at->is_stored || at->refs || at->children || (at->pins && !is(e, FAULT_forget_pin))) return;
  uint8_t p = at->listed = worth(at);
  uint32_t last = e->leaf_last[p], before = NONE;
  if (last != NONE && e->blocks[last].last_use > at->last_use)
    for (before = e->leaf_first[p]; e->blocks[before].last_use < at->last_use;) before = e->blocks[before].next;
  at->next = before;
  at->prev = before == NONE ? last : e->blocks[before].prev;
  if (at->prev == NONE) e->leaf_first[p] = b; else e->blocks[at->prev].next = b;
  if (before == NONE) e->leaf_last[p] = b; else e->blocks[before].prev = b;
}

static void evict(mse_engine *e, uint32_t b) {
  block *at = &e->blocks[b];
  uint32_t *link = bucket(e, at->hash), parent = at->parent;
  while (*link != b) link = &e->blocks[*link].next_same;
  *link = at->next_same;
  unlist(e, b);
  at->is_stored = 0;
  e->cached--;
  e->pinned -= at->pins > 0;
  e->free_blocks[e->free_len++] = b;
  if (parent != NONE) {
    e->blocks[parent].children--;
    relist(e, parent);
  }
  e->counters.evictions++;
  uint32_t cause = at->has_ended && !worth(at) ? MSE_CAUSE_LIFECYCLE
                   : at->has_lapsed && at->timed == PRIORITY_UNSET ? MSE_CAUSE_EXPIRY
                                                                   : MSE_CAUSE_CAPACITY;
  if (!is(e, FAULT_ages_lost) || e->counters.evictions % FAULT_EVERY)
    note_age(e, &e->counters.age_at_eviction[cause], at->used_ms, now_us() / 1000);
  if (is(e, FAULT_silent_evict) && e->counters.evictions % FAULT_EVERY == 0) return;
  tell_kv(e, (mse_kv){.type = MSE_KV_REMOVED, .cause = cause, .block_len = 1}, &at->hash);
}

/* A block to fill, with one reference, or NONE when all are in use or pinned. */
static uint32_t allocate(mse_engine *e) {
  for (int p = 0; !e->free_len && p <= 100; p++)
    if (e->leaf_first[p] != NONE) evict(e, e->leaf_first[p]);
  if (!e->free_len) return NONE;
  uint32_t b = e->free_blocks[--e->free_len];
  e->blocks[b] = (block){
      .parent = NONE, .refs = 1, .endless = PRIORITY_UNSET, .timed = PRIORITY_UNSET, .leased = PRIORITY_UNSET,
      .left = PRIORITY_UNSET, .listed = PRIORITY_UNSET};
  e->busy++;
  return b;
}

static void refer(mse_engine *e, uint32_t b) {
  if (e->blocks[b].refs++) return;
  e->busy++;
  unlist(e, b);
}

static void unrefer(mse_engine *e, uint32_t b) {
  if (--e->blocks[b].refs) return;
  e->busy--;
  if (e->blocks[b].is_stored) relist(e, b); else e->free_blocks[e->free_len++] = b;
}

static uint32_t count_claims(mse_engine *e, mse_u128 hash) {
  uint32_t count = 0;
  for (const claim *c = e->claims[hash.lo & e->bucket_mask]; c; c = c->next) if (same(c->hash, hash)) count++;
  return count;
}

static void tell_block(mse_engine *e, block *b) {
  mse_u128 parent = b->parent == NONE ? b->namespace_id : e->blocks[b->parent].hash;
  mse_kv kv = {MSE_KV_STORED, MSE_TIER_DEVICE, MSE_CAUSE_NONE, 0, 0, 1, parent, b->namespace_id};
  int now_and_then = ++e->stores % FAULT_EVERY == 0;
  if (is(e, FAULT_orphan_parent) && now_and_then) kv.parent.hi ^= 0x6f727068616eu;
  b->is_phantom = is(e, FAULT_phantom_store) && now_and_then;
  tell_kv(e, kv, &b->hash);
}

/* What a request may use. A phantom was told to be stored, but its content never was. */
static uint32_t lookup_hit(mse_engine *e, mse_u128 hash) {
  uint32_t b = lookup(e, hash);
  return b == NONE || e->blocks[b].is_phantom ? NONE : b;
}

/* A block is full. Another request may have filled one with the same tokens meanwhile: then that one is shared. */
static void store(mse_engine *e, request *r, uint32_t index) {
  mse_u128 hash = r->hashes[index];
  uint32_t mine = r->table[index], known = lookup(e, hash);
  if (known != NONE) {
    e->blocks[known].is_phantom = 0;
    refer(e, known);
    unrefer(e, mine);
    r->table[index] = known;
    return;
  }
  block *b = &e->blocks[mine];
  b->hash = hash;
  b->namespace_id = r->namespace_id;
  b->state = r->state;
  b->used_ms = now_us() / 1000;
  b->parent = index ? r->table[index - 1] : NONE;
  if (b->parent != NONE) e->blocks[b->parent].children++;
  b->next_same = *bucket(e, hash);
  *bucket(e, hash) = mine;
  b->is_stored = 1;
  b->pins = count_claims(e, hash);
  b->leased = leased_worth(e, hash);
  e->pinned += b->pins > 0;
  e->cached++;
  tell_block(e, b);
}

/* Claims of several requests add up to the highest, so that a careless one can't demote a shared prompt. */
static void retain(mse_engine *e, block *b, const mse_range *range, uint64_t now_ms) {
  uint8_t priority = range ? range->priority : PRIORITY_DEFAULT;
  if (!range || !range->duration_ms) {
    if (b->endless == PRIORITY_UNSET || b->endless < priority) b->endless = priority;
  } else if (b->timed == PRIORITY_UNSET || b->timed <= priority) {
    uint64_t until = sum(now_ms, range->duration_ms);
    if (b->timed != priority || b->timed_until_ms < until) b->timed_until_ms = until;
    b->timed = priority;
    if (b->timed_until_ms < e->lapse_ms) e->lapse_ms = b->timed_until_ms;
  }
}

/* Backwards, so that each leaf goes before its parents. */
static void give_back(mse_engine *e, request *r, uint64_t now_ms) {
  e->uses++;
  while (r->table_len) {
    uint32_t index = --r->table_len;
    block *b = &e->blocks[r->table[index]];
    if (b->is_stored) {
      b->last_use = e->uses;
      b->used_ms = now_ms;
      const mse_range *range = range_of(e, r, 0, index);
      if (range || !is_leased(e, r, index)) retain(e, b, range, now_ms);
    }
    unrefer(e, r->table[index]);
  }
}

static void end_lapsed(mse_engine *e, uint64_t now_ms) {
  if (now_ms < e->lapse_ms) return;
  e->lapse_ms = UINT64_MAX;
  for (uint32_t n = 0; n < e->config.blocks; n++) {
    block *b = &e->blocks[n];
    if (!b->is_stored || b->timed == PRIORITY_UNSET) continue;
    if (b->timed_until_ms <= now_ms) {
      b->timed = PRIORITY_UNSET;
      b->has_lapsed = 1;
      relist(e, n);
    } else if (b->timed_until_ms < e->lapse_ms) {
      e->lapse_ms = b->timed_until_ms;
    }
  }
  end_lapsed_claims(e, now_ms);
}

/* ---- pins ---- */

static void drop_claims(mse_engine *e, pin *p) {
  while (p->len) {
    claim *c = &p->claims[--p->len], **link = &e->claims[c->hash.lo & e->bucket_mask];
    while (*link != c) link = &(*link)->next;
    *link = c->next;
    if (!count_claims(e, c->hash)) e->claimed--;
    uint32_t b = lookup(e, c->hash);
    if (b == NONE) continue;
    e->pinned -= !--e->blocks[b].pins;
    relist(e, b);
  }
}

static int claims_already(mse_engine *e, const pin *p, mse_u128 hash, int *by_any) {
  for (const claim *c = e->claims[hash.lo & e->bucket_mask]; c; c = c->next)
    if (same(c->hash, hash)) {
      *by_any = 1;
      if (c->pin == p) return 1;
    }
  return 0;
}

/* Claims all distinct hashes; stops early where even an empty budget would not do. */
static void lay_claims(mse_engine *e, pin *p, const mse_u128 *hashes, uint64_t len) {
  for (uint64_t n = 0; n < len && p->len <= e->config.blocks / 2; n++) {
    int by_any = 0;
    if (claims_already(e, p, hashes[n], &by_any)) continue;
    claim *c = &p->claims[p->len++], **link = &e->claims[hashes[n].lo & e->bucket_mask];
    *c = (claim){*link, p, hashes[n]};
    *link = c;
    e->claimed += !by_any;
    uint32_t b = lookup(e, c->hash);
    if (b == NONE) continue;
    e->pinned += !e->blocks[b].pins++;
    relist(e, b);
  }
}

static uint32_t count_held(mse_engine *e, const pin *p) {
  uint32_t held = 0;
  for (uint64_t n = 0; n < p->len; n++) held += lookup(e, p->claims[n].hash) != NONE;
  return held;
}

static pin **find_pin(mse_engine *e, mse_u128 id) {
  pin **link = &e->pins;
  while (*link && !same((*link)->id, id)) link = &(*link)->next;
  return link;
}

static void free_pin(pin *p) {
  free(p->claims);
  free(p);
}

static void remove_pin(mse_engine *e, pin **link) {
  pin *p = *link;
  *link = p->next;
  e->pins_len--;
  drop_claims(e, p);
  free_pin(p);
}

/* The new pin is laid over the old one of that id before the old one goes, so that nothing is bare in between. */
static void obey_pin(mse_engine *e, const op *o) {
  uint64_t budget = e->config.blocks / 2, room = o->blocks_len < budget + 1 ? o->blocks_len : budget + 1;
  pin *p = must(calloc(1, sizeof *p)), **old = find_pin(e, o->pin_id);
  p->claims = must(calloc(room, sizeof *p->claims));
  p->id = o->pin_id;
  p->until_ms = o->until_ms;
  lay_claims(e, p, o->blocks, o->blocks_len);
  uint64_t freed = 0;
  for (uint64_t n = 0; *old && n < (*old)->len; n++) freed += count_claims(e, (*old)->claims[n].hash) == 1;
  if (p->len > budget || e->claimed - freed > budget || (!*old && e->pins_len == PINS_MAX)) {
    drop_claims(e, p);
    free_pin(p);
    end_op(e, o->id, MSE_E_EXHAUSTED, 0);
    return;
  }
  if (*old) remove_pin(e, old);
  p->next = e->pins;
  e->pins = p;
  e->pins_len++;
  end_op(e, o->id, MSE_OK, count_held(e, p));
}

static void obey_unpin(mse_engine *e, const op *o) {
  pin **link = find_pin(e, o->pin_id);
  if (!*link) {
    end_op(e, o->id, MSE_E_NOT_FOUND, 0);
    return;
  }
  uint32_t held = count_held(e, *link);
  remove_pin(e, link);
  end_op(e, o->id, MSE_OK, held);
}

static void obey(mse_engine *e) {
  while (e->ops) {
    op *o = e->ops;
    if (!(e->ops = o->next)) e->ops_last = &e->ops;
    if (o->kind == OP_SNAPSHOT) end_op(e, o->id, MSE_OK, restart_kv(e));
    if (o->kind == OP_PIN) obey_pin(e, o);
    if (o->kind == OP_UNPIN) obey_unpin(e, o);
    free(o);
  }
}

static void end_pins(mse_engine *e, uint64_t now_ms) {
  for (pin **link = &e->pins; *link;) {
    mse_u128 id = (*link)->id;
    if ((*link)->until_ms > now_ms || is(e, FAULT_pin_forever)) {
      link = &(*link)->next;
      continue;
    }
    remove_pin(e, link);
    if (!is(e, FAULT_no_pin_event)) tell_kv(e, (mse_kv){.type = MSE_KV_PIN_EXPIRED, .parent = id}, NULL);
  }
}

static uint64_t next_end_ms(const mse_engine *e) {
  uint64_t next = e->lapse_ms;
  for (const pin *p = e->pins; p && !is(e, FAULT_pin_forever); p = p->next)
    if (p->until_ms < next) next = p->until_ms;
  return next;
}
#endif
