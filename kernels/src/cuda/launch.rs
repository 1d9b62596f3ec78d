//! The kernels by name, each launched by a function that checks what it is given.
//!
//! Lengths are checked here, indices in the plan; so no launch reads or writes outside its buffers. Structures are those
//! of the sources in `kernels/cuda`, field by field.

use std::ffi::c_void;
use std::sync::Arc;

use super::PTX;
use super::driver::{Buffer, Context, CudaError, Function, Module};
use super::matrix::{DeviceCache, Matrix, PAD};
use super::plan::{Piece, Plan, TILE_ROWS};

/// Numbers of a head that attention has kernels for.
pub const HEAD_DIMS: [usize; 5] = [16, 32, 48, 64, 128];

const ROW_THREADS: u32 = 256;
const TURN_WARPS: u32 = 4;
const MERGE_THREADS: u32 = 128;
/// Bytes of a row of a product's tile in shared memory.
const TILE_ROW_BYTES: u32 = 128;
/// Keys that attention brings in at once, and how many such steps are under way.
const STEP_KEYS: u32 = 32;
const STAGES: u32 = 2;

/// What is done with the sums of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Written as bf16.
    Bf16,
    /// Added to f32 numbers.
    Add,
    /// Written as f32.
    F32,
    /// Columns are pairs of gate and up: `silu(gate) * up`, as bf16.
    Gated,
}

impl End {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Bf16, "bf16"), (Self::Add, "add"), (Self::F32, "f32"), (Self::Gated, "gated")];

    /// Bytes of a row of `stride` numbers of the result.
    fn row_bytes(self, stride: usize) -> usize {
        stride * if matches!(self, Self::Bf16 | Self::Gated) { 2 } else { 4 }
    }
}

/// A product's tile: rows, columns, threads, stages.
const TILES: [(u32, u32, u32, u32); 4] =
    [(16, 32, 128, 8), (32, 32, 128, 8), (64, 32, 128, 8), (128, 128, 256, 3)];

/// As in `matmul.cu`.
#[repr(C)]
struct MatmulArguments {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    rows: u32,
    n: u32,
    k: u32,
    stride: u32,
}

/// As `Turn` in `rows.cu`.
#[repr(C)]
struct TurnArguments {
    qkv: u64,
    query_norm: u64,
    key_norm: u64,
    angles: u64,
    positions: u64,
    places: u64,
    query: u64,
    cache: u64,
    block_stride: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    half: u32,
    block_tokens: u32,
    query_stride: u32,
    epsilon: f32,
}

/// As in `attend.cu`.
#[repr(C)]
struct AttendArguments {
    query: u64,
    cache: u64,
    tables: u64,
    units: u64,
    out: u64,
    parts: u64,
    parts_of: u64,
    block_stride: u64,
    kv_heads: u32,
    group: u32,
    block_shift: u32,
    table_stride: u32,
    query_stride: u32,
    scale: f32,
}

/// As in `attend.cu`.
#[repr(C)]
struct MergeArguments {
    units: u64,
    parts: u64,
    parts_of: u64,
    out: u64,
    kv_heads: u32,
    group: u32,
    head_dim: u32,
    query_stride: u32,
}

/// What turns queries and keys: see [`Kernels::turn`].
#[derive(Clone, Copy)]
pub struct Turning<'a> {
    /// Weights of the norm of each head of queries, `[head_dim]` f32.
    pub query_norm: Option<&'a Buffer>,
    /// The same for keys.
    pub key_norm: Option<&'a Buffer>,
    /// For each position the cosines and the sines, `[position][2 * half]` f32.
    pub angles: &'a Buffer,
    /// How many numbers turn with as many others.
    pub half: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Of the norms.
    pub epsilon: f32,
}

/// What attention is about: see [`Kernels::attend`].
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// The cache.
    pub cache: &'a DeviceCache,
    /// The layer.
    pub layer: usize,
    /// Heads of queries.
    pub heads: usize,
    /// What products of queries and keys are multiplied with.
    pub scale: f32,
}

