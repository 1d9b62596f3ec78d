//! The checksum of blocks, CRC-64/NVME, and a copy that sums as it goes.
//!
//! A CRC finds every flip of a few bits and every burst up to its width, which is what memory, wires and disks do. It
//! is what S3 keeps with an object, and runs at the speed of memory. It is no signature: whoever can write
//! to the disk can forge it, and could as well write to the engine.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes that are copied before they are summed: small enough to still lie in the core's own cache then.
pub const SUM_PIECE_BYTES: usize = 64 << 10;

/// The checksum of some bytes.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// Copies `from` over the first bytes of `to` and gives the checksum of what `to` holds then.
///
/// The destination is what is summed, so that a flip on the way is seen too. If `to` is shorter, only what
/// fits is copied.
pub fn copy_summed(from: &[u8], to: &mut [u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    for (from, to) in from.chunks(SUM_PIECE_BYTES).zip(to.chunks_mut(SUM_PIECE_BYTES)) {
        let bytes = from.len().min(to.len());
        to[..bytes].copy_from_slice(&from[..bytes]);
        digest.update(&to[..bytes]);
    }
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_check_value_and_copies_agree() {
        assert_eq!(sum(b"123456789"), 0xae8b_1486_0a79_9888);
        let from: Vec<u8> = (0..200_001u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut to = vec![0; from.len()];
        assert_eq!(copy_summed(&from, &mut to), sum(&from));
        assert_eq!(from, to);
    }
}
