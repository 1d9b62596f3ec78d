//! Rates of the kernels beside the ceilings of the machine, measured in the same run.
//!
//! A rate alone says little on a shared machine: what counts is its share of what a register-only
//! loop computes and a plain stream reads a moment before. Each figure is the best of several
//! runs. Arguments choose parts: `products`, `attention`, `rows`, or one product as `MxNxK`; none
//! means all.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use mainstay_kernels::{
    Isa, KvPool, KvShape, KvType, PackedMatrix, Pool, Precision, Span, attention, rms_norm,
    silu_mul,
};

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let shapes = parts.iter().filter_map(|part| {
        let sides: Option<Vec<usize>> = part.split('x').map(|side| side.parse().ok()).collect();
        sides.and_then(|sides| <[usize; 3]>::try_from(sides).ok())
    });
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let pools = [Pool::new(1), Pool::new(2)];
    println!("instruction set: {:?}", Isa::best());
    ceilings(&pools);
    for [m, n, k] in shapes {
        products(&pools, n, k, &[m]);
    }
    if wanted("products") {
        products(&pools, 4096, 1024, &[1, 2, 4, 8, 16, 32, 512]);
        products(&pools, 1024, 4096, &[1, 8, 512]);
        products(&pools, 131_072, 1024, &[1, 8]);
    }
    if wanted("attention") {
        attention_rates(&pools);
    }
    if wanted("rows") {
        row_rates();
    }
}

