// SPDX-License-Identifier: Apache-2.0
#include "mainstay-trtllm/src/shim.h"

#include "mainstay-trtllm/src/bridge.rs.h"
#include "tensorrt_llm/executor/executor.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <type_traits>
#include <utility>

// Registers TensorRT-LLM's own layers with TensorRT, once in a process. Of its plugin library, and of plain C.
extern "C" bool initTrtLlmPlugins(void *logger, char const *libNamespace);

namespace mainstay::trtllm {

namespace tle = tensorrt_llm::executor;
using std::chrono::milliseconds;

// What the bridge takes for granted of members that no symbol names: the manifest can't see them change.
static_assert(std::is_same_v<tle::TokenIdType, std::int32_t> && std::is_same_v<tle::IdType, std::uint64_t>);
static_assert(std::is_same_v<decltype(tle::Result::isFinal), bool>);
static_assert(std::is_same_v<decltype(tle::Result::outputTokenIds), std::vector<std::vector<std::int32_t>>>);
static_assert(std::is_same_v<decltype(tle::Result::finishReasons), std::vector<tle::FinishReason>>);
static_assert(std::is_same_v<decltype(tle::RequestPerfMetrics::KvCacheMetrics::numReusedBlocks), std::int32_t>);
static_assert(std::is_same_v<decltype(tle::KVCacheEvent::eventId), std::uint64_t>);
static_assert(std::is_same_v<decltype(tle::KVCacheEvent::windowSize), std::int32_t>);
static_assert(std::is_same_v<decltype(tle::KVCacheStoredData::parentHash), std::optional<std::uint64_t>>);
static_assert(std::is_same_v<decltype(tle::KVCacheStoredBlockData::blockHash), std::uint64_t>);
static_assert(std::is_same_v<decltype(tle::KVCacheRemovedData::blockHashes), std::vector<std::uint64_t>>);
static_assert(std::is_same_v<decltype(tensorrt_llm::runtime::UniqueToken::tokenId), std::int32_t>);
static_assert(static_cast<int>(tle::FinishReason::kEND_ID) == 1 && static_cast<int>(tle::FinishReason::kSTOP_WORDS) == 2 &&
              static_cast<int>(tle::FinishReason::kLENGTH) == 3 && static_cast<int>(tle::FinishReason::kTIMED_OUT) == 4 &&
              static_cast<int>(tle::FinishReason::kCANCELLED) == 5);

namespace {

tle::ExecutorConfig config_of(Settings const &settings) {
  tle::KvCacheConfig cache;
  cache.setEnableBlockReuse(true);
  cache.setEnablePartialReuse(false);
  cache.setEventBufferMaxSize(settings.event_buffer);
  if (settings.kv_tokens_max > 0) {
    cache.setMaxTokens(settings.kv_tokens_max);
  }
  if (settings.kv_fraction > 0) {
    cache.setFreeGpuMemoryFraction(settings.kv_fraction);
  }
  if (settings.host_cache_bytes > 0) {
    cache.setHostCacheSize(settings.host_cache_bytes);
  }
  if (settings.offload_priority_min >= 0) {
    cache.setSecondaryOffloadMinPriority(settings.offload_priority_min);
  }
  tle::ExecutorConfig config;
  config.setKvCacheConfig(cache);
  if (settings.requests_max > 0) {
    config.setMaxBatchSize(settings.requests_max);
  }
  return config;
}

tle::SamplingConfig sampling_of(Ask const &ask) {
  tle::SamplingConfig sampling;
  if (ask.temperature <= 0) {
    sampling.setTopK(1);
  } else {
    sampling.setTemperature(ask.temperature);
    sampling.setTopP(ask.top_p);
    if (ask.top_k > 0) {
      sampling.setTopK(ask.top_k);
    }
    if (ask.min_p > 0) {
      sampling.setMinP(ask.min_p);
    }
    if (ask.has_seed) {
      sampling.setSeed(ask.seed);
    }
  }
  if (ask.tokens_min > 0) {
    sampling.setMinTokens(ask.tokens_min);
  }
  if (ask.repetition_penalty != 1) {
    sampling.setRepetitionPenalty(ask.repetition_penalty);
  }
  if (ask.presence_penalty != 0) {
    sampling.setPresencePenalty(ask.presence_penalty);
  }
  if (ask.frequency_penalty != 0) {
    sampling.setFrequencyPenalty(ask.frequency_penalty);
  }
  return sampling;
}

std::optional<milliseconds> duration(std::uint32_t ms) {
  return ms == 0 ? std::nullopt : std::make_optional(milliseconds(ms));
}

tle::KvCacheRetentionConfig retention_of(Ask const &ask) {
  std::vector<tle::KvCacheRetentionConfig::TokenRangeRetentionConfig> ranges;
  ranges.reserve(ask.ranges.size());
  for (auto const &range : ask.ranges) {
    ranges.emplace_back(range.start, range.end, range.priority, duration(range.duration_ms));
  }
  return tle::KvCacheRetentionConfig(ranges, ask.decode_priority, duration(ask.decode_duration_ms));
}

Said said_of(tle::Response const &response) {
  Said said{};
  auto const client = response.getClientId();
  said.has_client = client.has_value();
  said.client = client.value_or(0);
  said.reused_blocks = -1;
  if (response.hasError()) {
    said.has_error = true;
    said.is_final = true;
    said.error = rust::String::lossy(response.getErrorMsg());
    return said;
  }
  auto const &result = response.getResult();
  said.is_final = result.isFinal;
  // All tokens of the one beam: a step may yield several.
  if (!result.outputTokenIds.empty()) {
    auto const &tokens = result.outputTokenIds.front();
    said.tokens.reserve(tokens.size());
    for (auto const token : tokens) {
      said.tokens.push_back(static_cast<std::uint32_t>(token));
    }
  }
  if (!result.finishReasons.empty()) {
    said.finish = static_cast<std::uint8_t>(result.finishReasons.front());
  }
  if (result.requestPerfMetrics) {
    auto const &metrics = *result.requestPerfMetrics;
    said.reused_blocks = metrics.kvCacheMetrics.numReusedBlocks;
    auto const waited = metrics.timingMetrics.firstScheduledTime - metrics.timingMetrics.arrivalTime;
    auto const us = std::chrono::duration_cast<std::chrono::microseconds>(waited).count();
    said.queue_us = us > 0 ? static_cast<std::uint64_t>(us) : 0;
  }
  return said;
}

void fill(Told &told, tle::KVCacheCreatedData const &created) {
  told.kind = 1;
  if (!created.numBlocksPerCacheLevel.empty()) {
    told.count = static_cast<std::uint64_t>(std::max(created.numBlocksPerCacheLevel.front(), 0));
  }
}

void fill(Told &told, tle::KVCacheStoredData const &stored) {
  told.kind = 2;
  told.has_parent = stored.parentHash.has_value();
  told.parent = stored.parentHash.value_or(0);
  for (auto const &block : stored.blocks) {
    told.hashes.push_back(block.blockHash);
    told.levels.push_back(block.cacheLevel);
    told.lengths.push_back(static_cast<std::uint32_t>(block.tokens.size()));
    bool foreign = block.loraId.has_value();
    for (auto const &token : block.tokens) {
      told.tokens.push_back(static_cast<std::uint32_t>(token.tokenId));
      foreign = foreign || token.tokenExtraId != 0;
    }
    told.foreign.push_back(foreign);
  }
}

void fill(Told &told, tle::KVCacheRemovedData const &removed) {
  told.kind = 3;
  for (auto const hash : removed.blockHashes) {
    told.hashes.push_back(hash);
  }
}

void fill(Told &told, tle::KVCacheUpdatedData const &updated) {
  told.kind = 4;
  told.hashes.push_back(updated.blockHash);
  if (updated.cacheLevel) {
    told.levels.push_back(updated.cacheLevel->oldValue);
    told.levels.push_back(updated.cacheLevel->newValue);
  }
}

} // namespace

struct Bridge::Inner {
  tle::Executor executor;
  std::shared_ptr<tle::KVCacheEventManager> events;