/// The loaded kernels.
pub struct Kernels {
    module: Module,
    embed: Function,
    rms_norm: Function,
    gather_rows: Function,
    turn: Function,
    merge: Function,
    /// By end and tile.
    matmul: [[Function; 4]; 4],
    /// By head size and tile.
    attend: [[Function; 2]; 5],
}

/// Arguments as the driver wants them: where each one is.
macro_rules! arguments {
    ($($argument:expr),+) => {
        &mut [$((&raw const $argument).cast_mut().cast::<c_void>()),+]
    };
}

impl Kernels {
    /// Has the driver compile the kernels for its GPU.
    ///
    /// # Errors
    /// What it says.
    pub fn load(context: &Arc<Context>) -> Result<Self, CudaError> {
        let module = context.load(PTX)?;
        let rows = |name, shared| module.function(name, ROW_THREADS, shared);
        let matmul = |end: usize, tile: usize| {
            let (rows, columns, threads, stages) = TILES[tile];
            let shared = (rows + columns) * TILE_ROW_BYTES * stages;
            module.function(&format!("matmul_{rows}_{}", End::ALL[end].1), threads, shared)
        };
        let attend = |dim: usize, tile: usize| {
            let (head_dim, rows) = (HEAD_DIMS[dim], TILE_ROWS[tile] as u32);
            let line = head_dim as u32 * 2 + 16;
            let shared = (STAGES * 2 * STEP_KEYS).max(rows) * line;
            module.function(&format!("attend_{head_dim}_{rows}"), rows * 2, shared)
        };
        Ok(Self {
            embed: rows("embed", 0)?,
            rms_norm: rows("rms_norm", ROW_THREADS / 32 * 4)?,
            gather_rows: rows("gather_rows", 0)?,
            turn: module.function("turn", TURN_WARPS * 32, 0)?,
            merge: module.function("merge", MERGE_THREADS, 0)?,
            matmul: table(|end| table(|tile| matmul(end, tile)))?,
            attend: table(|dim| table(|tile| attend(dim, tile)))?,
            module,
        })
    }

