// Fibers, their meetings, and copies that arrive late.
#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../cuda/prim.cuh"

namespace emulate {

thread_local u32 thread, block_at[2];
thread_local u8* shared;

namespace {

constexpr size_t STACK_BYTES = 64 << 10;
constexpr u32 THREADS_MAX = 1024;

enum class State { Ready, AtWarp, AtBlock, Ended };

struct Copy {
  void* to;
  u8 bytes[16];
};

struct Fiber {
  void* stack_pointer;
  u8* stack;
  State state;
  Meeting meeting;
  std::vector<std::vector<Copy>> commits;
  std::vector<Copy> open;
};

struct Machine {
  std::vector<Fiber> fibers;
  void* scheduler;
  const std::function<void()>* kernel;
  std::string wrong;
  u8 *shared_begin, *shared_end;
  uint64_t chance = 0x9e3779b97f4a7c15;
};

thread_local Machine machine;

u32 draw() {
  machine.chance ^= machine.chance << 13, machine.chance ^= machine.chance >> 7, machine.chance ^= machine.chance << 17;
  return static_cast<u32>(machine.chance >> 32);
}

void complain(const std::string& what) {
  if (machine.wrong.empty()) machine.wrong = what + " in thread " + std::to_string(thread);
}

}  // namespace

// Saves the callee's registers and the stack pointer to `*from`, and goes on where `to` was saved.
extern "C" void mainstay_switch_fiber(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type mainstay_switch_fiber, @function
mainstay_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int SAVED_WORDS = 6;
#else
#error "the emulator switches fibers on x86-64 only; leave its tests out elsewhere"
#endif

namespace {

void leave(State state) {
  Fiber& own = machine.fibers[thread];
  own.state = state;
  mainstay_switch_fiber(&own.stack_pointer, machine.scheduler);
}

void enter_fiber() {
  (*machine.kernel)();
  leave(State::Ended);
  std::abort();  // nobody goes on with what has ended
}

void prepare(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    fiber.stack = static_cast<u8*>(stack);
  }
  // As if it had been called: the address to go to, where a call leaves the stack sixteen bytes and eight.
  void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES) - 2;
  *top = reinterpret_cast<void*>(&enter_fiber);
  fiber.stack_pointer = top - SAVED_WORDS;
  fiber.state = State::Ready;
  fiber.commits.clear();
  fiber.open.clear();
}

void shuffle(Fiber* lanes) {
  float values[WARP];
  for (u32 i = 0; i < WARP; i++) values[i] = lanes[i].meeting.value;
  for (u32 i = 0; i < WARP; i++) lanes[i].meeting.value = values[(i ^ lanes[i].meeting.lanes) % WARP];
}

void load(Fiber* lanes, bool transposed) {
  const u16* rows[WARP];
  for (u32 i = 0; i < WARP; i++) {
    const u8* row = static_cast<const u8*>(lanes[i].meeting.row);
    if (row < machine.shared_begin || row + 16 > machine.shared_end || reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      complain("a row of a matrix outside shared memory or not at sixteen bytes");
      return;
    }
    rows[i] = reinterpret_cast<const u16*>(row);
  }
  for (u32 i = 0; i < WARP; i++) {
    for (u32 matrix = 0; matrix < 4; matrix++) {
      const u32 row = i / 4, column = i % 4 * 2;
      const u16* const* of = rows + matrix * 8;
      const u32 low = transposed ? of[column][row] : of[row][column];
      const u32 high = transposed ? of[column + 1][row] : of[row][column + 1];
      lanes[i].meeting.loaded[matrix] = low | high << 16;
    }
  }
}

// Fragments as the PTX manual lays them out for m16n8k16.
void multiply(Fiber* lanes) {
  float a[16][16], b[16][8];
  for (u32 i = 0; i < WARP; i++) {
    const Meeting& own = lanes[i].meeting;
    const u32 row = i / 4, pair = i % 4 * 2;
    for (u32 part = 0; part < 4; part++) {
      a[row + part % 2 * 8][pair + part / 2 * 8] = low_half(own.a[part]);
      a[row + part % 2 * 8][pair + part / 2 * 8 + 1] = high_half(own.a[part]);
    }
    for (u32 part = 0; part < 2; part++) {
      b[pair + part * 8][row] = low_half(own.b[part]);
      b[pair + part * 8 + 1][row] = high_half(own.b[part]);
    }
  }
  float sums[16][8] = {};
  for (u32 i = 0; i < 16; i++) {
    for (u32 k = 0; k < 16; k++) {
      for (u32 j = 0; j < 8; j++) sums[i][j] += a[i][k] * b[k][j];
    }
  }
  for (u32 i = 0; i < WARP; i++) {
    for (u32 part = 0; part < 4; part++) lanes[i].meeting.sum[part] += sums[i / 4 + part / 2 * 8][i % 4 * 2 + part % 2];
  }
}

void carry_out(Fiber* lanes) {
  const Op op = lanes[0].meeting.op;
  for (u32 i = 1; i < WARP; i++) {
    if (lanes[i].meeting.op != op) return complain("lanes of a warp at different functions");
  }
  if (op == Op::Shuffle) shuffle(lanes);
  if (op == Op::Load || op == Op::LoadTransposed) load(lanes, op == Op::LoadTransposed);
  if (op == Op::Multiply) multiply(lanes);
}

void resume(u32 number) {
  thread = number;
  mainstay_switch_fiber(&machine.scheduler, machine.fibers[number].stack_pointer);
}

// Runs a warp until all of its lanes wait for others or have ended.
void run_warp(u32 warp) {
  Fiber* lanes = &machine.fibers[warp * WARP];
  for (;;) {
    const u32 first = draw();
    u32 waiting = 0;
    for (u32 i = 0; i < WARP; i++) {
      const u32 lane = (first + i) % WARP;
      if (lanes[lane].state == State::Ready) resume(warp * WARP + lane);
      if (!machine.wrong.empty()) return;
      waiting += lanes[lane].state == State::AtWarp;
    }
    if (waiting == 0) return;
    if (waiting < WARP) return complain("a function of a warp that not all of its lanes called");
    carry_out(lanes);
    for (u32 i = 0; i < WARP; i++) lanes[i].state = State::Ready;
  }
}

void run_block(u32 threads) {
  for (u32 i = 0; i < threads; i++) prepare(machine.fibers[i]);
  for (u8* at = machine.shared_begin; at < machine.shared_end; at++) *at = static_cast<u8>(draw() | 0x70);
  for (;;) {
    const u32 warps = threads / WARP, first = draw();
    for (u32 i = 0; i < warps && machine.wrong.empty(); i++) run_warp((first + i) % warps);
    if (!machine.wrong.empty()) return;
    u32 ended = 0;
    for (u32 i = 0; i < threads; i++) ended += machine.fibers[i].state == State::Ended;
    if (ended == threads) return;
    if (ended > 0) return complain("a barrier that not all threads reach");
    for (u32 i = 0; i < threads; i++) machine.fibers[i].state = State::Ready;
  }
}

}  // namespace

