// Causal attention of ragged rows over the paged cache.
//
// A row is a query of one head; the heads that share keys are neighbours in a tile. Keys are taken in splits of
// SPLIT_KEYS positions on an absolute grid, STEP_KEYS at a time, with a running maximum within a split; splits are merged
// in ascending order, in registers or by `merge` from memory, by the same operations. So a row's bits do not depend on
// which rows share its tile, on how a prompt was cut, or on how splits were dealt to blocks.
#include "prim.cuh"

constexpr u32 SPLIT_KEYS = 256;
constexpr u32 STEP_KEYS = 32;
constexpr u32 STAGES = 2;
constexpr float NONE = -3.4e38f;  // a score that is none; a sum over it counts nothing

// Some rows of one sequence and some of its splits.
struct Unit {
  u32 row;          // the first query row in the batch
  u32 rows;         // how many: rows * group is at most the tile's
  u32 position;     // of the first row
  u32 sequence;     // its block table
  u32 split;        // the first split
  u32 splits;       // how many; those past a row's position count nothing
  u32 part;         // where its parts begin, in lines; ~0: the unit has all splits and writes the result
};

struct Attend {
  const u16* query;    // [rows][heads * head_dim], rows query_stride apart
  const u16* cache;    // this layer's part of block 0
  const u32* tables;   // [sequence][table_stride]: blocks
  const Unit* units;
  u16* out;            // as query
  float* parts;        // [line][head_dim]: sums of values that nothing divided yet
  float* parts_of;     // [line][2]: the maximum and the sum of weights
  u64 block_stride;    // numbers from block to block
  u32 kv_heads, group, block_shift, table_stride, query_stride;
  float scale;         // of products, times log2(e)
};

// What a lane knows of its two rows, which are lane / 4 and that plus 8 of a warp's sixteen.
template <int HEAD_DIM>
struct State {
  float values[HEAD_DIM / 8][4];
  float most[2], weights[2];
};

template <int HEAD_DIM>
DEVICE void clear(State<HEAD_DIM>& state) {
#pragma unroll
  for (int j = 0; j < HEAD_DIM / 8; j++) {
#pragma unroll
    for (int i = 0; i < 4; i++) state.values[j][i] = 0.0f;
  }
  for (int i = 0; i < 2; i++) state.most[i] = NONE, state.weights[i] = 0.0f;
}

// The factor for sums whose maximum was `before`, once it is `most`.
DEVICE float factor(float before, float most) { return before == NONE ? 0.0f : exp2_fast(add(before, -most)); }

// One more split behind those before: the same operations as in the kernel `merge`.
template <int HEAD_DIM>
DEVICE void merge_state(State<HEAD_DIM>& all, const State<HEAD_DIM>& split) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float most = larger(all.most[i], split.most[i]);
    const float before = factor(all.most[i], most), now = factor(split.most[i], most);
    all.weights[i] = multiply_add(split.weights[i], now, multiply(all.weights[i], before));
    all.most[i] = most;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j++) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; c++) {
        all.values[j][c] = multiply_add(split.values[j][c], now, multiply(all.values[j][c], before));
      }
    }
  }
}

// Shared memory: rows are one chunk longer than they are, so that no two rows of a matrix meet in a bank.
template <int HEAD_DIM> constexpr u32 LINE = HEAD_DIM * 2 + 16;
template <int HEAD_DIM> constexpr u32 STAGE_BYTES = 2 * STEP_KEYS * LINE<HEAD_DIM>;

// Brings the keys and values of STEP_KEYS positions, zeros where nobody may look.
template <int HEAD_DIM, int THREADS>
DEVICE void bring_keys(const Attend& a, u8* to, const u32* table, u32 kv_head, u32 first, u32 end) {
  constexpr u32 CHUNKS = HEAD_DIM / 8;
  const u32 block_tokens = 1u << a.block_shift;
  for (u32 i = thread_index(); i < 2 * STEP_KEYS * CHUNKS; i += THREADS) {
    const u32 line = i / CHUNKS, chunk = i % CHUNKS, which = line / STEP_KEYS, key = first + line % STEP_KEYS;
    const bool there = key < end;
    const u32 at = there ? key : end - 1;
    const u64 row = (static_cast<u64>(which) * a.kv_heads + kv_head) * block_tokens + (at & (block_tokens - 1));
    const u16* from = a.cache + table[at >> a.block_shift] * a.block_stride + row * HEAD_DIM + chunk * 8;
    copy_16(to + line * LINE<HEAD_DIM> + chunk * 16, from, there);
  }
}

