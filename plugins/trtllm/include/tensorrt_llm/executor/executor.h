// SPDX-License-Identifier: Apache-2.0
//
// Declarations of that part of TensorRT-LLM 1.2's C++ Executor API which Mainstay's bridge calls, in our own words and
// from its documented facts: names, arguments, and nothing else of it. Stands in for NVIDIA's header where
// TRTLLM_ROOT is not set: the bridge compiles and is tested against it. NOT layout compatible with NVIDIA's
// library: what is linked to that one must be compiled with its own headers.
//
// Types that only stand in an argument list (so that symbols have their whole names) are empty here.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

namespace tensorrt_llm::runtime {
class CudaStream;
struct RuntimeDefaults {};
using LoraTaskIdType = std::uint64_t;
struct UniqueToken {
  std::int32_t tokenId;
  std::uint64_t tokenExtraId;
};
using VecUniqueTokens = std::vector<UniqueToken>;
} // namespace tensorrt_llm::runtime

namespace tensorrt_llm::batch_manager::kv_cache_manager {
class BaseKVCacheManager;
} // namespace tensorrt_llm::batch_manager::kv_cache_manager

namespace tensorrt_llm::executor {

char const *version() noexcept;

using SizeType32 = std::int32_t;
using FloatType = float;
using TokenIdType = std::int32_t;
using VecTokens = std::vector<TokenIdType>;
using BeamTokens = std::vector<VecTokens>;
using IdType = std::uint64_t;
using IterationType = std::uint64_t;
using RandomSeedType = std::uint64_t;
using PriorityType = float;
using MillisecondsType = std::chrono::milliseconds;
using CacheSaltIDType = std::uint64_t;
using RetentionPriority = SizeType32;

// In argument lists only.
class Tensor {};
class ExternalDraftTokensConfig {};
class PromptTuningConfig {};
class MultimodalInput {};
class MropeConfig {};
class LoraConfig {};
class LookaheadDecodingConfig {};
class ContextPhaseParams {};
class EagleConfig {};
class GuidedDecodingParams {};
class DynamicBatchConfig {};
class ParallelConfig {};
class PeftCacheConfig {};
class LogitsPostProcessorConfig {};
class DecodingConfig {};
class DebugConfig {};
class SpeculativeDecodingConfig {};
class GuidedDecodingConfig {};
class AdditionalModelOutput {};
class CacheTransceiverConfig {};
using StreamPtr = std::shared_ptr<runtime::CudaStream>;
using LogitsPostProcessor =
    std::function<void(IdType, Tensor &, BeamTokens const &, StreamPtr const &, std::optional<IdType>)>;

enum class ModelType { kDECODER_ONLY = 0, kENCODER_ONLY = 1, kENCODER_DECODER = 2 };
enum class BatchingType { kSTATIC = 0, kINFLIGHT = 1 };
enum class CapacitySchedulerPolicy { kMAX_UTILIZATION = 0, kGUARANTEED_NO_EVICT = 1, kSTATIC_BATCH = 2 };
enum class ContextChunkingPolicy { kFIRST_COME_FIRST_SERVED = 0, kEQUAL_PROGRESS = 1 };
enum class KvCacheTransferMode { DRAM = 0, GDS = 1, POSIX_DEBUG_FALLBACK = 2 };
enum class RequestType {
  REQUEST_TYPE_CONTEXT_AND_GENERATION = 0,
  REQUEST_TYPE_CONTEXT_ONLY = 1,
  REQUEST_TYPE_GENERATION_ONLY = 2
};
enum class FinishReason {
  kNOT_FINISHED = 0,
  kEND_ID = 1,
  kSTOP_WORDS = 2,
  kLENGTH = 3,
  kTIMED_OUT = 4,
  kCANCELLED = 5
};

class SamplingConfig {
public:
  explicit SamplingConfig(
      SizeType32 beamWidth = 1, std::optional<SizeType32> const &topK = std::nullopt,
      std::optional<FloatType> const &topP = std::nullopt, std::optional<FloatType> const &topPMin = std::nullopt,
      std::optional<TokenIdType> const &topPResetIds = std::nullopt,
      std::optional<FloatType> const &topPDecay = std::nullopt,
      std::optional<RandomSeedType> const &seed = std::nullopt,
      std::optional<FloatType> const &temperature = std::nullopt,
      std::optional<SizeType32> const &minTokens = std::nullopt,
      std::optional<FloatType> const &beamSearchDiversityRate = std::nullopt,
      std::optional<FloatType> const &repetitionPenalty = std::nullopt,
      std::optional<FloatType> const &presencePenalty = std::nullopt,
      std::optional<FloatType> const &frequencyPenalty = std::nullopt,
      std::optional<FloatType> const &lengthPenalty = std::nullopt,
      std::optional<SizeType32> const &earlyStopping = std::nullopt,
      std::optional<SizeType32> const &noRepeatNgramSize = std::nullopt,
      std::optional<SizeType32> const &numReturnSequences = std::nullopt,
      std::optional<FloatType> const &minP = std::nullopt,
      std::optional<std::vector<SizeType32>> const &beamWidthArray = std::nullopt);

