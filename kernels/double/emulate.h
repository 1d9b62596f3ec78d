// What prim.cuh needs of a GPU, on a CPU: the threads of a block are fibers that meet where a GPU's threads would.
//
// A function of a warp waits until all 32 lanes called the same one, and is then done for all at once; a barrier until
// all threads of the block reached it. What only some reach is told as an error. Copies into shared memory arrive at
// once or only when they are waited for, by chance; shared memory holds noise at first; lanes run in an order of chance.
// This shows wrong indices, fragments, barriers and waits. It shows nothing of memory models, registers or speed.
#pragma once

#include <cmath>
#include <cstring>

#define KERNEL(threads) static void
#define DEVICE static inline

struct uint4 {
  u32 x, y, z, w;
};

namespace emulate {

enum class Op : u8 { Nothing, Sync, Shuffle, Load, LoadTransposed, Multiply };

// What a lane brings to a function of its warp, and takes from it.
struct Meeting {
  Op op;
  int lanes;
  float value;
  const void* row;
  u32 a[4], b[2], loaded[4];
  float sum[4];
};

extern thread_local u32 thread, block_at[2];
extern thread_local u8* shared;

Meeting& meeting();
void meet_warp();
void meet_block();
void copy(void* to, const void* from, bool there);
void commit();
void wait(int left);

}  // namespace emulate

#define shared_memory (emulate::shared)

DEVICE u32 thread_index() { return emulate::thread; }
DEVICE u32 block_x() { return emulate::block_at[0]; }
DEVICE u32 block_y() { return emulate::block_at[1]; }
DEVICE void sync_block() { emulate::meet_block(); }

DEVICE void sync_warp() {
  emulate::meeting().op = emulate::Op::Sync;
  emulate::meet_warp();
}

DEVICE float shuffle_xor(float value, int lanes) {
  emulate::Meeting& own = emulate::meeting();
  own.op = emulate::Op::Shuffle, own.value = value, own.lanes = lanes;
  emulate::meet_warp();
  return own.value;
}

DEVICE float from_bits(u32 bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// To the nearest, halves to even, as the instruction does.
DEVICE u32 round_bf16(float x) {
  u32 bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

DEVICE u32 pack_bf16(float low, float high) { return round_bf16(high) << 16 | round_bf16(low); }
DEVICE float exp2_fast(float x) { return exp2f(x); }
DEVICE float inverse_root(float x) { return 1.0f / sqrtf(x); }
DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float multiply(float a, float b) { return a * b; }
DEVICE float add(float a, float b) { return a + b; }
DEVICE float divide(float a, float b) { return a / b; }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }

DEVICE void copy_16(void* to, const void* from, bool there) { emulate::copy(to, from, there); }
DEVICE void copies_commit() { emulate::commit(); }
template <int left> DEVICE void copies_wait() { emulate::wait(left); }

DEVICE void load(u32 (&to)[4], const void* row, emulate::Op op) {
  emulate::Meeting& own = emulate::meeting();
  own.op = op, own.row = row;
  emulate::meet_warp();
  std::memcpy(to, own.loaded, sizeof to);
}
DEVICE void load_matrices(u32 (&to)[4], const void* row) { load(to, row, emulate::Op::Load); }
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) { load(to, row, emulate::Op::LoadTransposed); }

DEVICE void multiply_tiles(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  emulate::Meeting& own = emulate::meeting();
  own.op = emulate::Op::Multiply, own.b[0] = b0, own.b[1] = b1;
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.sum, sum, sizeof own.sum);
  emulate::meet_warp();
  std::memcpy(sum, own.sum, sizeof own.sum);
}