Meeting& meeting() { return machine.fibers[thread].meeting; }
void meet_warp() { leave(State::AtWarp); }
void meet_block() { leave(State::AtBlock); }

void copy(void* to, const void* from, bool there) {
  Copy made{to, {}};
  u8* target = static_cast<u8*>(to);
  if (target < machine.shared_begin || target + 16 > machine.shared_end ||
      reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    return complain("a copy outside shared memory or not at sixteen bytes");
  }
  if (there) std::memcpy(made.bytes, from, 16);
  if (draw() % 2 == 0) {
    std::memcpy(to, made.bytes, 16);
  } else {
    machine.fibers[thread].open.push_back(made);
  }
}

void commit() {
  Fiber& own = machine.fibers[thread];
  own.commits.push_back(std::move(own.open));
  own.open.clear();
}

void wait(int left) {
  auto& commits = machine.fibers[thread].commits;
  while (commits.size() > static_cast<size_t>(left)) {
    for (const Copy& made : commits.front()) std::memcpy(made.to, made.bytes, 16);
    commits.erase(commits.begin());
  }
}

std::string run(const Grid& grid, const std::function<void()>& kernel) {
  if (grid.threads == 0 || grid.threads > THREADS_MAX || grid.threads % WARP != 0) return "blocks are whole warps";
  if (machine.fibers.empty()) machine.fibers.resize(THREADS_MAX);
  std::vector<u8> memory(grid.shared_bytes + 128);
  u8* begin = memory.data();
  begin += (128 - reinterpret_cast<uintptr_t>(begin) % 128) % 128;
  machine.shared_begin = shared = begin;
  machine.shared_end = begin + grid.shared_bytes;
  machine.kernel = &kernel;
  machine.wrong.clear();
  for (block_at[1] = 0; block_at[1] < grid.y; block_at[1]++) {
    for (block_at[0] = 0; block_at[0] < grid.x && machine.wrong.empty(); block_at[0]++) run_block(grid.threads);
  }
  return machine.wrong;
}

}  // namespace emulate
