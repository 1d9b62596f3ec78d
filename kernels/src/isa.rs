//! The instruction sets a kernel can run on, found at run time.
//!
//! One binary serves every x86-64 and aarch64 machine, so the choice can't be a build flag. Asking
//! for a set the machine lacks yields the best one it has: no value of [`Isa`] is ever unsound.

use std::sync::OnceLock;

/// An instruction set, ordered from the plainest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; the compiler vectorises it for the target's baseline.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with the bf16 dot product.
    Avx512Bf16,
}

impl Isa {
    /// All sets, from the plainest to the widest.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The widest set of this machine.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Isa::detect)
    }

    /// The set whose products of bf16 numbers are the fastest of this machine. A Xeon was measured to
    /// take twice as long for a bf16 dot product as for the f32 products that it stands for, so Intel's is the set below.
    pub fn best_for_bf16() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| match Isa::best() {
            Isa::Avx512Bf16 if is_intel() => Isa::Avx512,
            best => best,
        })
    }

    fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                return Isa::Avx512Bf16;
            }
            if avx512 {
                return Isa::Avx512;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }

    /// The sets this machine can run, from the plainest to the widest.
    pub fn available() -> impl Iterator<Item = Isa> {
        let best = Isa::best();
        Isa::ALL.into_iter().filter(move |isa| *isa <= best)
    }

    /// This set if the machine has it, else the widest one it has.
    pub fn usable(self) -> Isa {
        self.min(Isa::best())
    }
}

/// Whether the processor says that Intel made it.
fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        name.as_flattened() == b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
