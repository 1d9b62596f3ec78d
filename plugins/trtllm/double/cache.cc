// SPDX-License-Identifier: Apache-2.0
#include "cache.h"

#include <algorithm>
#include <utility>

namespace trtllm_double {

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  std::uint64_t mixed = hash ^ (value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2));
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
  return mixed ^ (mixed >> 31);
}

void Events::add(tle::KVCacheEventData data) {
  if (capacity == 0) {
    return;
  }
  // Removals in a row are one event.
  if (auto *removed = std::get_if<tle::KVCacheRemovedData>(&data); removed != nullptr && !pending.empty()) {
    if (auto *before = std::get_if<tle::KVCacheRemovedData>(&pending.back().data)) {
      before->blockHashes.insert(before->blockHashes.end(), removed->blockHashes.begin(), removed->blockHashes.end());
      return;
    }
  }
  pending.emplace_back(next_id++, std::move(data), 1 << 20);
}

void Events::flush() {
  std::lock_guard<std::mutex> lock(mutex);
  if (pending.empty()) {
    return;
  }
  for (auto &event : pending) {
    shown.push_back(std::move(event));
  }
  pending.clear();
  while (shown.size() > capacity) {
    shown.pop_front();
  }
  changed.notify_all();
}

std::deque<tle::KVCacheEvent> Events::take(std::optional<std::chrono::milliseconds> timeout) {
  std::unique_lock<std::mutex> lock(mutex);
  auto const ready = [this] { return !shown.empty() || stopped; };
  if (timeout) {
    changed.wait_for(lock, *timeout, ready);
  } else {
    changed.wait(lock, ready);
  }
  return std::exchange(shown, {});
}

void Events::stop() {
  std::lock_guard<std::mutex> lock(mutex);
  stopped = true;
  changed.notify_all();
}

Cache::Cache(int block_tokens, int device_blocks, int host_blocks, int offload_priority_min, Events &events)
    : size(block_tokens), device_total(device_blocks), host_total(host_blocks), offload_min(offload_priority_min),
      events(events) {}

int Cache::used() const {
  int held = own_used;
  for (auto const &entry : tree) {
    held += entry.second.level == 0 && entry.second.users > 0 ? 1 : 0;
  }
  return held;
}

namespace {
// The salt is in the hash of the first block alone, as in the real one; a block's hash is over its parent's.
std::uint64_t hash_of(std::uint64_t salt, std::optional<std::uint64_t> parent, std::int32_t const *tokens, int length) {
  std::uint64_t hash = parent ? mix(*parent, 1) : mix(0x5a17ull, salt);
  for (int at = 0; at < length; at++) {
    hash = mix(hash, static_cast<std::uint32_t>(tokens[at]));
  }
  return mix(hash, static_cast<std::uint64_t>(length));
}
} // namespace

std::optional<Table> Cache::admit(std::uint64_t salt, std::vector<std::int32_t> const &prompt, int tokens_in_all) {
  Table table;
  std::optional<std::uint64_t> parent;
  // The last token is always computed.
  int const usable = (static_cast<int>(prompt.size()) - 1) / size;
  for (int at = 0; at < usable; at++) {
    std::uint64_t const hash = hash_of(salt, parent, prompt.data() + at * size, size);
    if (tree.find(hash) == tree.end()) {
      break;
    }
    table.path.push_back(hash);
    parent = hash;
  }
  for (auto const hash : table.path) {
    tree.at(hash).users += 1;
  }
  table.hits = static_cast<int>(table.path.size());
  table.own = blocks_for(tokens_in_all) - table.hits;
  int const to_onboard = static_cast<int>(std::count_if(table.path.begin(), table.path.end(), [&](auto const hash) {
    return tree.at(hash).level != 0;
  }));
  if (!make_room(table.own + to_onboard)) {
    for (auto const hash : table.path) {
      tree.at(hash).users -= 1;
    }
    return std::nullopt;
  }
  for (auto const hash : table.path) {
    if (tree.at(hash).level != 0) {
      move(tree.at(hash), 0);
    }
  }
  own_used += table.own;
  return table;
}

