//! Random numbers from a seed, and how near two results must be.

use half::bf16;

/// Numbers about as large as activations are.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From -1 to 1.
    pub(crate) fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

pub(crate) fn bf16s(numbers: &mut Numbers, count: usize) -> Vec<bf16> {
    (0..count).map(|_| bf16::from_f32(numbers.next())).collect()
}

pub(crate) fn widened(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect()
}

/// Each number within `tolerance` of what is wanted, in parts of the greatest that is wanted or of one.
pub(crate) fn close(got: &[f32], want: impl Iterator<Item = f64>, tolerance: f64) {
    let want: Vec<f64> = want.collect();
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1.0f64, |most, x| most.max(x.abs()));
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance * scale, "number {index}: {got} for {want}, of at most {scale}");
    }
}
