// A double of the CUDA driver, for tests: memory of the host, kernels in the emulator, and no GPU anywhere.
//
// It has the functions that mainstay-kernels calls and no others, with the documented results. Work given to a stream is
// done when somebody waits for it or, by chance, at once; so what is read or freed too early shows. Every allocation ends
// at a page that nobody may touch. `mainstay_double_mode` says what is wrong with the machine.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "fibers.h"
#include "table.h"

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
              INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

struct Stream {
  std::deque<std::function<Result()>> work;
  Result broken = SUCCESS;
};

std::mutex lock;
std::string mode;
std::map<uint64_t, size_t> allocations;  // where to how many bytes
std::map<uint64_t, size_t> pinned;
std::set<Stream*> streams;
size_t used = 0;
uint64_t chance = 88172645463325252;

constexpr size_t MEMORY_BYTES = size_t{4} << 30;

bool is(const char* what) { return mode == what; }

size_t whole_pages(size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}

// Memory whose last byte, up to sixteen, lies before a page that faults.
uint64_t guarded(size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE), room = whole_pages(bytes);
  void* start = mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return 0;
  mprotect(static_cast<char*>(start) + room, page, PROT_NONE);
  return reinterpret_cast<uint64_t>(start) + room - (bytes + 255) / 256 * 256;
}

void release(uint64_t at, size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE), room = whole_pages(bytes);
  munmap(reinterpret_cast<void*>(at / page * page), room + page);
}

Result finish(Stream* stream) {
  while (!stream->work.empty() && stream->broken == SUCCESS) {
    stream->broken = stream->work.front()();
    stream->work.pop_front();
  }
  return stream->broken;
}

void finish_all() {
  for (Stream* stream : streams) finish(stream);
}

Result enqueue(Stream* stream, std::function<Result()> work) {
  if (streams.count(stream) == 0) return INVALID_VALUE;
  if (stream->broken != SUCCESS) return stream->broken;
  stream->work.push_back(std::move(work));
  chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
  return chance % 4 == 0 ? finish(stream) : SUCCESS;
}

// Whether the bytes lie in one allocation.
bool covers(const std::map<uint64_t, size_t>& in, uint64_t at, size_t bytes) {
  auto next = in.upper_bound(at);
  if (next == in.begin()) return false;
  --next;
  return at + bytes <= next->first + next->second;
}

void* host(uint64_t at) { return reinterpret_cast<void*>(at); }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// "", "no_device", "old_driver", "old_device", "no_memory" or "launch_fails", from now on.
void mainstay_double_mode(const char* what) {
  std::lock_guard<std::mutex> hold(lock);
  mode = what;
}

int cuInit(unsigned) { return is("no_device") ? NO_DEVICE : SUCCESS; }

int cuDriverGetVersion(int* version) {
  *version = is("old_driver") ? 11080 : 12040;
  return SUCCESS;
}

int cuDeviceGetCount(int* count) {
  *count = 1;
  return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = 0;
  return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetName(char* name, int length, int) {
  snprintf(name, length, "emulated device");
  return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 16: *value = 4; return SUCCESS;                          // multiprocessors
    case 75: *value = is("old_device") ? 7 : 8; return SUCCESS;   // compute capability
    case 76: *value = 0; return SUCCESS;
    case 97: *value = 227 << 10; return SUCCESS;                  // shared memory of a block that asks for more
    default: return INVALID_VALUE;
  }
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &allocations;
  return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void*) { return SUCCESS; }

int cuMemGetInfo_v2(size_t* free, size_t* total) {
  std::lock_guard<std::mutex> hold(lock);
  *free = is("no_memory") ? 0 : MEMORY_BYTES - used;
  *total = MEMORY_BYTES;
  return SUCCESS;
}

int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
  std::lock_guard<std::mutex> hold(lock);
  if (bytes == 0) return INVALID_VALUE;
  if (is("no_memory") || bytes > MEMORY_BYTES - used) return OUT_OF_MEMORY;
  *at = guarded(bytes);
  if (*at == 0) return OUT_OF_MEMORY;
  // Memory of a GPU is not zero; noise shows what reads it before it was written.
  if (bytes <= 64 << 20) memset(host(*at), 0x7f, bytes);
  allocations[*at] = bytes;
  used += bytes;
  return SUCCESS;
}

int cuMemFree_v2(uint64_t at) {
  std::lock_guard<std::mutex> hold(lock);
  auto found = allocations.find(at);
  if (found == allocations.end()) return INVALID_VALUE;
  finish_all();  // as the driver does
  release(at, found->second);
  used -= found->second;
  allocations.erase(found);
  return SUCCESS;
}

