//! The step of a chain on the processor's own instructions, once they are known to exist.
//!
//! The functions behind it are safe in themselves and compiled for instruction sets that not every processor of
//! this architecture has. All that is unsafe is to call them; that happens here and nowhere else, behind a value
//! that only detection makes.
#![expect(
    unsafe_code,
    reason = "code for an optional instruction set may only be called where it was detected"
)]

use core::slice::ChunksExact;

#[cfg(target_arch = "aarch64")]
use super::aarch64 as arch;
#[cfg(target_arch = "x86_64")]
use super::x86_64 as arch;

use super::SequenceHash;
use super::key::Subkeys;

/// The cipher and the field, on a processor that has AES and multiplication without carry.
#[derive(Clone)]
pub(super) struct Hardware(arch::Cipher);

impl Hardware {
    /// Expands the key, if this processor has the instructions. There is no other way to make a value.
    pub(super) fn detect(cipher_key: u128) -> Option<Self> {
        if !arch::detected() {
            return None;
        }
        // SAFETY: the instruction sets that the function is compiled for were just detected.
        Some(Self(unsafe { arch::Cipher::new(cipher_key) }))
    }

    pub(super) fn encrypt(&self, block: u128) -> u128 {
        // SAFETY: `self` exists, so `detect` found the instruction sets that the function is compiled for.
        unsafe { self.0.encrypt(block) }
    }

    pub(super) fn decrypt(&self, block: u128) -> u128 {
        // SAFETY: `self` exists, so `detect` found the instruction sets that the function is compiled for.
        unsafe { self.0.decrypt(block) }
    }

    /// The state after a segment; see the construction in the parent module.
    pub(super) fn step(
        &self,
        subkeys: &Subkeys,
        state: u128,
        header: u64,
        segment: &[u32],
    ) -> u128 {
        // SAFETY: `self` exists, so `detect` found the instruction sets that the function is compiled for.
        unsafe { arch::step(subkeys, state, header, segment) }
    }

    /// Steps over blocks of the length that `header` counts and names each; the answer is the state after the last.
    pub(super) fn chain(
        &self,
        subkeys: &Subkeys,
        state: u128,
        header: u64,
        blocks: ChunksExact<'_, u32>,
        out: &mut [SequenceHash],
    ) -> u128 {
        // SAFETY: `self` exists, so `detect` found the instruction sets that the function is compiled for.
        unsafe { self.0.chain(subkeys, state, header, blocks, out) }
    }
}