    /// The GPU they are loaded on.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        self.module.context()
    }

    /// `residual[row] = table[token of row]`, `[rows][hidden]` f32.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn embed(&self, plan: &Plan, table: &Matrix, residual: &Buffer) -> Result<(), CudaError> {
        plan.check_table(table.n());
        let tokens = piece(plan, plan.tokens);
        let hidden = table.k();
        let to = residual.part(0, plan.rows * hidden * 4);
        let (from, stride, hidden) = (table.buffer.address(), table.stride() as u32, hidden as u32);
        let arguments = arguments!(tokens, from, stride, hidden, to);
        // SAFETY: those of `embed`; the plan's tokens are rows of the table, and the room was checked.
        unsafe { self.rows(self.embed, plan.rows, arguments) }
    }

    /// Norms `[rows][hidden]` f32 to bf16 rows, which are padded.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn rms_norm(
        &self,
        rows: usize,
        residual: &Buffer,
        weight: &Buffer,
        epsilon: f32,
        normed: &Buffer,
    ) -> Result<(), CudaError> {
        let hidden = weight.bytes() / 4;
        let stride = hidden.next_multiple_of(PAD);
        let from = residual.part(0, rows * hidden * 4);
        let to = normed.part(0, rows * stride * 2);
        let (by, hidden, stride) = (weight.address(), hidden as u32, stride as u32);
        let arguments = arguments!(from, by, hidden, epsilon, to, stride);
        // SAFETY: those of `rms_norm`, and the rooms were checked.
        unsafe { self.rows(self.rms_norm, rows, arguments) }
    }

    /// Copies the rows whose logits are wanted, of `row_bytes` each, to the front of `to`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a buffer is too small or rows are not whole pieces of sixteen bytes.
    pub fn gather_rows(
        &self,
        plan: &Plan,
        from: &Buffer,
        row_bytes: usize,
        to: &Buffer,
    ) -> Result<(), CudaError> {
        assert!(row_bytes.is_multiple_of(16), "rows must be whole pieces of sixteen bytes");
        let count = plan.logits_rows.count;
        let source = from.part(0, plan.rows * row_bytes);
        let target = to.part(0, count * row_bytes);
        let (rows, chunks) = (piece(plan, plan.logits_rows), (row_bytes / 16) as u32);
        let arguments = arguments!(source, rows, chunks, target);
        // SAFETY: those of `gather_rows`; the plan's rows are among `plan.rows`, and the rooms were checked.
        unsafe { self.rows(self.gather_rows, count, arguments) }
    }

    /// `x weight^T` for `rows` padded rows of `x`, with `bias`, as `end` says; rows of `out` are `stride` numbers apart.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a buffer is too small.
    #[expect(clippy::too_many_arguments, reason = "each is a different kind of thing")]
    pub fn matmul(
        &self,
        rows: usize,
        x: &Buffer,
        weight: &Matrix,
        bias: Option<&Buffer>,
        end: End,
        out: &Buffer,
        stride: usize,
    ) -> Result<(), CudaError> {
        let width = if end == End::Gated { weight.n() / 2 } else { weight.n() };
        assert!(width <= stride, "a row of the result must fit its stride");
        assert!(end != End::Gated || weight.n().is_multiple_of(2), "gates come in pairs");
        let arguments = MatmulArguments {
            x: x.part(0, rows * weight.stride() * 2),
            weight: weight.buffer.address(),
            bias: bias.map_or(0, |bias| bias.part(0, weight.n() * 4)),
            out: out.part(0, end.row_bytes(rows * stride)),
            rows: rows as u32,
            n: weight.n() as u32,
            k: weight.stride() as u32,
            stride: stride as u32,
        };
        let tile = TILES.iter().position(|tile| rows <= tile.0 as usize).unwrap_or(3);
        let (tile_rows, tile_columns, ..) = TILES[tile];
        let grid = (arguments.rows.div_ceil(tile_rows), arguments.n.div_ceil(tile_columns));
        let kind = End::ALL.iter().position(|(of, _)| *of == end).unwrap_or(0);
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: those of `matmul`, and the rooms were checked.
        unsafe { self.module.launch(self.matmul[kind][tile], grid, arguments!(arguments)) }
    }

    /// Norms and turns queries and keys of `qkv`, `[rows][(heads + 2 kv_heads) * head_dim]` bf16; queries go to `query`,
    /// padded rows, keys and values into the cache.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a buffer is too small or there is no such layer.
    pub fn turn(
        &self,
        plan: &Plan,
        qkv: &Buffer,
        turning: &Turning<'_>,
        cache: &DeviceCache,
        layer: usize,
        query: &Buffer,
    ) -> Result<(), CudaError> {
        let shape = cache.shape();
        let all = turning.heads + 2 * shape.kv_heads;
        let stride = (turning.heads * shape.head_dim).next_multiple_of(PAD);
        let norm = |of: Option<&Buffer>| of.map_or(0, |norm| norm.part(0, shape.head_dim * 4));
        plan.check_cache(cache, turning.heads);
        assert!(2 * turning.half <= shape.head_dim, "a head must hold every angle twice");
        let arguments = TurnArguments {
            qkv: qkv.part(0, plan.rows * all * shape.head_dim * 2),
            query_norm: norm(turning.query_norm),
            key_norm: norm(turning.key_norm),
            angles: turning.angles.part(0, plan.positions_max * 2 * turning.half * 4),
            positions: piece(plan, plan.positions),
            places: piece(plan, plan.places),
            query: query.part(0, plan.rows * stride * 2),
            cache: layer_of(cache, layer),
            block_stride: shape.block_elements() as u64,
            heads: turning.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            half: turning.half as u32,
            block_tokens: shape.block_tokens as u32,
            query_stride: stride as u32,
            epsilon: turning.epsilon,
        };
        let grid = (plan.rows as u32, (all as u32).div_ceil(TURN_WARPS));
        if plan.rows == 0 {
            return Ok(());
        }
        // SAFETY: those of `turn`; the plan's places are of the cache, its positions below `positions_max`.
        unsafe { self.module.launch(self.turn, grid, arguments!(arguments)) }
    }

    /// Causal attention of the plan's rows over the cache; queries and results are padded rows of bf16. `parts` grows
    /// where it is too small.
    ///
    /// # Errors
    /// What the driver says, or that there is no memory for parts.
    ///
    /// # Panics
    /// When a buffer is too small, there is no such layer, or heads are of a size that has no kernel.
    pub fn attend(
        &self,
        plan: &Plan,
        query: &Buffer,
        attention: &Attention<'_>,
        parts: &mut [Buffer; 2],
        out: &Buffer,
    ) -> Result<(), CudaError> {
        let (cache, shape) = (attention.cache, attention.cache.shape());
        let dim = HEAD_DIMS.iter().position(|dim| *dim == shape.head_dim);
        let dim = dim.expect("heads must be of a size that has a kernel");
        plan.check_cache(cache, attention.heads);
        let stride = (attention.heads * shape.head_dim).next_multiple_of(PAD);
        self.grow(parts, plan.lines, shape.head_dim)?;
        let arguments = AttendArguments {
            query: query.part(0, plan.rows * stride * 2),
            cache: layer_of(cache, attention.layer),
            tables: piece(plan, plan.tables),
            units: 0,
            out: out.part(0, plan.rows * stride * 2),
            parts: parts[0].address(),
            parts_of: parts[1].address(),
            block_stride: shape.block_elements() as u64,
            kv_heads: shape.kv_heads as u32,
            group: (attention.heads / shape.kv_heads) as u32,
            block_shift: shape.block_tokens.ilog2(),
            table_stride: plan.table_stride as u32,
            query_stride: stride as u32,
            scale: attention.scale * std::f32::consts::LOG2_E,
        };
        for tile in [1, 0] {
            let units = plan.units[tile];
            if units.count > 0 {
                let own = AttendArguments { units: piece(plan, units), ..arguments };
                let grid = (units.count as u32, own.kv_heads);
                // SAFETY: those of `attend`; the plan was checked against this cache's shape, parts have its lines.
                unsafe { self.module.launch(self.attend[dim][tile], grid, arguments!(own)) }?;
            }
        }
        for merges in plan.merges.into_iter().filter(|merges| merges.count > 0) {
            let own = MergeArguments {
                units: piece(plan, merges),
                parts: arguments.parts,
                parts_of: arguments.parts_of,
                out: arguments.out,
                kv_heads: arguments.kv_heads,
                group: arguments.group,
                head_dim: shape.head_dim as u32,
                query_stride: stride as u32,
            };
            let grid = (merges.count as u32, own.kv_heads);
            // SAFETY: those of `merge`, over what `attend` has written.
            unsafe { self.module.launch(self.merge, grid, arguments!(own)) }?;
        }
        Ok(())
    }

    fn grow(
        &self,
        parts: &mut [Buffer; 2],
        lines: usize,
        head_dim: usize,
    ) -> Result<(), CudaError> {
        for (part, line_bytes) in parts.iter_mut().zip([head_dim * 4, 8]) {
            let wanted = lines * line_bytes;
            if part.bytes() < wanted {
                *part = Buffer::new(self.context(), wanted.next_power_of_two())?;
            }
        }
        Ok(())
    }

    /// One block of threads for each row.
    ///
    /// # Safety
    /// As [`Module::launch`].
    unsafe fn rows(
        &self,
        function: Function,
        rows: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: what the caller promises.
        unsafe { self.module.launch(function, (rows as u32, 1), arguments) }
    }
}

fn table<T, const N: usize>(
    mut of: impl FnMut(usize) -> Result<T, CudaError>,
) -> Result<[T; N], CudaError> {
    let mut all = Vec::with_capacity(N);
    for index in 0..N {
        all.push(of(index)?);
    }
    Ok(all.try_into().unwrap_or_else(|_| unreachable!("N were made")))
}

/// The address of a piece of the plan.
fn piece(plan: &Plan, piece: Piece) -> u64 {
    plan.buffer.address() + piece.offset as u64
}

/// The address of a layer's part of block 0.
fn layer_of(cache: &DeviceCache, layer: usize) -> u64 {
    let shape = cache.shape();
    assert!(layer < shape.layers, "no such layer");
    let numbers = layer * 2 * shape.kv_heads * shape.block_tokens * shape.head_dim;
    cache.buffer.address() + numbers as u64 * 2
}