  explicit Inner(Settings const &settings)
      : executor(std::string(settings.engine_dir), tle::ModelType::kDECODER_ONLY, config_of(settings)) {
    auto const manager = executor.getKVCacheEventManager();
    if (!manager || !*manager) {
      throw std::runtime_error("the executor tells no cache events");
    }
    events = *manager;
  }
};

Bridge::Bridge(Settings const &settings) : inner(std::make_unique<Inner>(settings)) {}

Bridge::~Bridge() {
  try {
    inner->executor.shutdown();
  } catch (...) {
    // It is gone either way, and nobody is left to be told.
  }
}

std::uint64_t Bridge::enqueue(Ask const &ask) const {
  tle::Request request(tle::VecTokens(ask.tokens.begin(), ask.tokens.end()), ask.tokens_max);
  request.setStreaming(true);
  request.setSamplingConfig(sampling_of(ask));
  tle::OutputConfig output;
  output.excludeInputFromOutput = true;
  output.returnPerfMetrics = true;
  request.setOutputConfig(output);
  if (ask.has_end) {
    request.setEndId(ask.end_id);
  }
  if (!ask.stop_tokens.empty()) {
    std::list<tle::VecTokens> words;
    for (auto const token : ask.stop_tokens) {
      words.push_back({token});
    }
    request.setStopWords(words);
  }
  if (ask.has_retention) {
    request.setKvCacheRetentionConfig(retention_of(ask));
  }
  request.setPriority(ask.priority);
  request.setClientId(ask.client);
  request.setCacheSaltID(ask.salt);
  if (ask.allotted_ms > 0) {
    request.setAllottedTimeMs(milliseconds(ask.allotted_ms));
  }
  return inner->executor.enqueueRequest(request);
}

void Bridge::cancel(std::uint64_t request) const { inner->executor.cancelRequest(request); }

rust::Vec<Said> Bridge::await_responses(std::uint32_t timeout_ms) const {
  rust::Vec<Said> all;
  for (auto const &response : inner->executor.awaitResponses(milliseconds(timeout_ms))) {
    all.push_back(said_of(response));
  }
  return all;
}

rust::Vec<Told> Bridge::await_events(std::uint32_t timeout_ms) const {
  rust::Vec<Told> all;
  for (auto const &event : inner->events->getLatestEvents(milliseconds(timeout_ms))) {
    Told told{};
    told.number = event.eventId;
    told.window = event.windowSize;
    told.is_of_a_rank = event.attentionDpRank.has_value();
    std::visit([&](auto const &data) { fill(told, data); }, event.data);
    all.push_back(std::move(told));
  }
  return all;
}

Figures Bridge::figures() const {
  Figures figures{};
  for (auto const &step : inner->executor.getLatestIterationStats()) {
    figures.steps += 1;
    if (step.inflightBatchingStats) {
      figures.paused += static_cast<std::uint64_t>(std::max(step.inflightBatchingStats->numPausedRequests, 0));
    }
    if (step.kvCacheStats) {
      figures.blocks_used = static_cast<std::uint64_t>(std::max(step.kvCacheStats->usedNumBlocks, 0));
    }
  }
  return figures;
}

bool Bridge::can_enqueue() const { return inner->executor.canEnqueueRequests(); }

std::unique_ptr<Bridge> open(Settings const &settings) {
  // Without a logger of ours it takes its own.
  if (!initTrtLlmPlugins(nullptr, "tensorrt_llm")) {
    throw std::runtime_error("its layers cannot be registered with TensorRT");
  }
  return std::make_unique<Bridge>(settings);
}

rust::String version() { return rust::String::lossy(tle::version()); }

} // namespace mainstay::trtllm
