//! Vectors of one instruction set behind one trait.
//!
//! Kernels are written once as generic code that is always inlined; [`vectorised!`] compiles them
//! once per instruction set and picks at run time. All methods are unsafe because calling one
//! outside a function compiled for its instruction set is undefined.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// One instruction set.
///
/// # Safety
/// Every method may only be called where the instruction set exists, and pointers must be valid for
/// [`Simd::LANES`] numbers or for as many as the method says. Pointers need only their type's own
/// alignment.
pub(crate) trait Simd: Copy {
    /// A vector of f32.
    type F: Copy;
    /// Numbers per vector.
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, v: Self::F);
    /// The first `count < LANES` numbers, then zeros.
    unsafe fn load_part(from: *const f32, count: usize) -> Self::F;
    /// Stores the first `count < LANES` numbers.
    unsafe fn store_part(to: *mut f32, v: Self::F, count: usize);
    /// `LANES` bf16 numbers, widened.
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// `LANES` pairs of bf16: the first of each pair and the second of each pair, widened.
    unsafe fn load_pairs(from: *const f32) -> (Self::F, Self::F);
    /// Asks for the cache line at `from`, which may be any address.
    unsafe fn prefetch(from: *const f32);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`; rounded once where the instruction set can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each pair, `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each pair, `b` where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer; only for magnitudes below 2^22.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for integers `-126 <= n <= 127`, and 0 for -127.
    unsafe fn exp2_int(n: Self::F) -> Self::F;
    /// The sum of all numbers, always in the same order.
    unsafe fn sum(v: Self::F) -> f32;
    /// The largest number.
    unsafe fn maximum(v: Self::F) -> f32;
    /// Reads `LANES` numbers from each of `LANES` rows and writes them as columns, rows of the
    /// result being `stride` numbers apart.
    unsafe fn transpose(rows: *const *const f32, offset: usize, to: *mut f32, stride: usize);
}

/// `e^x` with a relative error of about 1e-7. Below -87.7 the result is exactly 0, above 88.3 it
/// stays at `e^88.3`, `e^0` is exactly 1, NaN stays NaN.
///
/// # Safety
/// As for every method of [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller runs on this instruction set, and nothing here touches memory.
    unsafe {
        // The order of arguments keeps NaN.
        let x = S::min(S::splat(88.3), S::max(S::splat(-88.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first short enough for n times it to be exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        S::mul(p, S::exp2_int(n))
    }
}

/// Defines a function that runs a generic kernel on the instruction set given first.
macro_rules! vectorised {
    ($vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $kernel:ident) => {
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: this function is compiled for the kernel's instruction set.
                    unsafe { $kernel::<$crate::simd::Avx512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: this function is compiled for the kernel's instruction set.
                    unsafe { $kernel::<$crate::simd::Avx2>($($arg),*) }
                }
                match isa.usable() {
                    $crate::isa::Isa::Avx512 | $crate::isa::Isa::Avx512Bf16 => {
                        // SAFETY: `usable` only yields what the machine has.
                        return unsafe { avx512($($arg),*) };
                    }
                    $crate::isa::Isa::Avx2 => {
                        // SAFETY: `usable` only yields what the machine has.
                        return unsafe { avx2($($arg),*) };
                    }
                    $crate::isa::Isa::Portable => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            // SAFETY: plain Rust runs everywhere.
            unsafe { $kernel::<$crate::simd::Portable>($($arg),*) }
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests;
