//! The GPU's kernels in the emulator, through the driver's double: each against a reference, and the same bits however
//! work is cut.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests; the lint's own exception ends at `#[test]`"
)]

mod common;

use std::sync::Arc;

use common::{Numbers, bf16s, close, widened};
use half::bf16;
use mainstay_cuda_double::{Fault, set_fault, turn};
use mainstay_kernels::cuda::{
    Attention, Buffer, Context, CudaError, DeviceCache, End, Kernels, Matrix, PAD, PTX, Plan,
    PlanShape, SYMBOLS, Turning, Unavailable, probe,
};
use mainstay_kernels::{KvPool, KvShape, KvType, Pool, Rope, Span, attention};

struct Gpu {
    context: Arc<Context>,
    kernels: Kernels,
}

fn gpu() -> Gpu {
    let context = Context::open(0).unwrap();
    let kernels = Kernels::load(&context).unwrap();
    Gpu { context, kernels }
}

impl Gpu {
    fn buffer(&self, bytes: usize) -> Buffer {
        Buffer::new(&self.context, bytes).unwrap()
    }

    fn of<T: mainstay_kernels::cuda::Plain>(&self, values: &[T]) -> Buffer {
        Buffer::from_slice(&self.context, values).unwrap()
    }
}

fn download<T: mainstay_kernels::cuda::Plain + Default>(from: &Buffer, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    from.download(0, &mut values).unwrap();
    values
}

/// Rows of `width` numbers, each padded with zeros.
fn padded(rows: &[bf16], width: usize) -> Vec<bf16> {
    let stride = width.next_multiple_of(PAD);
    let mut out = vec![bf16::ZERO; rows.len() / width * stride];
    for (row, to) in rows.chunks_exact(width).zip(out.chunks_exact_mut(stride)) {
        to[..width].copy_from_slice(row);
    }
    out
}

#[test]
fn what_is_wrong_with_a_machine_is_told() {
    let _turn = turn();
    let found = probe(0).unwrap();
    assert_eq!((found.name.as_str(), found.capability), ("emulated device", (8, 0)));
    assert_eq!(probe(3), Err(Unavailable::NoDevice { wanted: 3, count: 1 }));
    for (fault, word) in [
        (Fault::NoDevice, "CUDA_ERROR_NO_DEVICE"),
        (Fault::OldDriver, "speaks CUDA 11.8"),
        (Fault::OldDevice, "compute capability 7.0"),
    ] {
        set_fault(fault);
        let error = probe(0).unwrap_err().to_string();
        assert!(error.contains(word), "{fault:?}: {error}");
        assert!(matches!(Context::open(0).err(), Some(CudaError::Unavailable(_))));
    }
    set_fault(Fault::None);
    let gpu = gpu();
    set_fault(Fault::NoMemory);
    let error = Buffer::new(&gpu.context, 5 << 20).err().unwrap();
    assert_eq!(error, CudaError::Memory { wanted: 5, free: 0 });
    set_fault(Fault::None);
    let vast = Buffer::new(&gpu.context, 1 << 50).err().unwrap();
    assert!(matches!(vast, CudaError::Memory { .. }), "{vast}");
    let (x, weight) = (gpu.of(&[1.0f32; 8]), gpu.of(&[1.0f32; 8]));
    let out = gpu.buffer(PAD * 2);
    set_fault(Fault::LaunchFails);
    gpu.kernels.rms_norm(1, &x, &weight, 0.0, &out).unwrap_or(());
    let error = gpu.context.wait().unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    set_fault(Fault::None);
}

#[test]
fn the_text_of_the_kernels_is_that_of_their_sources() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    for name in ["all.cu", "attend.cu", "matmul.cu", "prim.cuh", "rows.cu"] {
        digest.update(&std::fs::read(format!("{root}/cuda/{name}")).unwrap());
    }
    let hash =
        digest.finish().as_ref().iter().fold(String::new(), |hex, b| format!("{hex}{b:02x}"));
    let first = PTX.lines().next().unwrap();
    assert!(first.contains(&hash), "kernels/ptx is of other sources; run .ci/kernels: {first}");
}

