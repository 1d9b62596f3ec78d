//! Vectors of eight numbers in plain Rust.
//!
//! Fixed-size loops that the compiler turns into whatever the target has: two SSE registers on
//! x86-64, two NEON registers on aarch64.

use super::Simd;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

/// Adding and subtracting this rounds to an integer and leaves that integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn fold(v: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let half: [f32; 4] = std::array::from_fn(|i| f(v[i], v[i + 4]));
    f(f(half[0], half[2]), f(half[1], half[3]))
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "pointers are the trait's contract")]
impl Simd for Portable {
    type F = [f32; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        from.cast::<Self::F>().read()
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        to.cast::<Self::F>().write(v);
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self::F {
        std::array::from_fn(|i| if i < count { *from.add(i) } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: Self::F, count: usize) {
        for (i, x) in v.into_iter().enumerate().take(count) {
            *to.add(i) = x;
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        from.cast::<[u16; LANES]>().read().map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const f32) -> (Self::F, Self::F) {
        let pairs = from.cast::<[u32; LANES]>().read();
        (
            pairs.map(|pair| f32::from_bits(pair << 16)),
            pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)),
        )
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Without the instruction a fused product is a library call per number.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, larger)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(|x| (x + ROUNDER) - ROUNDER)
    }
    #[inline(always)]
    unsafe fn exp2_int(n: Self::F) -> Self::F {
        n.map(|n| {
            let integer = (n + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits());
            f32::from_bits(integer.wrapping_add(127) << 23)
        })
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        fold(v, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn maximum(v: Self::F) -> f32 {
        fold(v, larger)
    }
    #[inline(always)]
    unsafe fn transpose(rows: *const *const f32, offset: usize, to: *mut f32, stride: usize) {
        for row in 0..LANES {
            let from = (*rows.add(row)).add(offset);
            for column in 0..LANES {
                *to.add(column * stride + row) = *from.add(column);
            }
        }
    }
}
