// SPDX-License-Identifier: Apache-2.0
//
// A double of TensorRT-LLM's Executor for tests. It computes nothing: its tokens are a hash of what stands before them,
// so that a request that was resumed, or ran among others, says the same. What is real about it is what surrounds a
// model: a queue by priority, batches, blocks, events, ends of every kind, and, by its settings, faults.
#include "impl.h"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <utility>

namespace tensorrt_llm::batch_manager::kv_cache_manager {

std::deque<executor::KVCacheEvent> BaseKVCacheManager::events(std::optional<std::chrono::milliseconds> timeout) {
  auto taken = queue.take(timeout);
  if (!taken.empty() && settings.is_due("events_throw_other_at", ++batches)) {
    throw 42;
  }
  return taken;
}

} // namespace tensorrt_llm::batch_manager::kv_cache_manager

namespace tensorrt_llm::executor {

using batch_manager::kv_cache_manager::BaseKVCacheManager;
using trtllm_double::Cache;
using trtllm_double::Clock;
using trtllm_double::mix;
using trtllm_double::Table;

namespace {

struct Live {
  IdType id;
  Request request;
  std::vector<TokenIdType> tokens;
  std::size_t prompt;
  SizeType32 tokens_max;
  std::optional<std::uint64_t> salt;
  std::uint64_t state;
  Clock::time_point arrival, scheduled;
  Table table;
  bool is_cancelled = false;
};

std::uint64_t seed_of(SamplingConfig const &sampling) {
  return sampling.getTopK() == 1 ? 0 : mix(7, sampling.getSeed().value_or(1));
}

} // namespace

class Executor::Impl {
public:
  Impl(std::filesystem::path const &folder, ExecutorConfig const &config)
      : settings(folder), manager(std::make_shared<BaseKVCacheManager>(settings)),
        cache(number("block_tokens", 16), number("blocks", 192), number("host_blocks", 0),
              config.getKvCacheConfig().getSecondaryOffloadMinPriority().value_or(30), manager->queue),
        batch(config.getMaxBatchSize().value_or(number("batch", 16))) {
    if (settings.get("open_throws_std") != 0) {
      throw std::runtime_error("the double was told to fail at its start");
    }
    if (settings.get("open_throws_other") != 0) {
      throw 42;
    }
    manager->queue.set_capacity(config.getKvCacheConfig().getEventBufferMaxSize());
    if (settings.get("tells_no_cache") == 0) {
      manager->queue.add(KVCacheCreatedData{{cache.total(), number("host_blocks", 0)}});
    }
    manager->queue.flush();
    events = std::make_shared<KVCacheEventManager>(manager);
    thread = std::thread([this] { run(); });
  }

  ~Impl() { stop(); }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stopped = true;
      work.notify_all();
      ready.notify_all();
    }
    manager->queue.stop();
    if (thread.joinable()) {
      thread.join();
    }
  }

  IdType enqueue(Request const &request) {
    std::lock_guard<std::mutex> lock(mutex);
    enqueued += 1;
    if (settings.is_due("enqueue_throws_std_at", enqueued)) {
      throw std::runtime_error("the double was told to refuse this one");
    }
    if (settings.is_due("enqueue_throws_other_at", enqueued)) {
      throw 42;
    }
    if (stopped || is_shut) {
      throw std::runtime_error("the executor has been shut down");
    }
    IdType const id = ++last_id;
    auto tokens = request.getInputTokenIds();
    std::size_t const prompt = tokens.size();
    std::uint64_t state = seed_of(request.getSamplingConfig());
    for (auto const token : tokens) {
      state = mix(state, static_cast<std::uint32_t>(token));
    }
    Live live{id, request, std::move(tokens), prompt, request.getMaxTokens(), request.getCacheSaltID(), state,
              Clock::now(), {}, {}};
    auto const later = [&](Live const &other) { return other.request.getPriority() < request.getPriority(); };
    waiting.insert(std::find_if(waiting.begin(), waiting.end(), later), std::move(live));
    work.notify_all();
    return id;
  }

  void cancel(IdType id) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto *list : {&waiting, &running}) {
      for (auto &live : *list) {
        live.is_cancelled = live.is_cancelled || live.id == id;
      }
    }
    work.notify_all();
  }

  std::vector<Response> await(std::optional<std::chrono::milliseconds> const &timeout) {
    std::unique_lock<std::mutex> lock(mutex);
    auto const come = [this] { return !responses.empty() || stopped; };
    if (timeout) {
      ready.wait_for(lock, *timeout, come);
    } else {
      ready.wait(lock, come);
    }
    auto taken = std::exchange(responses, {});
    if (!taken.empty()) {
      awaited += 1;
      if (settings.is_due("await_throws_std_at", awaited)) {
        throw std::runtime_error("the double was told to fail while it is awaited");
      }
      if (settings.is_due("await_throws_other_at", awaited)) {
        throw 42;
      }
    }
    return taken;
  }

  std::deque<IterationStats> stats() {
    std::lock_guard<std::mutex> lock(mutex);
    return std::exchange(steps, {});
  }

  bool can_enqueue() const {
    std::lock_guard<std::mutex> lock(mutex);
    return !stopped && !is_shut;
  }

  std::shared_ptr<KVCacheEventManager> events;

