// SPDX-License-Identifier: Apache-2.0
//
// The double's paged cache: no bytes in it, but blocks with hashes, tiers, priorities, and events of what happens.
#pragma once

#include "tensorrt_llm/executor/executor.h"

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <condition_variable>
#include <unordered_map>
#include <vector>

namespace trtllm_double {

namespace tle = tensorrt_llm::executor;
using Clock = std::chrono::steady_clock;

// Events, as many as the buffer takes: the oldest go first.
class Events {
public:
  void set_capacity(std::size_t most) { capacity = most; }
  void add(tle::KVCacheEventData data);
  // Shows what was added to those that wait.
  void flush();
  std::deque<tle::KVCacheEvent> take(std::optional<std::chrono::milliseconds> timeout);
  void stop();

private:
  std::size_t capacity = 0;
  std::uint64_t next_id = 0;
  std::deque<tle::KVCacheEvent> pending, shown;
  bool stopped = false;
  std::mutex mutex;
  std::condition_variable changed;
};

struct Block {
  std::uint64_t hash = 0, parent = 0;
  bool has_parent = false;
  std::vector<std::int32_t> tokens;
  int level = 0;
  int users = 0;
  int priority = 35;
  std::optional<std::chrono::milliseconds> duration;
  std::optional<Clock::time_point> expires;
  std::uint64_t last_use = 0;
  // In the tree, in any level, and in the device's.
  int children = 0, device_children = 0;
};

// The blocks of one request: those of the tree first, then so many of its own that are not in it.
struct Table {
  std::vector<std::uint64_t> path;
  int own = 0;
  int hits = 0;
};

class Cache {
public:
  Cache(int block_tokens, int device_blocks, int host_blocks, int offload_priority_min, Events &events);

  // Room for a prompt and its answer; nothing while there is none.
  std::optional<Table> admit(std::uint64_t salt, std::vector<std::int32_t> const &prompt, int tokens_in_all);
  bool can_ever_hold(int tokens) const { return blocks_for(tokens) <= device_total; }
  // These tokens are computed: their whole blocks can be hit from now on.
  void store(Table &table, std::uint64_t salt, std::vector<std::int32_t> const &tokens, std::size_t prompt_length,
             std::optional<tle::KvCacheRetentionConfig> const &retention, bool with_rest);
  void release(Table &table);
  int used() const;
  int total() const { return device_total; }
  int block_tokens() const { return size; }

private:
  int blocks_for(int tokens) const { return (tokens + size - 1) / size; }
  bool make_room(int blocks);
  std::uint64_t victim(int level) const;
  int worth(Block const &block) const;
  void evict_from_device(std::uint64_t hash);
  void remove_with_children(std::uint64_t hash);
  void remove(std::uint64_t hash);
  void move(Block &block, int to);
  void link(Block const &block, int by);

  int size, device_total, host_total, offload_min;
  int device_used = 0, host_used = 0, own_used = 0;
  std::uint64_t clock = 0;
  std::unordered_map<std::uint64_t, Block> tree;
  Events &events;
};

std::uint64_t mix(std::uint64_t hash, std::uint64_t value);

} // namespace trtllm_double
