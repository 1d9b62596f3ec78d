// What kernels need of a GPU beyond plain C++: conversions, copies into shared memory, matrix fragments, shuffles.
//
// The only file with inline PTX. The emulator (kernels/double) has the same functions for the CPU; kernels see these
// names alone, so what runs there is what runs here. Every function that speaks of a warp must be reached by all of its
// 32 lanes, and every thread of a block must reach every `sync_block`.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#ifdef MAINSTAY_EMULATE
#include "emulate.h"
#else

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define DEVICE __device__ __forceinline__
extern __shared__ __align__(128) u8 shared_memory[];

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }

// Two numbers rounded to bf16, the first in the low half.
DEVICE u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

DEVICE float from_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float inverse_root(float x) { return rsqrtf(x); }
DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// A product that the compiler may not join with an addition: results must not depend on what it joins.
DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }

DEVICE u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

// Sixteen bytes into shared memory, or zeros; they are there after `copies_wait` and a barrier.
DEVICE void copy_16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `left` of this thread's last commits are under way.
template <int left> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(left) : "memory"); }

// Four 8x8 matrices of 16-bit numbers; lanes 8i to 8i+7 give the rows of the i-th.
DEVICE void load_matrices(u32 (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

// sum[16x8] += a[16x16] b[16x8], bf16 in, f32 out.
DEVICE void multiply_tiles(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

constexpr u32 WARP = 32;

DEVICE u32 lane_index() { return thread_index() % WARP; }
DEVICE u32 warp_index() { return thread_index() / WARP; }
DEVICE float low_half(u32 packed) { return from_bits(packed << 16); }
DEVICE float high_half(u32 packed) { return from_bits(packed & 0xffff0000u); }
DEVICE float widen(u16 bits) { return from_bits(static_cast<u32>(bits) << 16); }
DEVICE u16 narrow(float x) { return static_cast<u16>(pack_bf16(x, 0.0f)); }

// The sum over a warp, by a tree of fixed order, in every lane.
DEVICE float warp_sum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = add(x, shuffle_xor(x, lanes));
  return x;
}
