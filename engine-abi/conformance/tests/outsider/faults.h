/* SPDX-License-Identifier: Apache-2.0
 *
 * The faults of tally.c by name, and its configuration, which names one of them.
 *
 * A fault is one line at the place where a vendor would have slipped, so that what the kit catches is a likely
 * mistake and not a caricature. README.md says of each what it does.
 */
#ifndef TALLY_FAULTS_H
#define TALLY_FAULTS_H
#include <stdint.h>
#include <string.h>

#define FAULTS(X) \
  X(none) X(drop_final) X(double_final) X(no_first) X(late_tokens) X(skip_seq) X(out_seq) X(silent_evict) \
  X(phantom_store) X(orphan_parent) X(shared_namespace) X(lying_hit) X(no_reset) X(leak_thread) X(leak_fd) \
  X(ignore_cancel) X(cancel_twice) X(forget_pin) X(pin_forever) X(no_pin_event) X(lost_op) X(caps_lie) \
  X(tail_blind) X(ext_blind) X(out_on_error) X(size_blind) X(bad_token) X(too_many) X(over_budget) X(unstable) \
  X(unseeded) X(drain_admits) X(exit_dirty) X(hang_destroy) X(slow_any) X(snapshot_partial) X(priority_blind) \
  X(retention_blind) X(ages_us) X(ages_lost) X(lease_blind) X(lease_end_blind) X(amend_blind) X(amend_wide) X(lease_unchecked) \
  X(lease_range_unchecked) X(miscounts)

#define FAULT_ENUM(name) FAULT_##name,
#define FAULT_NAME(name) #name,
typedef enum fault { FAULTS(FAULT_ENUM) FAULTS_LEN } fault;
static const char *const fault_names[FAULTS_LEN] = {FAULTS(FAULT_NAME)};

/* Two faults show before any configuration is read (the vtable, a configuration that is no JSON), so that one can be
   built in as well: -DTALLY_FAULT=NAME. */
#ifndef TALLY_FAULT
#define TALLY_FAULT none
#endif
#define FAULT_ENUM_OF(name) FAULT_ENUM_ONLY(name)
#define FAULT_ENUM_ONLY(name) FAULT_##name
#define FAULT_BUILT_IN FAULT_ENUM_OF(TALLY_FAULT)

typedef struct config { uint64_t blocks, block_tokens, context, requests, step_us; fault fault; } config;

/* Strict, since the header wants UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
static int is_utf8(const uint8_t *at, const uint8_t *end) {
  while (at < end) {
    uint8_t lead = *at++;
    if (lead < 0x80) continue;
    int more = lead >= 0xc2 && lead <= 0xdf ? 1 : (lead & 0xf0) == 0xe0 ? 2 : lead >= 0xf0 && lead <= 0xf4 ? 3 : 0;
    if (!more || end - at < more) return 0;
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (*at < low || *at > high) return 0;
    for (at++; --more; at++)
      if ((*at & 0xc0) != 0x80) return 0;
  }
  return 1;
}

typedef struct reader { const char *at, *end; } reader;

static void skip_space(reader *r) {
  while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static int take(reader *r, char wanted) {
  skip_space(r);
  if (r->at == r->end || *r->at != wanted) return 0;
  r->at++;
  return 1;
}

/* No name that is known here needs an escape, so a string with one is unknown and may be refused unread. */
static int take_string(reader *r, const char **text, size_t *len) {
  if (!take(r, '"')) return 0;
  *text = r->at;
  while (r->at < r->end && *r->at != '"' && *r->at != '\\' && (uint8_t)*r->at >= 0x20) r->at++;
  *len = (size_t)(r->at - *text);
  return r->at < r->end && *r->at++ == '"';
}

static int take_number(reader *r, uint64_t most, uint64_t *value) {
  skip_space(r);
  const char *start = r->at;
  for (*value = 0; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++) {
    *value = *value * 10 + (uint64_t)(*r->at - '0');
    if (*value > most) return 0;
  }
  return r->at > start && (*start != '0' || r->at == start + 1);
}

static int is_word(const char *text, size_t len, const char *word) {
  return strlen(word) == len && !memcmp(text, word, len);
}

static const char *read_fault(reader *r, fault *found) {
  const char *text;
  size_t len;
  if (!take_string(r, &text, &len)) return "the fault is not a string";
  for (int n = 0; n < FAULTS_LEN; n++)
    if (is_word(text, len, fault_names[n])) {
      *found = (fault)n;
      return NULL;
    }
  return "no such fault; README.md lists them";
}

/* Fills the configuration as far as it was read; gives what is wrong, or NULL. */
static const char *read_config(const char *json, uint64_t json_len, config *c) {
  struct { const char *name; uint64_t *value, least, most; } keys[] = {
      {"blocks", &c->blocks, 1, 65536},      {"block_tokens", &c->block_tokens, 1, 1024},
      {"context", &c->context, 1, 1 << 20},  {"requests", &c->requests, 1, 4096},
      {"step_us", &c->step_us, 0, 1000000}};
  *c = (config){256, 16, 8192, 64, 50, FAULT_BUILT_IN};
  if (!json_len || !is_utf8((const uint8_t *)json, (const uint8_t *)json + json_len))
    return "the configuration is not UTF-8 text";
  reader r = {json, json + json_len};
  if (!take(&r, '{')) return "the configuration is not a JSON object";
  for (int more = !take(&r, '}'); more;) {
    const char *key, *wrong = NULL;
    size_t len, n = 0, known = sizeof keys / sizeof *keys;
    if (!take_string(&r, &key, &len) || !take(&r, ':')) return "the configuration is not a JSON object";
    while (n < known && !is_word(key, len, keys[n].name)) n++;
    if (n < known) {
      if (!take_number(&r, keys[n].most, keys[n].value) || *keys[n].value < keys[n].least)
        return "a number of the configuration is out of range";
    } else if (!is_word(key, len, "fault")) {
      return "unknown key; blocks, block_tokens, context, requests, step_us and fault are known";
    } else if ((wrong = read_fault(&r, &c->fault))) {
      return wrong;
    }
    more = take(&r, ',');
    if (!more && !take(&r, '}')) return "the configuration is not a JSON object";
  }
  skip_space(&r);
  return r.at == r.end ? NULL : "something follows the configuration's object";
}
#endif