#[test]
fn the_driver_has_what_is_called_and_kernels_have_their_names() {
    let _turn = turn();
    let text = std::fs::read(mainstay_cuda_double::path()).unwrap();
    let has = |name: &str| text.windows(name.len()).any(|at| at == name.as_bytes());
    assert!(SYMBOLS.iter().all(|symbol| has(symbol)));
    // Loading looks up every kernel that is launched, in the double's table; here in the text.
    drop(gpu());
    let entries = PTX.lines().filter_map(|line| line.strip_prefix(".visible .entry "));
    let names: Vec<&str> = entries.map(|line| line.trim_end_matches('(')).collect();
    assert_eq!(names.len(), 5 + 16 + 10, "{names:?}");
    assert!(names.iter().all(|name| has(name)), "{names:?}");
}

#[test]
fn rows_are_embedded_normed_and_gathered() {
    let _turn = turn();
    let gpu = gpu();
    let mut numbers = Numbers::new(1);
    let (vocab, hidden, rows) = (50, 200, 9);
    let table = bf16s(&mut numbers, vocab * hidden);
    let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 17 % vocab as u32).collect();
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 16, block_tokens: 16 };
    let cache = DeviceCache::new(&gpu.context, shape, 1).unwrap();
    let mut plan = Plan::new(&gpu.context).unwrap();
    let of = PlanShape { heads: 1, kv_heads: 1, vocab, multiprocessors: 4 };
    let span = Span { block_table: &[0], start: 0, rows, row_offset: 0 };
    plan.set(&tokens, &[span], &[2, 8], of, &cache).unwrap();
    let matrix = Matrix::new(&gpu.context, &table, vocab, hidden).unwrap();
    let residual = gpu.buffer(rows * hidden * 4);
    gpu.kernels.embed(&plan, &matrix, &residual).unwrap();
    let embedded: Vec<f32> = download(&residual, rows * hidden);
    for (row, token) in embedded.chunks_exact(hidden).zip(&tokens) {
        let from = &table[*token as usize * hidden..][..hidden];
        assert!(row.iter().zip(from).all(|(a, b)| a.to_bits() == b.to_f32().to_bits()));
    }
    let weight: Vec<f32> = (0..hidden).map(|_| numbers.next()).collect();
    let stride = hidden.next_multiple_of(PAD);
    let normed = Buffer::zeroed(&gpu.context, rows * stride * 2).unwrap();
    gpu.kernels.rms_norm(rows, &residual, &gpu.of(&weight), 1e-5, &normed).unwrap();
    let got: Vec<u16> = download(&normed, rows * stride);
    for (row, from) in got.chunks_exact(stride).zip(embedded.chunks_exact(hidden)) {
        let square: f64 = from.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / hidden as f64;
        let want = from
            .iter()
            .zip(&weight)
            .map(|(x, w)| f64::from(*x) / (square + 1e-5).sqrt() * f64::from(*w));
        close(&widened(&row[..hidden]), want, 1.0 / 256.0);
        assert!(row[hidden..].iter().all(|x| *x == 0), "pads stay zero");
    }
    let chosen = gpu.buffer(2 * stride * 2);
    gpu.kernels.gather_rows(&plan, &normed, stride * 2, &chosen).unwrap();
    let picked: Vec<u16> = download(&chosen, 2 * stride);
    assert_eq!(picked, [&got[2 * stride..3 * stride], &got[8 * stride..9 * stride]].concat());
}