int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
  std::lock_guard<std::mutex> hold(lock);
  const uint64_t memory = bytes == 0 ? 0 : guarded(bytes);
  if (memory == 0) return bytes == 0 ? INVALID_VALUE : OUT_OF_MEMORY;
  pinned[memory] = bytes;
  *at = host(memory);
  return SUCCESS;
}

int cuMemFreeHost(void* at) {
  std::lock_guard<std::mutex> hold(lock);
  auto found = pinned.find(reinterpret_cast<uint64_t>(at));
  if (found == pinned.end()) return INVALID_VALUE;
  finish_all();
  release(found->first, found->second);
  pinned.erase(found);
  return SUCCESS;
}

int cuStreamCreate(Stream** stream, unsigned) {
  std::lock_guard<std::mutex> hold(lock);
  *stream = new Stream;
  streams.insert(*stream);
  return SUCCESS;
}

int cuStreamDestroy_v2(Stream* stream) {
  std::lock_guard<std::mutex> hold(lock);
  if (streams.erase(stream) == 0) return INVALID_VALUE;
  finish(stream);
  delete stream;
  return SUCCESS;
}

int cuStreamSynchronize(Stream* stream) {
  std::lock_guard<std::mutex> hold(lock);
  return streams.count(stream) == 0 ? INVALID_VALUE : finish(stream);
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
  std::lock_guard<std::mutex> hold(lock);
  if (!covers(allocations, to, bytes)) return INVALID_VALUE;
  if (covers(pinned, reinterpret_cast<uint64_t>(from), bytes)) {
    return enqueue(stream, [=] { return memcpy(host(to), from, bytes), SUCCESS; });
  }
  std::string copied(static_cast<const char*>(from), bytes);  // of other memory the driver keeps a copy
  return enqueue(stream, [=] { return memcpy(host(to), copied.data(), bytes), SUCCESS; });
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
  std::lock_guard<std::mutex> hold(lock);
  if (!covers(allocations, from, bytes)) return INVALID_VALUE;
  return enqueue(stream, [=] { return memcpy(to, host(from), bytes), SUCCESS; });
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
  std::lock_guard<std::mutex> hold(lock);
  if (!covers(allocations, to, bytes)) return INVALID_VALUE;
  return enqueue(stream, [=] { return memset(host(to), value, bytes), SUCCESS; });
}

int cuModuleLoadData(const void** module, const void* image) {
  if (std::string(static_cast<const char*>(image)).find(".version") == std::string::npos) return INVALID_IMAGE;
  *module = &kernels();
  return SUCCESS;
}
int cuModuleUnload(void*) { return SUCCESS; }

int cuModuleGetFunction(const Kernel** function, void*, const char* name) {
  for (const Kernel& kernel : kernels()) {
    if (std::string(name) == kernel.name) return *function = &kernel, SUCCESS;
  }
  return NOT_FOUND;
}

int cuFuncSetAttribute(const Kernel*, int attribute, int value) {
  return attribute == 8 && value <= 227 << 10 ? SUCCESS : INVALID_VALUE;  // shared memory of a block
}

int cuLaunchKernel(const Kernel* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared_bytes, Stream* stream, void** arguments, void** extra) {
  std::lock_guard<std::mutex> hold(lock);
  if (x == 0 || y == 0 || z != 1 || y > 65535 || threads_y != 1 || threads_z != 1 || extra != nullptr) return INVALID_VALUE;
  std::vector<std::vector<unsigned char>> given;
  for (size_t i = 0; i < kernel->argument_bytes.size(); i++) {
    const auto* bytes = static_cast<const unsigned char*>(arguments[i]);
    given.emplace_back(bytes, bytes + kernel->argument_bytes[i]);
  }
  const emulate::Grid grid{x, y, threads, shared_bytes};
  return enqueue(stream, [=]() -> Result {
    if (is("launch_fails")) return LAUNCH_FAILED;
    const std::string wrong = emulate::run(grid, [&] { kernel->call(given); });
    if (wrong.empty()) return SUCCESS;
    fprintf(stderr, "emulated device: %s: %s\n", kernel->name, wrong.c_str());
    return LAUNCH_FAILED;
  });
}

int cuGetErrorName(int code, const char** name) {
  static const std::map<int, const char*> names = {
      {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},         {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
      {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"}, {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
      {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"}};
  auto found = names.find(code);
  *name = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
  return SUCCESS;
}
int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }
}
#pragma GCC visibility pop
