// SPDX-License-Identifier: Apache-2.0
//
// The double's values: what a request and a response carry.
#include "impl.h"

#include <stdexcept>
#include <utility>

namespace tensorrt_llm::executor {

using std::optional;

char const *version() noexcept { return "double (computes nothing, and is not TensorRT-LLM)"; }

SamplingConfig::SamplingConfig(SizeType32, optional<SizeType32> const &topK, optional<FloatType> const &topP,
                               optional<FloatType> const &, optional<TokenIdType> const &, optional<FloatType> const &,
                               optional<RandomSeedType> const &seed, optional<FloatType> const &temperature,
                               optional<SizeType32> const &minTokens, optional<FloatType> const &,
                               optional<FloatType> const &repetition, optional<FloatType> const &presence,
                               optional<FloatType> const &frequency, optional<FloatType> const &,
                               optional<SizeType32> const &, optional<SizeType32> const &,
                               optional<SizeType32> const &, optional<FloatType> const &minP,
                               optional<std::vector<SizeType32>> const &)
    : mTopK(topK), mMinTokens(minTokens), mTopP(topP), mTemperature(temperature), mRepetition(repetition),
      mPresence(presence), mFrequency(frequency), mMinP(minP), mSeed(seed) {}
void SamplingConfig::setTopK(optional<SizeType32> const &value) { mTopK = value; }
void SamplingConfig::setTopP(optional<FloatType> const &value) { mTopP = value; }
void SamplingConfig::setSeed(optional<RandomSeedType> const &value) { mSeed = value; }
void SamplingConfig::setTemperature(optional<FloatType> const &value) { mTemperature = value; }
void SamplingConfig::setMinTokens(optional<SizeType32> const &value) { mMinTokens = value; }
void SamplingConfig::setRepetitionPenalty(optional<FloatType> const &value) { mRepetition = value; }
void SamplingConfig::setPresencePenalty(optional<FloatType> const &value) { mPresence = value; }
void SamplingConfig::setFrequencyPenalty(optional<FloatType> const &value) { mFrequency = value; }
void SamplingConfig::setMinP(optional<FloatType> const &value) { mMinP = value; }
optional<SizeType32> SamplingConfig::getTopK() const { return mTopK; }
optional<RandomSeedType> SamplingConfig::getSeed() const { return mSeed; }
optional<FloatType> SamplingConfig::getTemperature() const { return mTemperature; }
optional<SizeType32> SamplingConfig::getMinTokens() const { return mMinTokens; }

OutputConfig::OutputConfig(bool logProbs, bool contextLogits, bool generationLogits, bool excludeInput, bool encoder,
                           bool perfMetrics, optional<std::vector<AdditionalModelOutput>>)
    : returnLogProbs(logProbs), returnContextLogits(contextLogits), returnGenerationLogits(generationLogits),
      excludeInputFromOutput(excludeInput), returnEncoderOutput(encoder), returnPerfMetrics(perfMetrics) {}

KvCacheRetentionConfig::TokenRangeRetentionConfig::TokenRangeRetentionConfig(
    SizeType32 start, optional<SizeType32> end, RetentionPriority worth,
    optional<std::chrono::milliseconds> duration)
    : tokenStart(start), tokenEnd(end), priority(worth), durationMs(duration) {
  if (worth < 0 || worth > 100) {
    throw std::invalid_argument("a retention priority must be 0 to 100");
  }
}

KvCacheRetentionConfig::KvCacheRetentionConfig(std::vector<TokenRangeRetentionConfig> const &ranges,
                                               RetentionPriority decodePriority,
                                               optional<std::chrono::milliseconds> decodeDuration, KvCacheTransferMode,
                                               std::string const &)
    : mRanges(ranges), mDecodePriority(decodePriority), mDecodeDuration(decodeDuration) {
  for (std::size_t one = 0; one < ranges.size(); one++) {
    for (std::size_t other = 0; other < one; other++) {
      bool const apart = ranges[other].tokenEnd.value_or(1 << 30) <= ranges[one].tokenStart ||
                         ranges[one].tokenEnd.value_or(1 << 30) <= ranges[other].tokenStart;
      if (!apart) {
        throw std::invalid_argument("retention ranges overlap");
      }
    }
  }
}
std::vector<KvCacheRetentionConfig::TokenRangeRetentionConfig>
KvCacheRetentionConfig::getTokenRangeRetentionConfigs() const {
  return mRanges;
}
RetentionPriority KvCacheRetentionConfig::getDecodeRetentionPriority() const { return mDecodePriority; }
optional<std::chrono::milliseconds> KvCacheRetentionConfig::getDecodeDurationMs() const { return mDecodeDuration; }

Request::Request(VecTokens tokens, SizeType32 maxTokens, bool streaming, SamplingConfig const &sampling,
                 OutputConfig const &output, optional<SizeType32> const &endId, optional<SizeType32> const &,
                 optional<std::vector<SizeType32>>, optional<std::list<VecTokens>>,
                 optional<std::list<VecTokens>> stopWords, optional<Tensor>, optional<ExternalDraftTokensConfig>,
                 optional<PromptTuningConfig>, optional<MultimodalInput>, optional<Tensor>, optional<MropeConfig>,
                 optional<LoraConfig>, optional<LookaheadDecodingConfig>, optional<KvCacheRetentionConfig> retention,
                 optional<std::string>, optional<LogitsPostProcessor>, optional<VecTokens>, optional<IdType> clientId,
                 bool, PriorityType priority, RequestType, optional<ContextPhaseParams>, optional<Tensor>,
                 optional<SizeType32>, optional<Tensor>, SizeType32, optional<EagleConfig>, optional<Tensor>,
                 optional<GuidedDecodingParams>, optional<SizeType32>, optional<MillisecondsType> allotted,
                 optional<CacheSaltIDType> salt)
    : mImpl(new Impl{std::move(tokens), maxTokens, streaming, sampling, output, endId, std::move(stopWords),
                     std::move(retention), clientId, priority, allotted, salt}) {
  if (mImpl->tokens.empty() || maxTokens <= 0) {
    throw std::invalid_argument("a request needs tokens, and must ask for some");
  }
}
Request::Request(Request const &other) : mImpl(new Impl(*other.mImpl)) {}
Request::Request(Request &&other) noexcept = default;
Request &Request::operator=(Request const &other) {
  mImpl.reset(new Impl(*other.mImpl));
  return *this;
}
Request &Request::operator=(Request &&other) noexcept = default;
Request::~Request() = default;
void Request::setStreaming(bool value) { mImpl->streaming = value; }
void Request::setSamplingConfig(SamplingConfig const &value) { mImpl->sampling = value; }
void Request::setOutputConfig(OutputConfig const &value) { mImpl->output = value; }
void Request::setEndId(SizeType32 value) { mImpl->endId = value; }
void Request::setStopWords(std::list<VecTokens> const &value) { mImpl->stopWords = value; }
void Request::setKvCacheRetentionConfig(KvCacheRetentionConfig const &value) { mImpl->retention = value; }
void Request::setClientId(IdType value) { mImpl->clientId = value; }
void Request::setPriority(PriorityType value) {
  if (!(value >= 0 && value <= 1)) {
    throw std::invalid_argument("a priority must be 0 to 1");
  }
  mImpl->priority = value;
}
void Request::setAllottedTimeMs(MillisecondsType value) { mImpl->allotted = value; }
void Request::setCacheSaltID(CacheSaltIDType value) { mImpl->salt = value; }
VecTokens Request::getInputTokenIds() const { return mImpl->tokens; }
SizeType32 Request::getMaxTokens() const { return mImpl->maxTokens; }
bool Request::getStreaming() const { return mImpl->streaming; }
SamplingConfig Request::getSamplingConfig() const { return mImpl->sampling; }
OutputConfig Request::getOutputConfig() const { return mImpl->output; }
optional<SizeType32> Request::getEndId() const { return mImpl->endId; }
optional<std::list<VecTokens>> Request::getStopWords() const { return mImpl->stopWords; }
optional<KvCacheRetentionConfig> Request::getKvCacheRetentionConfig() const { return mImpl->retention; }
optional<IdType> Request::getClientId() const { return mImpl->clientId; }
PriorityType Request::getPriority() const { return mImpl->priority; }
optional<MillisecondsType> Request::getAllottedTimeMs() const { return mImpl->allotted; }
optional<CacheSaltIDType> Request::getCacheSaltID() const { return mImpl->salt; }

class Response::Impl {
public:
  IdType request;
  std::variant<std::string, Result> content;
  optional<IdType> client;
};
Response::Response(IdType request, std::string error, optional<IdType> client)
    : mImpl(new Impl{request, std::move(error), client}) {}
Response::Response(IdType request, Result result, optional<IdType> client)
    : mImpl(new Impl{request, std::move(result), client}) {}
Response::Response(Response const &other) : mImpl(new Impl(*other.mImpl)) {}
Response::Response(Response &&other) noexcept = default;
Response &Response::operator=(Response const &other) {
  mImpl.reset(new Impl(*other.mImpl));
  return *this;
}
Response &Response::operator=(Response &&other) noexcept = default;
Response::~Response() = default;
IdType Response::getRequestId() const { return mImpl->request; }
optional<IdType> Response::getClientId() const { return mImpl->client; }
bool Response::hasError() const { return std::holds_alternative<std::string>(mImpl->content); }
std::string const &Response::getErrorMsg() const { return std::get<std::string>(mImpl->content); }
Result const &Response::getResult() const { return std::get<Result>(mImpl->content); }

SchedulerConfig::SchedulerConfig(CapacitySchedulerPolicy, optional<ContextChunkingPolicy>,
                                 optional<DynamicBatchConfig>) {}
ExtendedRuntimePerfKnobConfig::ExtendedRuntimePerfKnobConfig(bool, bool, bool, SizeType32) {}

KvCacheConfig::KvCacheConfig(bool, optional<SizeType32> const &maxTokens, optional<std::vector<SizeType32>> const &,
                             optional<SizeType32> const &, optional<FloatType> const &,
                             optional<std::size_t> const &host, bool, optional<FloatType> const &,
                             optional<RetentionPriority> offload, std::size_t events, bool, bool, bool, SizeType32,
                             optional<runtime::RuntimeDefaults> const &, std::uint64_t const &)
    : mMaxTokens(maxTokens), mHostCacheSize(host), mOffloadMinPriority(offload), mEventBufferMaxSize(events) {}
// Blocks are always used again, and never in part: what the bridge asks for is what there is.
void KvCacheConfig::setEnableBlockReuse(bool value) {
  if (!value) {
    throw std::invalid_argument("the double always uses blocks again");
  }
}
void KvCacheConfig::setEnablePartialReuse(bool value) {
  if (value) {
    throw std::invalid_argument("the double never uses a part of a block");
  }
}
void KvCacheConfig::setMaxTokens(optional<SizeType32> value) { mMaxTokens = value; }
void KvCacheConfig::setFreeGpuMemoryFraction(FloatType) {}
void KvCacheConfig::setHostCacheSize(std::size_t value) { mHostCacheSize = value; }
void KvCacheConfig::setSecondaryOffloadMinPriority(optional<RetentionPriority> value) { mOffloadMinPriority = value; }
void KvCacheConfig::setEventBufferMaxSize(std::size_t value) { mEventBufferMaxSize = value; }
optional<SizeType32> KvCacheConfig::getMaxTokens() const { return mMaxTokens; }
optional<std::size_t> KvCacheConfig::getHostCacheSize() const { return mHostCacheSize; }
optional<RetentionPriority> KvCacheConfig::getSecondaryOffloadMinPriority() const { return mOffloadMinPriority; }
std::size_t KvCacheConfig::getEventBufferMaxSize() const { return mEventBufferMaxSize; }

ExecutorConfig::ExecutorConfig(SizeType32, SchedulerConfig, KvCacheConfig cache, bool, bool, SizeType32, SizeType32,
                               BatchingType, optional<SizeType32> maxBatchSize, optional<SizeType32>,
                               optional<ParallelConfig>, optional<PeftCacheConfig> const &,
                               optional<LogitsPostProcessorConfig>, optional<DecodingConfig>, bool, float,
                               optional<SizeType32>, ExtendedRuntimePerfKnobConfig const &, optional<DebugConfig>,
                               SizeType32, std::uint64_t, optional<SpeculativeDecodingConfig>,
                               optional<GuidedDecodingConfig>, optional<std::vector<AdditionalModelOutput>>,
                               optional<CacheTransceiverConfig>, bool, bool, bool, bool)
    : mKvCache(std::move(cache)), mMaxBatchSize(maxBatchSize) {}
void ExecutorConfig::setMaxBatchSize(SizeType32 value) { mMaxBatchSize = value; }
void ExecutorConfig::setKvCacheConfig(KvCacheConfig const &value) { mKvCache = value; }
optional<SizeType32> ExecutorConfig::getMaxBatchSize() const { return mMaxBatchSize; }
KvCacheConfig ExecutorConfig::getKvCacheConfig() const { return mKvCache; }

KVCacheEvent::KVCacheEvent(IdType id, KVCacheEventData what, SizeType32 window, optional<SizeType32> rank)
    : eventId(id), data(std::move(what)), windowSize(window), attentionDpRank(rank) {}

KVCacheEventManager::KVCacheEventManager(
    std::shared_ptr<batch_manager::kv_cache_manager::BaseKVCacheManager> manager)
    : kvCacheManager(std::move(manager)) {}
std::deque<KVCacheEvent> KVCacheEventManager::getLatestEvents(optional<std::chrono::milliseconds> timeout) {
  return kvCacheManager->events(timeout);
}

} // namespace tensorrt_llm::executor