/// `x weight^T` in f64.
fn product(x: &[bf16], weight: &[bf16], k: usize) -> Vec<f64> {
    let row = |row: &[bf16], column: &[bf16]| -> f64 {
        row.iter().zip(column).map(|(a, b)| f64::from(a.to_f32()) * f64::from(b.to_f32())).sum()
    };
    x.chunks_exact(k).flat_map(|x| weight.chunks_exact(k).map(move |w| row(x, w))).collect()
}

#[test]
fn products_are_right_and_the_same_in_every_tile() {
    let _turn = turn();
    let gpu = gpu();
    let mut numbers = Numbers::new(2);
    for (n, k) in [(8, 64), (70, 100), (136, 200)] {
        let most = 131;
        let (x, weight) = (bf16s(&mut numbers, most * k), bf16s(&mut numbers, n * k));
        let bias: Vec<f32> = (0..n).map(|_| numbers.next()).collect();
        let before: Vec<f32> = (0..most * n).map(|_| numbers.next()).collect();
        let mut want = product(&x, &weight, k);
        want.iter_mut().enumerate().for_each(|(i, sum)| *sum += f64::from(bias[i % n]));
        let (on, added) = (Matrix::new(&gpu.context, &weight, n, k).unwrap(), gpu.of(&bias));
        let stride_x = k.next_multiple_of(PAD);
        let from = padded(&x, k);
        let run = |first: usize, rows: usize, end: End| -> Vec<f32> {
            let x = gpu.of(&from[first * stride_x..][..rows * stride_x]);
            let out = gpu.of(&before[first * n..][..rows * n]);
            let width = if end == End::Gated { n / 2 } else { n };
            gpu.kernels.matmul(rows, &x, &on, Some(&added), end, &out, width).unwrap();
            match end {
                End::Bf16 | End::Gated => widened(&download::<u16>(&out, rows * width)),
                End::Add | End::F32 => download(&out, rows * width),
            }
        };
        for rows in [1, 16, 17, 33, 64, 65, most] {
            let got = run(0, rows, End::F32);
            close(&got, want[..rows * n].iter().copied(), 1e-4);
        }
        let whole = run(0, most, End::F32);
        for (first, rows) in [(0, 1), (5, 16), (40, 20), (60, 64), (130, 1)] {
            assert_eq!(
                run(first, rows, End::F32),
                whole[first * n..][..rows * n],
                "{n} {k} {rows}"
            );
        }
        close(&run(0, 40, End::Bf16), want[..40 * n].iter().copied(), 1.0 / 200.0);
        let sums = want[..70 * n].iter().zip(&before).map(|(a, b)| a + f64::from(*b));
        close(&run(0, 70, End::Add), sums, 1e-4);
        let gated =
            want[..20 * n].chunks_exact(2).map(|pair| pair[0] / (1.0 + (-pair[0]).exp()) * pair[1]);
        close(&run(0, 20, End::Gated), gated, 1.0 / 200.0);
    }
}