// Sixteen rows' products with STEP_KEYS keys, weighted values added to `state`.
template <int HEAD_DIM>
DEVICE void step(State<HEAD_DIM>& state, const u32 (&query)[HEAD_DIM / 16][4], const u8* keys, u32 first, const u32 (&last)[2],
                 float scale) {
  const u32 lane = lane_index();
  const u8* values = keys + STEP_KEYS * LINE<HEAD_DIM>;
  float scores[STEP_KEYS / 8][4] = {};
#pragma unroll
  for (u32 pair = 0; pair < STEP_KEYS / 16; pair++) {
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++) {
      u32 b[4];
      const u32 key = pair * 16 + lane / 16 * 8 + lane % 8;
      load_matrices(b, keys + key * LINE<HEAD_DIM> + k * 32 + lane / 8 % 2 * 16);
      multiply_tiles(scores[2 * pair], query[k], b[0], b[1]);
      multiply_tiles(scores[2 * pair + 1], query[k], b[2], b[3]);
    }
  }
  float most[2] = {state.most[0], state.most[1]};
#pragma unroll
  for (u32 tile = 0; tile < STEP_KEYS / 8; tile++) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const u32 key = first + tile * 8 + lane % 4 * 2 + c % 2;
      scores[tile][c] = key <= last[c / 2] ? multiply(scores[tile][c], scale) : NONE;
      most[c / 2] = larger(most[c / 2], scores[tile][c]);
    }
  }
  float before[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    most[i] = larger(most[i], shuffle_xor(most[i], 1));
    most[i] = larger(most[i], shuffle_xor(most[i], 2));
    before[i] = factor(state.most[i], most[i]);
    state.most[i] = most[i];
    state.weights[i] = multiply(state.weights[i], before[i]);
  }
  u32 weights[STEP_KEYS / 16][4];
#pragma unroll
  for (u32 tile = 0; tile < STEP_KEYS / 8; tile++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float left = factor(scores[tile][2 * i], most[i]), right = factor(scores[tile][2 * i + 1], most[i]);
      state.weights[i] = add(state.weights[i], add(left, right));
      weights[tile / 2][tile % 2 * 2 + i] = pack_bf16(left, right);
    }
  }
#pragma unroll
  for (int j = 0; j < HEAD_DIM / 8; j++) {
#pragma unroll
    for (int c = 0; c < 4; c++) state.values[j][c] = multiply(state.values[j][c], before[c / 2]);
  }
#pragma unroll
  for (u32 pair = 0; pair < STEP_KEYS / 16; pair++) {
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 16; j++) {
      u32 b[4];
      const u32 key = pair * 16 + lane % 16;
      load_matrices_transposed(b, values + key * LINE<HEAD_DIM> + j * 32 + lane / 16 * 16);
      multiply_tiles(state.values[2 * j], weights[pair], b[0], b[1]);
      multiply_tiles(state.values[2 * j + 1], weights[pair], b[2], b[3]);
    }
  }
}

// Weights were summed by the four lanes of a row apart.
template <int HEAD_DIM>
DEVICE void close_split(State<HEAD_DIM>& state) {
  for (int i = 0; i < 2; i++) {
    state.weights[i] = add(state.weights[i], shuffle_xor(state.weights[i], 1));
    state.weights[i] = add(state.weights[i], shuffle_xor(state.weights[i], 2));
  }
}

template <int HEAD_DIM>
DEVICE void write_part(const Attend& a, const State<HEAD_DIM>& state, u64 line, u32 lines, u32 own) {
  const u32 lane = lane_index();
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const u32 row = own + lane / 4 + i * 8;
    if (row >= lines) continue;
    float* to = a.parts + (line + row) * HEAD_DIM;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j++) {
      for (int c = 0; c < 2; c++) to[j * 8 + lane % 4 * 2 + c] = state.values[j][2 * i + c];
    }
    if (lane % 4 == 0) {
      a.parts_of[(line + row) * 2] = state.most[i];
      a.parts_of[(line + row) * 2 + 1] = state.weights[i];
    }
  }
}

template <int HEAD_DIM>
DEVICE void write_result(const Attend& a, const State<HEAD_DIM>& state, const Unit& unit, u32 kv_head, u32 own) {
  const u32 lane = lane_index();
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const u32 row = own + lane / 4 + i * 8;
    if (row >= unit.rows * a.group) continue;
    u16* to = a.out + static_cast<u64>(unit.row + row / a.group) * a.query_stride +
              (kv_head * a.group + row % a.group) * HEAD_DIM;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j++) {
      const float left = divide(state.values[j][2 * i], state.weights[i]);
      const float right = divide(state.values[j][2 * i + 1], state.weights[i]);
      *reinterpret_cast<u32*>(to + j * 8 + lane % 4 * 2) = pack_bf16(left, right);
    }
  }
}

template <int HEAD_DIM, int WARPS>
DEVICE void load_query(const Attend& a, const Unit& unit, u32 kv_head, u32 (&query)[HEAD_DIM / 16][4]) {
  constexpr u32 CHUNKS = HEAD_DIM / 8;
  for (u32 i = thread_index(); i < WARPS * 16 * CHUNKS; i += WARPS * WARP) {
    const u32 row = i / CHUNKS, chunk = i % CHUNKS;
    const bool there = row < unit.rows * a.group;
    const u32 of = there ? row : 0;
    const u16* from = a.query + static_cast<u64>(unit.row + of / a.group) * a.query_stride +
                      (kv_head * a.group + of % a.group) * HEAD_DIM + chunk * 8;
    copy_16(shared_memory + row * LINE<HEAD_DIM> + chunk * 16, from, there);
  }
  copies_commit();
  copies_wait<0>();
  sync_block();
  const u32 lane = lane_index(), row = warp_index() * 16 + lane % 16;
#pragma unroll
  for (int k = 0; k < HEAD_DIM / 16; k++) {
    load_matrices(query[k], shared_memory + row * LINE<HEAD_DIM> + k * 32 + lane / 16 * 16);
  }
  sync_block();  // before keys take the place
}

