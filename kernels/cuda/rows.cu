// Kernels that work row by row: embedding, norms, head norms with rotation and the write into the cache.
//
// Rows are tokens of a step. Each result depends on its own row alone, and sums are trees of fixed order.
#include "prim.cuh"

constexpr u32 ROW_THREADS = 256;
constexpr u32 TURN_WARPS = 4;

// residual[row] = table[tokens[row]]; `hidden` numbers, table rows `stride` apart.
KERNEL(ROW_THREADS) embed(const u32* tokens, const u16* table, u32 stride, u32 hidden, float* residual) {
  const u16* from = table + static_cast<u64>(tokens[block_x()]) * stride;
  float* to = residual + static_cast<u64>(block_x()) * hidden;
  for (u32 i = thread_index(); i < hidden; i += ROW_THREADS) to[i] = widen(from[i]);
}

// normed[row] = weight * residual[row] / root of its mean square, rounded once; normed rows `stride` apart.
KERNEL(ROW_THREADS) rms_norm(const float* residual, const float* weight, u32 hidden, float epsilon, u16* normed, u32 stride) {
  const float* from = residual + static_cast<u64>(block_x()) * hidden;
  u16* to = normed + static_cast<u64>(block_x()) * stride;
  float* parts = reinterpret_cast<float*>(shared_memory);
  float squares = 0.0f;
  for (u32 i = thread_index(); i < hidden; i += ROW_THREADS) squares = multiply_add(from[i], from[i], squares);
  squares = warp_sum(squares);
  if (lane_index() == 0) parts[warp_index()] = squares;
  sync_block();
  float all = 0.0f;
  for (u32 i = 0; i < ROW_THREADS / WARP; i++) all = add(all, parts[i]);
  const float scale = inverse_root(add(divide(all, static_cast<float>(hidden)), epsilon));
  for (u32 i = thread_index(); i < hidden; i += ROW_THREADS) to[i] = narrow(multiply(multiply(from[i], scale), weight[i]));
}

// to[i] = from[rows[i]]; `chunks` pieces of 16 bytes a row.
KERNEL(ROW_THREADS) gather_rows(const uint4* from, const u32* rows, u32 chunks, uint4* to) {
  const uint4* row = from + static_cast<u64>(rows[block_x()]) * chunks;
  for (u32 i = thread_index(); i < chunks; i += ROW_THREADS) to[static_cast<u64>(block_x()) * chunks + i] = row[i];
}

struct Turn {
  const u16* qkv;            // [rows][(heads + 2 kv_heads) * head_dim]
  const float* query_norm;   // [head_dim], or none
  const float* key_norm;
  const float* angles;       // [position][half cosines, half sines]
  const u32* positions;      // of the rows
  const u32* places;         // of the rows in the cache: block * block_tokens + slot
  u16* query;                // [rows][heads * head_dim], rows query_stride apart
  u16* cache;                // this layer's part of block 0
  u64 block_stride;          // numbers from block to block
  u32 heads, kv_heads, head_dim, half, block_tokens, query_stride;
  float epsilon;
};

// One warp for each head of each row: norm, rotation, and where it belongs. Grid: rows x heads of all kinds, four at once.
KERNEL(TURN_WARPS* WARP) turn(Turn t) {
  const u32 row = block_x(), head = block_y() * TURN_WARPS + warp_index(), lane = lane_index();
  const u32 all = t.heads + 2 * t.kv_heads;
  if (head >= all) return;  // the whole warp, and no barrier follows
  const u16* from = t.qkv + (static_cast<u64>(row) * all + head) * t.head_dim;
  const bool is_query = head < t.heads, is_value = head >= t.heads + t.kv_heads;
  u16* to;
  if (is_query) {
    to = t.query + static_cast<u64>(row) * t.query_stride + head * t.head_dim;
  } else {
    const u32 place = t.places[row], which = is_value ? 1 : 0, kv_head = head - t.heads - which * t.kv_heads;
    const u64 line = (static_cast<u64>(which) * t.kv_heads + kv_head) * t.block_tokens + place % t.block_tokens;
    to = t.cache + (place / t.block_tokens) * t.block_stride + line * t.head_dim;
  }
  const float* weight = is_query ? t.query_norm : t.key_norm;
  float scale = 1.0f;
  if (!is_value && weight != nullptr) {
    float squares = 0.0f;
    for (u32 i = lane; i < t.head_dim; i += WARP) squares = multiply_add(widen(from[i]), widen(from[i]), squares);
    scale = inverse_root(add(divide(warp_sum(squares), static_cast<float>(t.head_dim)), t.epsilon));
  }
  const float* angles = t.angles + static_cast<u64>(t.positions[row]) * 2 * t.half;
  for (u32 i = lane; i < t.head_dim; i += WARP) {
    if (is_value) {
      to[i] = from[i];
      continue;
    }
    const bool turns = i < 2 * t.half, first = i < t.half;
    const u32 other = first ? i + t.half : i - t.half, angle = first ? i : i - t.half;
    float x = widen(from[i]);
    if (weight != nullptr) x = multiply(multiply(x, scale), weight[i]);
    if (turns) {
      float y = widen(from[other]);
      if (weight != nullptr) y = multiply(multiply(y, scale), weight[other]);
      const float cosine = angles[angle], sine = angles[t.half + angle];
      x = multiply_add(first ? -y : y, sine, multiply(x, cosine));
    }
    to[i] = narrow(x);
  }
}