#[test]
fn queries_and_keys_turn_and_lie_where_the_cpu_has_them() {
    let _turn = turn();
    let gpu = gpu();
    let mut numbers = Numbers::new(3);
    let shape = KvShape { layers: 2, kv_heads: 2, head_dim: 48, block_tokens: 4 };
    let (heads, layer, rows, half) = (6, 1, 7, 24);
    let all = heads + 2 * shape.kv_heads;
    let qkv = bf16s(&mut numbers, rows * all * shape.head_dim);
    let norms: Vec<Vec<f32>> = (0..2).map(|_| (0..48).map(|_| numbers.next()).collect()).collect();
    let frequencies: Vec<f32> =
        (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
    let positions_max = 16;
    let angles: Vec<f32> = (0..positions_max)
        .flat_map(|p| {
            let angle = move |f: &f32| f64::from(p as f32 * f);
            let cosines = frequencies.iter().map(move |f| angle(f).cos() as f32);
            cosines
                .chain(frequencies.iter().map(move |f| angle(f).sin() as f32))
                .collect::<Vec<_>>()
        })
        .collect();
    let (blocks, start) = ([5u32, 0, 3], 3);
    let cache = DeviceCache::new(&gpu.context, shape, 6).unwrap();
    let of = PlanShape { heads, kv_heads: 2, vocab: 1, multiprocessors: 4 };
    let mut plan = Plan::new(&gpu.context).unwrap();
    let span = Span { block_table: &blocks, start, rows, row_offset: 0 };
    plan.set(&vec![0; rows], &[span], &[], of, &cache).unwrap();
    let stride = (heads * shape.head_dim).next_multiple_of(PAD);
    let query = Buffer::zeroed(&gpu.context, rows * stride * 2).unwrap();
    let device_norms: Vec<Buffer> = norms.iter().map(|norm| gpu.of(norm)).collect();
    let angles = gpu.of(&angles);
    let turning = Turning {
        query_norm: Some(&device_norms[0]),
        key_norm: Some(&device_norms[1]),
        angles: &angles,
        half,
        heads,
        epsilon: 1e-6,
    };
    gpu.kernels.turn(&plan, &gpu.of(&qkv), &turning, &cache, layer, &query).unwrap();
    let queries: Vec<u16> = download(&query, rows * stride);
    let rope = Rope::new(&frequencies, 1.0, 64);
    let mut pool = KvPool::new(shape, 6, KvType::Bf16);
    for (row, from) in qkv.chunks_exact(all * shape.head_dim).enumerate() {
        let position = start + row;
        let turned = |first: usize, count: usize, norm: &[f32]| {
            let mut out: Vec<f32> =
                from[first * 48..][..count * 48].iter().map(|x| x.to_f32()).collect();
            let plain = out.clone();
            mainstay_kernels::rms_norm(&plain, norm, 1e-6, &mut out);
            rope.apply(&mut out, 48, position);
            out
        };
        let want = turned(0, heads, &norms[0]);
        close(
            &widened(&queries[row * stride..][..heads * 48]),
            want.iter().map(|x| f64::from(*x)),
            1.0 / 200.0,
        );
        let keys = turned(heads, 2, &norms[1]);
        let values: Vec<f32> = from[(heads + 2) * 48..].iter().map(|x| x.to_f32()).collect();
        pool.write(layer, blocks[position / 4], position % 4, &keys, &values);
    }
    for block in 0..6 {
        let mut bytes = vec![0; cache.bytes_per_block()];
        cache.read_block(block, &mut bytes).unwrap();
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(2).map(|x| bf16::from_ne_bytes([x[0], x[1]]).to_f32()).collect()
        };
        let want = numbers(pool.block_bytes(block));
        close(&numbers(&bytes), want.into_iter().map(f64::from), 1.0 / 200.0);
    }
}

/// A cache with sequences in it, on both sides.
struct World {
    gpu: Gpu,
    pool: KvPool,
    cache: DeviceCache,
    heads: usize,
    tables: Vec<Vec<u32>>,
}

impl World {
    fn new(shape: KvShape, heads: usize, lengths: &[usize], numbers: &mut Numbers) -> Self {
        let gpu = gpu();
        let per: Vec<usize> = lengths.iter().map(|n| n.div_ceil(shape.block_tokens)).collect();
        let blocks: usize = per.iter().sum::<usize>() + 1;
        let mut pool = KvPool::new(shape, blocks, KvType::Bf16);
        let cache = DeviceCache::new(&gpu.context, shape, blocks).unwrap();
        for block in 0..blocks as u32 {
            let noise = bf16s(numbers, shape.block_elements());
            let bytes: Vec<u8> = noise.iter().flat_map(|x| x.to_ne_bytes()).collect();
            pool.block_bytes_mut(block).copy_from_slice(&bytes);
            cache.write_block(block, &bytes).unwrap();
        }
        // Blocks of a sequence lie apart and backwards.
        let mut left: Vec<u32> = (0..blocks as u32).collect();
        let tables = per
            .iter()
            .map(|count| (0..*count).map(|i| left.swap_remove(i * 7 % left.len())).collect());
        let tables = tables.collect();
        Self { gpu, pool, cache, heads, tables }
    }

