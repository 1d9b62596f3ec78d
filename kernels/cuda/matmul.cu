// out[rows, n] = x[rows, k] weight[n, k]^T for bf16 matrices, with what follows a product done on its sums.
//
// Each sum is one chain of products over k in ascending order, sixteen at a time, in every tile, so that a row's bits do
// not depend on how many rows a step has. k is a multiple of BLOCK_K: rows of both matrices are padded with zeros.
#include "prim.cuh"

constexpr u32 BLOCK_K = 64;                // numbers of k brought in at once: 128 bytes, eight chunks of 16
constexpr u32 ROW_BYTES = BLOCK_K * 2;

struct Matmul {
  const u16* x;          // [rows][k]
  const u16* weight;     // [n][k]
  const float* bias;     // [n], or none
  void* out;
  u32 rows, n, k, stride;  // stride: numbers from row to row of out
};

enum class End {
  Bf16,   // out is bf16
  Add,    // out is f32 and is added to
  F32,    // out is f32
  Gated,  // columns are pairs of gate and up; out is bf16, half as wide: silu(gate) * up
};

// Where a chunk of 16 bytes of a row lies in shared memory: turned by the row, so that no two rows meet in a bank.
DEVICE u32 chunk_at(u32 row, u32 chunk) { return row * ROW_BYTES + ((chunk ^ (row & 7)) << 4); }

template <int TILE_ROWS, int THREADS>
DEVICE void bring(u8* to, const u16* from, u32 first, u32 count, u32 k, u32 at) {
  for (u32 i = thread_index(); i < TILE_ROWS * 8; i += THREADS) {
    const u32 row = i / 8, chunk = i % 8;
    const bool there = first + row < count;
    const u16* source = from + static_cast<u64>(there ? first + row : 0) * k + at + chunk * 8;
    copy_16(to + chunk_at(row, chunk), source, there);
  }
}

DEVICE float silu(float x) { return divide(x, add(1.0f, exp2_fast(multiply(x, -1.44269504f)))); }

template <End END>
DEVICE void finish(const Matmul& m, u32 row, u32 column, float a, float b) {
  if (row >= m.rows || column >= m.n) return;
  const bool pair = column + 1 < m.n;
  if (m.bias != nullptr) {
    a = add(a, m.bias[column]);
    if (pair) b = add(b, m.bias[column + 1]);
  }
  const u64 at = static_cast<u64>(row) * m.stride + (END == End::Gated ? column / 2 : column);
  if (END == End::Gated) {
    static_cast<u16*>(m.out)[at] = narrow(multiply(silu(a), b));
  } else if (END == End::Bf16) {
    static_cast<u16*>(m.out)[at] = narrow(a);
    if (pair) static_cast<u16*>(m.out)[at + 1] = narrow(b);
  } else {
    float* out = static_cast<float*>(m.out);
    out[at] = END == End::Add ? add(out[at], a) : a;
    if (pair) out[at + 1] = END == End::Add ? add(out[at + 1], b) : b;
  }
}

// A tile of TILE_M rows and TILE_N columns by WARPS_M x WARPS_N warps. Grid: tiles of rows x tiles of columns, so that
// blocks that run together share weights.
template <int TILE_M, int TILE_N, int WARPS_M, int WARPS_N, int STAGES, End END>
DEVICE void matmul(const Matmul& m) {
  constexpr int THREADS = WARPS_M * WARPS_N * 32;
  constexpr int TILES_M = TILE_M / WARPS_M / 16, TILES_N = TILE_N / WARPS_N / 8;
  constexpr u32 STAGE = (TILE_M + TILE_N) * ROW_BYTES;
  const u32 lane = lane_index(), warp = warp_index();
  const u32 first_row = block_x() * TILE_M, first_column = block_y() * TILE_N;
  const u32 own_row = warp / WARPS_N * (TILE_M / WARPS_M), own_column = warp % WARPS_N * (TILE_N / WARPS_N);
  float sums[TILES_M][TILES_N][4] = {};
  const u32 steps = m.k / BLOCK_K;
  auto bring_stage = [&](u32 step) {
    if (step < steps) {
      u8* stage = shared_memory + step % STAGES * STAGE;
      bring<TILE_M, THREADS>(stage, m.x, first_row, m.rows, m.k, step * BLOCK_K);
      bring<TILE_N, THREADS>(stage + TILE_M * ROW_BYTES, m.weight, first_column, m.n, m.k, step * BLOCK_K);
    }
    copies_commit();  // an empty one too, so that counts of commits are counts of stages
  };
  for (u32 step = 0; step < STAGES - 1; step++) bring_stage(step);
  for (u32 step = 0; step < steps; step++) {
    copies_wait<STAGES - 2>();
    sync_block();  // this stage is there, and nobody reads the one that is brought next
    bring_stage(step + STAGES - 1);
    const u8* x = shared_memory + step % STAGES * STAGE;
    const u8* weight = x + TILE_M * ROW_BYTES;
#pragma unroll
    for (u32 chunk = 0; chunk < 8; chunk += 4) {  // 32 of k: two products
      u32 a[TILES_M][2][4];
#pragma unroll
      for (int i = 0; i < TILES_M; i++) {
        const u32 row = own_row + i * 16 + lane % 16;
        load_matrices(a[i][0], x + chunk_at(row, chunk + lane / 16));
        load_matrices(a[i][1], x + chunk_at(row, chunk + 2 + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < TILES_N; j++) {
        u32 b[4];
        load_matrices(b, weight + chunk_at(own_column + j * 8 + lane % 8, chunk + lane / 8));
#pragma unroll
        for (int i = 0; i < TILES_M; i++) {
          multiply_tiles(sums[i][j], a[i][0], b[0], b[1]);
          multiply_tiles(sums[i][j], a[i][1], b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < TILES_M; i++) {
#pragma unroll
    for (int j = 0; j < TILES_N; j++) {
      const u32 row = first_row + own_row + i * 16 + lane / 4;
      const u32 column = first_column + own_column + j * 8 + lane % 4 * 2;
      finish<END>(m, row, column, sums[i][j][0], sums[i][j][1]);
      finish<END>(m, row + 8, column, sums[i][j][2], sums[i][j][3]);
    }
  }
}

// Names: matmul_ROWS_END. Up to 64 rows a tile has 32 columns, a strip of 8 for each warp, so that all of a GPU reads
// weights; eight stages keep enough bytes on their way.
#define NARROW(rows, name, end) \
  KERNEL(128) matmul_##rows##_##name(Matmul m) { matmul<rows, 32, 1, 4, 8, end>(m); }
#define WIDE(name, end) \
  KERNEL(256) matmul_128_##name(Matmul m) { matmul<128, 128, 2, 4, 3, end>(m); }
#define ENDS(name, end) NARROW(16, name, end) NARROW(32, name, end) NARROW(64, name, end) WIDE(name, end)
ENDS(bf16, End::Bf16)
ENDS(add, End::Add)
ENDS(f32, End::F32)
ENDS(gated, End::Gated)