void Cache::store(Table &table, std::uint64_t salt, std::vector<std::int32_t> const &tokens, std::size_t prompt_length,
                  std::optional<tle::KvCacheRetentionConfig> const &retention, bool with_rest) {
  tle::KVCacheStoredData told;
  int const whole = static_cast<int>(tokens.size()) / size;
  int const rest = static_cast<int>(tokens.size()) % size;
  int const due = whole + (with_rest && rest > 0 ? 1 : 0);
  for (int at = 0; at < due; at++) {
    bool const is_old = at < static_cast<int>(table.path.size());
    int const length = at < whole ? size : rest;
    std::int32_t const *from = tokens.data() + at * size;
    std::optional<std::uint64_t> const parent = at > 0 ? std::make_optional(table.path[at - 1]) : std::nullopt;
    std::uint64_t const hash = is_old ? table.path[at] : hash_of(salt, parent, from, length);
    auto found = tree.find(hash);
    if (!is_old) {
      if (found == tree.end()) {
        Block block;
        block.hash = hash;
        block.has_parent = parent.has_value();
        block.parent = parent.value_or(0);
        block.tokens.assign(from, from + length);
        found = tree.emplace(hash, std::move(block)).first;
        link(found->second, 1);
        device_used += 1;
        own_used -= 1;
        table.own -= 1;
        if (told.blocks.empty()) {
          told.parentHash = parent;
        }
        tensorrt_llm::runtime::VecUniqueTokens unique;
        for (int n = 0; n < length; n++) {
          unique.push_back({from[n], 0});
        }
        told.blocks.emplace_back(hash, std::move(unique), std::nullopt, 0, found->second.priority);
      } else if (!told.blocks.empty()) {
        // Somebody else computed it first: what is told so far ends here.
        events.add(std::exchange(told, {}));
      }
      found->second.users += 1;
      table.path.push_back(hash);
    }
    if (retention) {
      Block &block = found->second;
      bool const is_prompt = static_cast<std::size_t>(at) * size < prompt_length;
      block.priority = is_prompt ? block.priority : retention->getDecodeRetentionPriority();
      block.duration = is_prompt ? block.duration : retention->getDecodeDurationMs();
      for (auto const &range : retention->getTokenRangeRetentionConfigs()) {
        int const end = range.tokenEnd.value_or(1 << 30);
        if (is_prompt && range.tokenStart < (at + 1) * size && end > at * size) {
          block.priority = range.priority;
          block.duration = range.durationMs;
          break;
        }
      }
    }
  }
  if (!told.blocks.empty()) {
    events.add(std::move(told));
  }
}

void Cache::release(Table &table) {
  for (auto hash = table.path.rbegin(); hash != table.path.rend(); ++hash) {
    Block &block = tree.at(*hash);
    block.users -= 1;
    block.last_use = ++clock;
    block.expires = block.duration ? std::make_optional(Clock::now() + *block.duration) : std::nullopt;
  }
  own_used -= table.own;
  table = Table{};
}

// Nothing is evicted for what does not fit even so.
bool Cache::make_room(int blocks) {
  if (used() + blocks > device_total) {
    return false;
  }
  while (device_used + own_used + blocks > device_total) {
    std::uint64_t const hash = victim(0);
    if (hash == 0) {
      return false;
    }
    evict_from_device(hash);
  }
  return true;
}

int Cache::worth(Block const &block) const {
  return block.expires && *block.expires <= Clock::now() ? 35 : block.priority;
}

// The least worth leaf that nobody uses, the least recently used of those. A hash of 0 is none.
std::uint64_t Cache::victim(int level) const {
  Block const *best = nullptr;
  for (auto const &entry : tree) {
    Block const &block = entry.second;
    bool const is_leaf = level == 0 ? block.device_children == 0 : block.children == 0;
    if (block.level != level || block.users > 0 || !is_leaf) {
      continue;
    }
    if (best == nullptr || std::make_pair(worth(block), block.last_use) < std::make_pair(worth(*best), best->last_use)) {
      best = &block;
    }
  }
  return best == nullptr ? 0 : best->hash;
}

void Cache::evict_from_device(std::uint64_t hash) {
  Block &block = tree.at(hash);
  bool const is_offloaded = host_total > 0 && worth(block) >= offload_min;
  if (is_offloaded && host_used >= host_total) {
    // Whoever waits in the host's memory with nothing behind it makes room.
    std::uint64_t const other = victim(1);
    if (other != 0) {
      remove(other);
    }
  }
  if (is_offloaded && host_used < host_total) {
    move(block, 1);
    return;
  }
  remove_with_children(hash);
}

// A block that leaves takes with it what stands behind it in the host's memory: nothing could reach it.
void Cache::remove_with_children(std::uint64_t hash) {
  std::vector<std::uint64_t> behind;
  for (auto const &entry : tree) {
    if (entry.second.has_parent && entry.second.parent == hash) {
      behind.push_back(entry.first);
    }
  }
  for (auto const child : behind) {
    remove_with_children(child);
  }
  remove(hash);
}

void Cache::move(Block &block, int to) {
  tle::KVCacheUpdatedData told{block.hash, tle::KVCacheEventDiff<std::int32_t>{block.level, to}, std::nullopt};
  link(block, -1);
  block.level = to;
  link(block, 1);
  (to == 0 ? device_used : host_used) += 1;
  (to == 0 ? host_used : device_used) -= 1;
  events.add(told);
}

void Cache::remove(std::uint64_t hash) {
  Block const block = tree.at(hash);
  link(block, -1);
  (block.level == 0 ? device_used : host_used) -= 1;
  tree.erase(hash);
  events.add(tle::KVCacheRemovedData{{hash}});
}

// Counts a block as its parent's child, or no longer.
void Cache::link(Block const &block, int by) {
  auto const parent = block.has_parent ? tree.find(block.parent) : tree.end();
  if (parent != tree.end()) {
    parent->second.children += by;
    parent->second.device_children += block.level == 0 ? by : 0;
  }
}

} // namespace trtllm_double