private:
  int number(char const *key, int otherwise) const { return static_cast<int>(settings.get(key, otherwise)); }

  void run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      work.wait(lock, [this] { return stopped || (!is_shut && !(waiting.empty() && running.empty())); });
      if (stopped) {
        return;
      }
      step();
      manager->queue.flush();
      ready.notify_all();
      lock.unlock();
      auto const pause = std::chrono::microseconds(settings.get("step_us", 20));
      pause.count() > 0 ? std::this_thread::sleep_for(pause) : std::this_thread::yield();
      lock.lock();
    }
  }

  // One iteration: those that were cancelled go, those for whom there is room come, and each says a token or several.
  void step() {
    auto const now = Clock::now();
    sweep(waiting, now);
    sweep(running, now);
    while (!waiting.empty() && static_cast<int>(running.size()) < batch && admit(now)) {
    }
    for (auto live = running.begin(); live != running.end();) {
      live = advance(*live) ? running.erase(live) : std::next(live);
    }
    KvCacheStats const held{cache.total(), cache.total() - cache.used(), cache.used(), cache.block_tokens()};
    steps.push_back(IterationStats{static_cast<SizeType32>(running.size()), static_cast<SizeType32>(waiting.size()),
                                   held, InflightBatchingStats{0}});
    while (steps.size() > ExecutorConfig::kDefaultIterStatsMaxIterations) {
      steps.pop_front();
    }
  }

  void sweep(std::list<Live> &list, Clock::time_point now) {
    for (auto live = list.begin(); live != list.end();) {
      auto const allotted = live->request.getAllottedTimeMs();
      bool const is_late = allotted && live->arrival + *allotted <= now;
      if (live->is_cancelled || is_late) {
        hits = live->table.hits;
        cache.release(live->table);
        say(*live, {}, live->is_cancelled ? FinishReason::kCANCELLED : FinishReason::kTIMED_OUT);
        live = list.erase(live);
      } else {
        ++live;
      }
    }
  }

  // Takes the first of the queue in, or ends it with an error. False where it has to wait.
  bool admit(Clock::time_point now) {
    Live &live = waiting.front();
    int const in_all = static_cast<int>(live.prompt) + live.tokens_max;
    bool const is_due = settings.is_due("error_response_at", admitted + 1);
    bool const is_long = in_all > number("context", 2048) || !cache.can_ever_hold(in_all);
    if (is_due || is_long) {
      admitted += 1;
      auto const words = is_long ? "the request is longer than the context or the cache" : "the double was told to fail";
      responses.emplace_back(live.id, std::string(words), live.request.getClientId());
      waiting.pop_front();
      return true;
    }
    auto table = cache.admit(live.salt.value_or(0), live.tokens, in_all);
    if (!table) {
      return false;
    }
    admitted += 1;
    live.table = std::move(*table);
    live.scheduled = now;
    cache.store(live.table, live.salt.value_or(0), live.tokens, live.prompt, live.request.getKvCacheRetentionConfig(),
                false);
    running.splice(running.end(), waiting, waiting.begin());
    return true;
  }

  // Whether it has ended.
  bool advance(Live &live) {
    VecTokens said;
    FinishReason finish = FinishReason::kNOT_FINISHED;
    int const most = 1 + static_cast<int>(live.state % static_cast<std::uint64_t>(number("tokens_per_step", 1)));
    while (static_cast<int>(said.size()) < most && finish == FinishReason::kNOT_FINISHED) {
      auto const token = static_cast<TokenIdType>(live.state % static_cast<std::uint64_t>(number("vocab", 1000)));
      live.state = mix(live.state, static_cast<std::uint32_t>(token));
      live.tokens.push_back(token);
      said.push_back(token);
      finish = finish_of(live, token);
    }
    bool const is_final = finish != FinishReason::kNOT_FINISHED;
    hits = live.table.hits;
    if (is_final) {
      // The last token's keys and values were never computed.
      std::vector<TokenIdType> const computed(live.tokens.begin(), live.tokens.end() - 1);
      cache.store(live.table, live.salt.value_or(0), computed, live.prompt, live.request.getKvCacheRetentionConfig(),
                  true);
      cache.release(live.table);
      if (finish == FinishReason::kEND_ID && settings.get("hides_end") != 0) {
        said.pop_back();
      }
    }
    say(live, std::move(said), finish);
    if (is_final && settings.is_due("shuts_down_after", ++ended)) {
      is_shut = true;
    }
    return is_final;
  }

  FinishReason finish_of(Live const &live, TokenIdType token) const {
    auto const said = static_cast<SizeType32>(live.tokens.size() - live.prompt);
    if (said >= live.request.getSamplingConfig().getMinTokens().value_or(0)) {
      if (live.request.getEndId() == token) {
        return FinishReason::kEND_ID;
      }
      auto const words = live.request.getStopWords();
      if (words && std::find(words->begin(), words->end(), VecTokens{token}) != words->end()) {
        return FinishReason::kSTOP_WORDS;
      }
    }
    return said >= live.tokens_max ? FinishReason::kLENGTH : FinishReason::kNOT_FINISHED;
  }

  void say(Live const &live, VecTokens tokens, FinishReason finish) {
    Result result{};
    result.isFinal = result.isSequenceFinal = finish != FinishReason::kNOT_FINISHED;
    result.outputTokenIds = {std::move(tokens)};
    result.finishReasons = {finish};
    if (live.request.getOutputConfig().returnPerfMetrics && live.scheduled != Clock::time_point{}) {
      RequestPerfMetrics metrics;
      metrics.timingMetrics.arrivalTime = live.arrival;
      metrics.timingMetrics.firstScheduledTime = live.scheduled;
      metrics.kvCacheMetrics.numReusedBlocks = hits;
      result.requestPerfMetrics = metrics;
    }
    responses.emplace_back(live.id, std::move(result), live.request.getClientId());
  }

  trtllm_double::Settings settings;
  std::shared_ptr<BaseKVCacheManager> manager;
  Cache cache;
  int batch;
  // How many blocks the request that speaks had found.
  int hits = 0;
  bool stopped = false, is_shut = false;
  std::int64_t enqueued = 0, admitted = 0, awaited = 0, ended = 0;
  IdType last_id = 0;
  std::list<Live> waiting, running;
  std::vector<Response> responses;
  std::deque<IterationStats> steps;
  mutable std::mutex mutex;
  std::condition_variable work, ready;
  std::thread thread;
};

Executor::Executor(std::filesystem::path const &folder, ModelType, ExecutorConfig const &config)
    : mImpl(new Impl(folder, config)) {}
Executor::~Executor() = default;
IdType Executor::enqueueRequest(Request const &request) { return mImpl->enqueue(request); }
std::vector<Response> Executor::awaitResponses(std::optional<std::chrono::milliseconds> const &timeout) {
  return mImpl->await(timeout);
}
void Executor::cancelRequest(IdType id) { mImpl->cancel(id); }
void Executor::shutdown() { mImpl->stop(); }
std::deque<IterationStats> Executor::getLatestIterationStats() { return mImpl->stats(); }
bool Executor::canEnqueueRequests() const { return mImpl->can_enqueue(); }
std::optional<std::shared_ptr<KVCacheEventManager>> Executor::getKVCacheEventManager() const { return mImpl->events; }

} // namespace tensorrt_llm::executor

// The double has no layers.
extern "C" bool initTrtLlmPlugins(void *, char const *) { return true; }