// Grid: units x heads of keys.
template <int HEAD_DIM, int WARPS>
DEVICE void attend(const Attend& a) {
  const Unit unit = a.units[block_x()];
  const u32 kv_head = block_y(), lines = unit.rows * a.group, own = warp_index() * 16, lane = lane_index();
  const u32* table = a.tables + static_cast<u64>(unit.sequence) * a.table_stride;
  u32 query[HEAD_DIM / 16][4];
  load_query<HEAD_DIM, WARPS>(a, unit, kv_head, query);
  u32 last[2];  // the last key that a row sees
  for (int i = 0; i < 2; i++) {
    const u32 row = own + lane / 4 + i * 8;
    last[i] = unit.position + (row < lines ? row : lines - 1) / a.group;
  }
  const u32 begin = unit.split * SPLIT_KEYS, keys = unit.position + unit.rows;
  const u32 bound = (unit.split + unit.splits) * SPLIT_KEYS, end = keys < bound ? keys : bound;
  const u32 steps = (end - begin + STEP_KEYS - 1) / STEP_KEYS;
  auto bring = [&](u32 index) {
    if (index < steps) {
      u8* stage = shared_memory + index % STAGES * STAGE_BYTES<HEAD_DIM>;
      bring_keys<HEAD_DIM, WARPS * WARP>(a, stage, table, kv_head, begin + index * STEP_KEYS, end);
    }
    copies_commit();
  };
  State<HEAD_DIM> all, split;
  clear(all);
  clear(split);
  for (u32 index = 0; index < STAGES - 1; index++) bring(index);
  for (u32 index = 0; index < steps; index++) {
    bring(index + STAGES - 1);
    copies_wait<STAGES - 1>();
    sync_block();
    const u32 first = begin + index * STEP_KEYS;
    step<HEAD_DIM>(split, query, shared_memory + index % STAGES * STAGE_BYTES<HEAD_DIM>, first, last, a.scale);
    if ((index + 1) % (SPLIT_KEYS / STEP_KEYS) == 0 || index + 1 == steps) {
      close_split(split);
      if (unit.part == ~0u) {
        merge_state(all, split);
      } else {
        const u32 number = index / (SPLIT_KEYS / STEP_KEYS);
        const u64 line = unit.part + (static_cast<u64>(number) * a.kv_heads + kv_head) * lines;
        write_part(a, split, line, lines, own);
      }
      clear(split);
    }
    sync_block();  // before the next copy takes the place
  }
  if (unit.part == ~0u) write_result(a, all, unit, kv_head, own);
}

struct Merge {
  const Unit* units;     // `splits` of a unit: all of its rows' splits
  const float* parts;
  const float* parts_of;
  u16* out;
  u32 kv_heads, group, head_dim, query_stride;
};

constexpr u32 MERGE_THREADS = 128;

// Rows whose splits were dealt to several blocks. Grid: units x heads of keys.
KERNEL(MERGE_THREADS) merge(Merge m) {
  const Unit unit = m.units[block_x()];
  const u32 kv_head = block_y(), lines = unit.rows * m.group;
  for (u32 i = thread_index(); i < lines * m.head_dim; i += MERGE_THREADS) {
    const u32 row = i / m.head_dim, column = i % m.head_dim;
    float most = NONE, weights = 0.0f, value = 0.0f;
    for (u32 split = 0; split < unit.splits; split++) {
      const u64 line = unit.part + (static_cast<u64>(split) * m.kv_heads + kv_head) * lines + row;
      const float part_most = m.parts_of[line * 2], next = larger(most, part_most);
      const float before = factor(most, next), now = factor(part_most, next);
      weights = multiply_add(m.parts_of[line * 2 + 1], now, multiply(weights, before));
      value = multiply_add(m.parts[line * m.head_dim + column], now, multiply(value, before));
      most = next;
    }
    const u64 at = static_cast<u64>(unit.row + row / m.group) * m.query_stride +
                   (kv_head * m.group + row % m.group) * m.head_dim + column;
    m.out[at] = narrow(divide(value, weights));
  }
}

// Names: attend_HEADDIM_ROWS, rows being those of a tile: queries times the heads that share keys.
#define ATTEND(head_dim)                                                           \
  KERNEL(32) attend_##head_dim##_16(Attend a) { attend<head_dim, 1>(a); } \
  KERNEL(128) attend_##head_dim##_64(Attend a) { attend<head_dim, 4>(a); }
ATTEND(16)
ATTEND(32)
ATTEND(48)
ATTEND(64)
ATTEND(128)