/// Seconds of the fastest run within about `budget_s`.
fn best_s(budget_s: f64, mut run: impl FnMut()) -> f64 {
    run();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    let mut runs = 0;
    while runs < 3 || (start.elapsed().as_secs_f64() < budget_s && runs < 10_000) {
        let from = Instant::now();
        run();
        best = best.min(from.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn numbers(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn ceilings(pools: &[Pool]) {
    let rounds = 200_000usize;
    let memory = vec![1u64; 64 << 20];
    for pool in pools {
        let tasks = pool.threads();
        print!("ceilings, {tasks} threads:");
        for (name, peak) in peaks() {
            let seconds = best_s(0.3, || {
                pool.run(tasks, &|_| {
                    black_box(peak(rounds));
                });
            });
            print!("  {name} {:.0} GFLOP/s", peak(1) * (rounds * tasks) as f64 / seconds / 1e9);
        }
        let part = memory.len() / (tasks * 16);
        let seconds = best_s(1.0, || {
            pool.run(tasks * 16, &|task| {
                // Several streams, since one alone does not keep memory busy.
                let part = &memory[task * part..][..part];
                let (left, right) = part.split_at(part.len() / 2);
                let mut sums = [0u64; 32];
                for (left, right) in left.as_chunks::<16>().0.iter().zip(right.as_chunks::<16>().0)
                {
                    for (sum, x) in sums.iter_mut().zip(left.iter().chain(right)) {
                        *sum ^= x;
                    }
                }
                black_box(sums);
            });
        });
        println!("  read {:.1} GB/s", (memory.len() * 8) as f64 / seconds / 1e9);
    }
}

type Peak = fn(usize) -> f64;

#[cfg(target_arch = "x86_64")]
fn peaks() -> Vec<(&'static str, Peak)> {
    match Isa::best() {
        Isa::Avx512Bf16 => vec![("f32", x86::fma512_safe), ("bf16", x86::bf16_safe)],
        Isa::Avx512 => vec![("f32", x86::fma512_safe)],
        Isa::Avx2 => vec![("f32", x86::fma256_safe)],
        Isa::Portable => vec![],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn peaks() -> Vec<(&'static str, Peak)> {
    vec![]
}

/// Loops without memory. Each takes a number of rounds and returns the operations of one round.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    const SUMS: usize = 24;

    pub(crate) fn fma512_safe(rounds: usize) -> f64 {
        // SAFETY: only listed where the machine has AVX-512.
        unsafe { fma512(rounds) }
        (SUMS * 16 * 2) as f64
    }

    pub(crate) fn fma256_safe(rounds: usize) -> f64 {
        // SAFETY: only listed where the machine has AVX2 and FMA.
        unsafe { fma256(rounds) }
        (12 * 8 * 2) as f64
    }

    pub(crate) fn bf16_safe(rounds: usize) -> f64 {
        // SAFETY: only listed where the machine has the bf16 dot product.
        unsafe { bf16(rounds) }
        (SUMS * 32 * 2) as f64
    }

    #[target_feature(enable = "avx512f")]
    fn fma512(rounds: usize) {
        let mut sums = [_mm512_setzero_ps(); SUMS];
        let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(1e-9)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    fn fma256(rounds: usize) {
        let mut sums = [_mm256_setzero_ps(); 12];
        let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(1e-9)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16(rounds: usize) {
        let mut sums = [_mm512_setzero_ps(); SUMS];
        let a = black_box(_mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5), _mm512_set1_ps(0.5)));
        let b = black_box(_mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-9), _mm512_set1_ps(1e-9)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
}

fn products(pools: &[Pool], n: usize, k: usize, batches: &[usize]) {
    println!("products, n {n}, k {k}: GFLOP/s (GB/s of weights), 1 / 2 threads");
    let w = numbers(n * k);
    let halves: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
    for (name, matrix) in [
        ("f32", PackedMatrix::from_f32(&w, n, k)),
        ("bf16, f32 math", PackedMatrix::from_bf16(&halves, n, k, Precision::F32Math)),
        ("bf16, bf16 math", PackedMatrix::from_bf16(&halves, n, k, Precision::Bf16Math)),
    ] {
        print!("  {name:16}");
        for m in batches.iter().copied() {
            let (x, mut y) = (numbers(m * k), vec![0.0; m * n]);
            print!("  M={m}");
            for pool in pools {
                let seconds = best_s(0.5, || matrix.matmul(&x, m, &mut y, pool));
                let flops = (2 * m * n * k) as f64 / seconds / 1e9;
                print!(" {flops:.0} ({:.0})", matrix.bytes() as f64 / seconds / 1e9);
            }
        }
        println!();
    }
}

fn attention_rates(pools: &[Pool]) {
    for (heads, kv_heads, head_dim) in [(14, 2, 64), (16, 8, 128), (9, 3, 64), (4, 2, 48)] {
        for kv_type in [KvType::F32, KvType::Bf16] {
            let context = 4096;
            let shape = KvShape { layers: 1, kv_heads, head_dim, block_tokens: 16 };
            let mut kv = KvPool::new(shape, context / 16, kv_type);
            let row = numbers(kv_heads * head_dim);
            for position in 0..context {
                kv.write(0, (position / 16) as u32, position % 16, &row, &row);
            }
            let table: Vec<u32> = (0..context as u32 / 16).collect();
            print!("attention {heads}/{kv_heads} heads of {head_dim}, {kv_type:?}:");
            for (name, start, rows) in
                [("prefill", 0, context), ("chunk", context - 256, 256), ("decode", context - 1, 1)]
            {
                let q = numbers(rows * heads * head_dim);
                let mut out = vec![0.0; q.len()];
                let span = Span { block_table: &table, start, rows, row_offset: 0 };
                let keys = (rows * start + rows * (rows + 1) / 2) as f64;
                print!("  {name}");
                for pool in pools {
                    let seconds = best_s(0.5, || {
                        attention(&q, heads, &[span], 0, &kv, 0.125, &mut out, pool);
                    });
                    let flops = keys * (4 * heads * head_dim) as f64 / seconds / 1e9;
                    print!(" {flops:.0} GFLOP/s");
                    if rows == 1 {
                        let bytes = context * 2 * kv_heads * head_dim * kv_type.bytes();
                        print!(" ({:.0} GB/s)", bytes as f64 / seconds / 1e9);
                    }
                }
            }
            println!();
        }
    }
}

fn row_rates() {
    let (rows, width) = (512, 4096);
    let (x, up, weight) = (numbers(rows * width), numbers(rows * width), numbers(width));
    let mut out = vec![0.0; rows * width];
    let count = (rows * width) as f64 / 1e9;
    let seconds = best_s(0.3, || rms_norm(&x, &weight, 1e-6, &mut out));
    print!("rows of {width}, 1 thread: rms_norm {:.1} Gnumbers/s", count / seconds);
    let seconds = best_s(0.3, || silu_mul(&x, &up, &mut out));
    println!("  silu_mul {:.1} Gnumbers/s", count / seconds);
}
