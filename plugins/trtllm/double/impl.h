// SPDX-License-Identifier: Apache-2.0
//
// What the double's parts know of each other.
#pragma once

#include "cache.h"
#include "settings.h"

namespace tensorrt_llm::executor {

class Request::Impl {
public:
  VecTokens tokens;
  SizeType32 maxTokens;
  bool streaming;
  SamplingConfig sampling;
  OutputConfig output;
  std::optional<SizeType32> endId;
  std::optional<std::list<VecTokens>> stopWords;
  std::optional<KvCacheRetentionConfig> retention;
  std::optional<IdType> clientId;
  PriorityType priority;
  std::optional<MillisecondsType> allotted;
  std::optional<CacheSaltIDType> salt;
};

} // namespace tensorrt_llm::executor

namespace tensorrt_llm::batch_manager::kv_cache_manager {

// Where the double's events are, under the name that the API has for it.
class BaseKVCacheManager {
public:
  explicit BaseKVCacheManager(trtllm_double::Settings const &settings) : settings(settings) {}
  std::deque<executor::KVCacheEvent> events(std::optional<std::chrono::milliseconds> timeout);

  trtllm_double::Events queue;

private:
  trtllm_double::Settings settings;
  std::int64_t batches = 0;
};

} // namespace tensorrt_llm::batch_manager::kv_cache_manager