  void setTopK(std::optional<SizeType32> const &topK);
  void setTopP(std::optional<FloatType> const &topP);
  void setSeed(std::optional<RandomSeedType> const &seed);
  void setTemperature(std::optional<FloatType> const &temperature);
  void setMinTokens(std::optional<SizeType32> const &minTokens);
  void setRepetitionPenalty(std::optional<FloatType> const &repetitionPenalty);
  void setPresencePenalty(std::optional<FloatType> const &presencePenalty);
  void setFrequencyPenalty(std::optional<FloatType> const &frequencyPenalty);
  void setMinP(std::optional<FloatType> const &minP);
  std::optional<SizeType32> getTopK() const;
  std::optional<RandomSeedType> getSeed() const;
  std::optional<FloatType> getTemperature() const;
  std::optional<SizeType32> getMinTokens() const;

private:
  std::optional<SizeType32> mTopK, mMinTokens;
  std::optional<FloatType> mTopP, mTemperature, mRepetition, mPresence, mFrequency, mMinP;
  std::optional<RandomSeedType> mSeed;
};

class OutputConfig {
public:
  explicit OutputConfig(bool returnLogProbs = false, bool returnContextLogits = false,
                        bool returnGenerationLogits = false, bool excludeInputFromOutput = false,
                        bool returnEncoderOutput = false, bool returnPerfMetrics = false,
                        std::optional<std::vector<AdditionalModelOutput>> additionalModelOutputs = std::nullopt);
  bool returnLogProbs, returnContextLogits, returnGenerationLogits, excludeInputFromOutput, returnEncoderOutput,
      returnPerfMetrics;
};

class KvCacheRetentionConfig {
public:
  static constexpr RetentionPriority kDefaultRetentionPriority = 35;

  struct TokenRangeRetentionConfig {
    explicit TokenRangeRetentionConfig(SizeType32 tokenStart, std::optional<SizeType32> tokenEnd = std::nullopt,
                                       RetentionPriority priority = kDefaultRetentionPriority,
                                       std::optional<std::chrono::milliseconds> durationMs = std::nullopt);
    SizeType32 tokenStart;
    std::optional<SizeType32> tokenEnd;
    RetentionPriority priority;
    std::optional<std::chrono::milliseconds> durationMs;
  };

  explicit KvCacheRetentionConfig(std::vector<TokenRangeRetentionConfig> const &tokenRangeRetentionPriorities,
                                  RetentionPriority decodeRetentionPriority = kDefaultRetentionPriority,
                                  std::optional<std::chrono::milliseconds> decodeDurationMs = std::nullopt,
                                  KvCacheTransferMode transferMode = KvCacheTransferMode::DRAM,
                                  std::string const &directory = "");
  std::vector<TokenRangeRetentionConfig> getTokenRangeRetentionConfigs() const;
  RetentionPriority getDecodeRetentionPriority() const;
  std::optional<std::chrono::milliseconds> getDecodeDurationMs() const;

private:
  std::vector<TokenRangeRetentionConfig> mRanges;
  RetentionPriority mDecodePriority;
  std::optional<std::chrono::milliseconds> mDecodeDuration;
};

class Request {
public:
  static constexpr PriorityType kDefaultPriority = 0.5;