    fn spans(&self, of: &[(usize, usize, usize)]) -> Vec<Span<'_>> {
        let mut row_offset = 0;
        let span = |&(sequence, start, rows): &(usize, usize, usize)| {
            let span = Span { block_table: &self.tables[sequence], start, rows, row_offset };
            row_offset += rows;
            span
        };
        of.iter().map(span).collect()
    }

    fn attend(&self, q: &[bf16], of: &[(usize, usize, usize)], multiprocessors: usize) -> Vec<u16> {
        let shape = self.cache.shape();
        let (spans, width) = (self.spans(of), self.heads * shape.head_dim);
        let rows = q.len() / width;
        let plan_shape =
            PlanShape { heads: self.heads, kv_heads: shape.kv_heads, vocab: 1, multiprocessors };
        let mut plan = Plan::new(&self.gpu.context).unwrap();
        plan.set(&vec![0; rows], &spans, &[], plan_shape, &self.cache).unwrap();
        let out = Buffer::zeroed(&self.gpu.context, padded(q, width).len() * 2).unwrap();
        let mut parts = [self.gpu.buffer(16), self.gpu.buffer(16)];
        let attention = Attention {
            cache: &self.cache,
            layer: 1,
            heads: self.heads,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let query = self.gpu.of(&padded(q, width));
        self.gpu.kernels.attend(&plan, &query, &attention, &mut parts, &out).unwrap();
        let stride = width.next_multiple_of(PAD);
        let got: Vec<u16> = download(&out, rows * stride);
        got.chunks_exact(stride).flat_map(|row| row[..width].to_vec()).collect()
    }

    fn on_cpu(&self, q: &[bf16], of: &[(usize, usize, usize)]) -> Vec<f32> {
        let q: Vec<f32> = q.iter().map(|x| x.to_f32()).collect();
        let mut out = vec![0.0; q.len()];
        let scale = 1.0 / (self.cache.shape().head_dim as f32).sqrt();
        attention(&q, self.heads, &self.spans(of), 1, &self.pool, scale, &mut out, &Pool::new(1));
        out
    }
}

#[test]
fn attention_is_right_and_the_same_however_it_is_cut() {
    let _turn = turn();
    let mut numbers = Numbers::new(4);
    for (head_dim, kv_heads, heads, block_tokens) in
        [(16, 1, 1, 16), (48, 2, 4, 4), (64, 1, 7, 16), (128, 1, 4, 32)]
    {
        let shape = KvShape { layers: 2, kv_heads, head_dim, block_tokens };
        let lengths = [700, 90, 30];
        let world = World::new(shape, heads, &lengths, &mut numbers);
        let whole = [(0, 580, 120), (1, 0, 90), (2, 29, 1)];
        let width = heads * head_dim;
        let q = bf16s(&mut numbers, (120 + 90 + 1) * width);
        let got = world.attend(&q, &whole, 1);
        let want = world.on_cpu(&q, &whole);
        close(&widened(&got), want.iter().map(|x| f64::from(*x)), 1.0 / 80.0);
        // Dealt to many processors: parts and their merge.
        assert_eq!(world.attend(&q, &whole, 64), got, "{head_dim}: dealt otherwise");
        // Row by row, and cut elsewhere.
        let row = |row: usize, of: (usize, usize, usize)| {
            let alone = world.attend(&q[row * width..][..of.2 * width], &[of], 3);
            assert_eq!(alone, got[row * width..][..of.2 * width], "{head_dim}: row {row} alone");
        };
        row(0, (0, 580, 1));
        row(119, (0, 699, 1));
        row(50, (0, 630, 33));
        row(130, (1, 10, 40));
        row(210, (2, 29, 1));
    }
}