  Request(VecTokens inputTokenIds, SizeType32 maxTokens, bool streaming = false,
          SamplingConfig const &samplingConfig = SamplingConfig(), OutputConfig const &outputConfig = OutputConfig(),
          std::optional<SizeType32> const &endId = std::nullopt, std::optional<SizeType32> const &padId = std::nullopt,
          std::optional<std::vector<SizeType32>> positionIds = std::nullopt,
          std::optional<std::list<VecTokens>> badWords = std::nullopt,
          std::optional<std::list<VecTokens>> stopWords = std::nullopt,
          std::optional<Tensor> embeddingBias = std::nullopt,
          std::optional<ExternalDraftTokensConfig> externalDraftTokensConfig = std::nullopt,
          std::optional<PromptTuningConfig> pTuningConfig = std::nullopt,
          std::optional<MultimodalInput> multimodalInput = std::nullopt,
          std::optional<Tensor> multimodalEmbedding = std::nullopt,
          std::optional<MropeConfig> mRopeConfig = std::nullopt, std::optional<LoraConfig> loraConfig = std::nullopt,
          std::optional<LookaheadDecodingConfig> lookaheadConfig = std::nullopt,
          std::optional<KvCacheRetentionConfig> kvCacheRetentionConfig = std::nullopt,
          std::optional<std::string> logitsPostProcessorName = std::nullopt,
          std::optional<LogitsPostProcessor> logitsPostProcessor = std::nullopt,
          std::optional<VecTokens> encoderInputTokenIds = std::nullopt, std::optional<IdType> clientId = std::nullopt,
          bool returnAllGeneratedTokens = false, PriorityType priority = kDefaultPriority,
          RequestType type = RequestType::REQUEST_TYPE_CONTEXT_AND_GENERATION,
          std::optional<ContextPhaseParams> contextPhaseParams = std::nullopt,
          std::optional<Tensor> encoderInputFeatures = std::nullopt,
          std::optional<SizeType32> encoderOutputLength = std::nullopt,
          std::optional<Tensor> crossAttentionMask = std::nullopt, SizeType32 numReturnSequences = 1,
          std::optional<EagleConfig> eagleConfig = std::nullopt,
          std::optional<Tensor> skipCrossAttnBlocks = std::nullopt,
          std::optional<GuidedDecodingParams> guidedDecodingParams = std::nullopt,
          std::optional<SizeType32> languageAdapterUid = std::nullopt,
          std::optional<MillisecondsType> allottedTimeMs = std::nullopt,
          std::optional<CacheSaltIDType> cacheSaltID = std::nullopt);
  Request(Request const &other);
  Request(Request &&other) noexcept;
  Request &operator=(Request const &other);
  Request &operator=(Request &&other) noexcept;
  ~Request();

  void setStreaming(bool streaming);
  void setSamplingConfig(SamplingConfig const &config);
  void setOutputConfig(OutputConfig const &outputConfig);
  void setEndId(SizeType32 endId);
  void setStopWords(std::list<VecTokens> const &stopWords);
  void setKvCacheRetentionConfig(KvCacheRetentionConfig const &kvCacheRetentionConfig);
  void setClientId(IdType clientId);
  void setPriority(PriorityType priority);
  void setAllottedTimeMs(MillisecondsType allottedTimeMs);
  void setCacheSaltID(CacheSaltIDType cacheSaltID);
  VecTokens getInputTokenIds() const;
  SizeType32 getMaxTokens() const;
  bool getStreaming() const;
  SamplingConfig getSamplingConfig() const;
  OutputConfig getOutputConfig() const;
  std::optional<SizeType32> getEndId() const;
  std::optional<std::list<VecTokens>> getStopWords() const;
  std::optional<KvCacheRetentionConfig> getKvCacheRetentionConfig() const;
  std::optional<IdType> getClientId() const;
  PriorityType getPriority() const;
  std::optional<MillisecondsType> getAllottedTimeMs() const;
  std::optional<CacheSaltIDType> getCacheSaltID() const;

private:
  class Impl;
  std::unique_ptr<Impl> mImpl;
};

struct RequestPerfMetrics {
  using TimePoint = std::chrono::time_point<std::chrono::steady_clock>;
  struct TimingMetrics {
    TimePoint arrivalTime, firstScheduledTime, firstTokenTime, lastTokenTime;
  };
  struct KvCacheMetrics {
    SizeType32 numTotalAllocatedBlocks{0}, numNewAllocatedBlocks{0}, numReusedBlocks{0}, numMissedBlocks{0};
  };
  TimingMetrics timingMetrics;
  KvCacheMetrics kvCacheMetrics;
};

struct Result {
  bool isFinal;
  BeamTokens outputTokenIds;
  std::vector<FinishReason> finishReasons;
  bool isSequenceFinal;
  std::optional<RequestPerfMetrics> requestPerfMetrics;
};

class Response {
public:
  Response(IdType requestId, std::string errorMsg, std::optional<IdType> clientId = std::nullopt);
  Response(IdType requestId, Result Result, std::optional<IdType> clientId = std::nullopt);
  Response(Response const &other);
  Response(Response &&other) noexcept;
  Response &operator=(Response const &other);
  Response &operator=(Response &&other) noexcept;
  ~Response();
  IdType getRequestId() const;
  std::optional<IdType> getClientId() const;
  bool hasError() const;
  std::string const &getErrorMsg() const;
  Result const &getResult() const;

private:
  class Impl;
  std::unique_ptr<Impl> mImpl;
};

class SchedulerConfig {
public:
  explicit SchedulerConfig(
      CapacitySchedulerPolicy capacitySchedulerPolicy = CapacitySchedulerPolicy::kGUARANTEED_NO_EVICT,
      std::optional<ContextChunkingPolicy> contextChunkingPolicy = std::nullopt,
      std::optional<DynamicBatchConfig> dynamicBatchConfig = std::nullopt);
};

class KvCacheConfig {
public:
  explicit KvCacheConfig(bool enableBlockReuse = true, std::optional<SizeType32> const &maxTokens = std::nullopt,
                         std::optional<std::vector<SizeType32>> const &maxAttentionWindowVec = std::nullopt,
                         std::optional<SizeType32> const &sinkTokenLength = std::nullopt,
                         std::optional<FloatType> const &freeGpuMemoryFraction = std::nullopt,
                         std::optional<std::size_t> const &hostCacheSize = std::nullopt, bool onboardBlocks = true,
                         std::optional<FloatType> const &crossKvCacheFraction = std::nullopt,
                         std::optional<RetentionPriority> secondaryOffloadMinPriority = std::nullopt,
                         std::size_t eventBufferMaxSize = 0, bool enablePartialReuse = true,
                         bool copyOnPartialReuse = true, bool useUvm = false,
                         SizeType32 attentionDpEventsGatherPeriodMs = 5,
                         std::optional<runtime::RuntimeDefaults> const &runtimeDefaults = std::nullopt,
                         std::uint64_t const &maxGpuTotalBytes = 0);
  void setEnableBlockReuse(bool enableBlockReuse);
  void setEnablePartialReuse(bool enablePartialReuse);
  void setMaxTokens(std::optional<SizeType32> maxTokens);
  void setFreeGpuMemoryFraction(FloatType freeGpuMemoryFraction);
  void setHostCacheSize(std::size_t hostCacheSize);
  void setSecondaryOffloadMinPriority(std::optional<RetentionPriority> secondaryOffloadMinPriority);
  void setEventBufferMaxSize(std::size_t eventBufferMaxSize);
  std::optional<SizeType32> getMaxTokens() const;
  std::optional<std::size_t> getHostCacheSize() const;
  std::optional<RetentionPriority> getSecondaryOffloadMinPriority() const;
  std::size_t getEventBufferMaxSize() const;

private:
  std::optional<SizeType32> mMaxTokens;
  std::optional<std::size_t> mHostCacheSize;
  std::optional<RetentionPriority> mOffloadMinPriority;
  std::size_t mEventBufferMaxSize;
};

class ExtendedRuntimePerfKnobConfig {
public:
  explicit ExtendedRuntimePerfKnobConfig(bool multiBlockMode = true, bool enableContextFMHAFP32Acc = false,
                                         bool cudaGraphMode = false, SizeType32 cudaGraphCacheSize = 0);
};

class ExecutorConfig {
public:
  static constexpr std::uint64_t kDefaultMaxSeqIdleMicroseconds = 180'000'000;
  static constexpr SizeType32 kDefaultIterStatsMaxIterations = 1000;
  static constexpr SizeType32 kDefaultRequestStatsMaxIterations = 0;

  explicit ExecutorConfig(SizeType32 maxBeamWidth = 1, SchedulerConfig schedulerConfig = SchedulerConfig(),
                          KvCacheConfig kvCacheConfig = KvCacheConfig(), bool enableChunkedContext = true,
                          bool normalizeLogProbs = true,
                          SizeType32 iterStatsMaxIterations = kDefaultIterStatsMaxIterations,
                          SizeType32 requestStatsMaxIterations = kDefaultRequestStatsMaxIterations,
                          BatchingType batchingType = BatchingType::kINFLIGHT,
                          std::optional<SizeType32> maxBatchSize = std::nullopt,
                          std::optional<SizeType32> maxNumTokens = std::nullopt,
                          std::optional<ParallelConfig> parallelConfig = std::nullopt,
                          std::optional<PeftCacheConfig> const &peftCacheConfig = std::nullopt,
                          std::optional<LogitsPostProcessorConfig> logitsPostProcessorConfig = std::nullopt,
                          std::optional<DecodingConfig> decodingConfig = std::nullopt,
                          bool useGpuDirectStorage = false, float gpuWeightsPercent = 1,
                          std::optional<SizeType32> maxQueueSize = std::nullopt,
                          ExtendedRuntimePerfKnobConfig const &extendedRuntimePerfKnobConfig =
                              ExtendedRuntimePerfKnobConfig(),
                          std::optional<DebugConfig> debugConfig = std::nullopt, SizeType32 recvPollPeriodMs = 0,
                          std::uint64_t maxSeqIdleMicroseconds = kDefaultMaxSeqIdleMicroseconds,
                          std::optional<SpeculativeDecodingConfig> specDecConfig = std::nullopt,
                          std::optional<GuidedDecodingConfig> guidedDecodingConfig = std::nullopt,
                          std::optional<std::vector<AdditionalModelOutput>> additionalModelOutputs = std::nullopt,
                          std::optional<CacheTransceiverConfig> cacheTransceiverConfig = std::nullopt,
                          bool gatherGenerationLogits = false, bool promptTableOffloading = false,
                          bool enableTrtOverlap = false, bool failFastOnAttentionWindowTooLarge = false);
  void setMaxBatchSize(SizeType32 maxBatchSize);
  void setKvCacheConfig(KvCacheConfig const &kvCacheConfig);
  std::optional<SizeType32> getMaxBatchSize() const;
  KvCacheConfig getKvCacheConfig() const;

private:
  KvCacheConfig mKvCache;
  std::optional<SizeType32> mMaxBatchSize;
};

struct KvCacheStats {
  SizeType32 maxNumBlocks, freeNumBlocks, usedNumBlocks, tokensPerBlock;
};

struct InflightBatchingStats {
  SizeType32 numPausedRequests;
};

struct IterationStats {
  SizeType32 numActiveRequests, numQueuedRequests;
  std::optional<KvCacheStats> kvCacheStats;
  std::optional<InflightBatchingStats> inflightBatchingStats;
};

struct KVCacheCreatedData {
  std::vector<SizeType32> numBlocksPerCacheLevel;
};

struct KVCacheStoredBlockData {
  KVCacheStoredBlockData(IdType hash, runtime::VecUniqueTokens unique, std::optional<runtime::LoraTaskIdType> lora,
                         SizeType32 level, SizeType32 worth)
      : blockHash(hash), tokens(std::move(unique)), loraId(lora), cacheLevel(level), priority(worth) {}
  IdType blockHash;
  runtime::VecUniqueTokens tokens;
  std::optional<runtime::LoraTaskIdType> loraId;
  SizeType32 cacheLevel;
  SizeType32 priority;
};

struct KVCacheStoredData {
  std::optional<IdType> parentHash;
  std::vector<KVCacheStoredBlockData> blocks;
};

struct KVCacheRemovedData {
  std::vector<IdType> blockHashes;
};

template <typename T> struct KVCacheEventDiff {
  T oldValue;
  T newValue;
};

struct KVCacheUpdatedData {
  IdType blockHash;
  std::optional<KVCacheEventDiff<SizeType32>> cacheLevel, priority;
};

using KVCacheEventData =
    std::variant<KVCacheCreatedData, KVCacheStoredData, KVCacheRemovedData, KVCacheUpdatedData>;

struct KVCacheEvent {
  KVCacheEvent(IdType eventId, KVCacheEventData data, SizeType32 windowSize,
               std::optional<SizeType32> attentionDpRank = std::nullopt);
  IdType eventId;
  KVCacheEventData data;
  SizeType32 windowSize;
  std::optional<SizeType32> attentionDpRank;
};

class KVCacheEventManager {
public:
  KVCacheEventManager(std::shared_ptr<batch_manager::kv_cache_manager::BaseKVCacheManager> kvCacheManager);
  std::deque<KVCacheEvent> getLatestEvents(std::optional<std::chrono::milliseconds> timeout = std::nullopt);

private:
  std::shared_ptr<batch_manager::kv_cache_manager::BaseKVCacheManager> kvCacheManager;
};

class Executor {
public:
  Executor(std::filesystem::path const &modelPath, ModelType modelType, ExecutorConfig const &executorConfig);
  ~Executor();
  Executor(Executor const &executor) = delete;
  Executor &operator=(Executor const &executor) = delete;
  IdType enqueueRequest(Request const &request);
  std::vector<Response> awaitResponses(std::optional<std::chrono::milliseconds> const &timeout = std::nullopt);
  void cancelRequest(IdType requestId);
  void shutdown();
  std::deque<IterationStats> getLatestIterationStats();
  bool canEnqueueRequests() const;
  std::optional<std::shared_ptr<KVCacheEventManager>> getKVCacheEventManager() const;

private:
  class Impl;
  std::unique_ptr<Impl> mImpl;
};

} // namespace tensorrt_llm::executor
