//! Where the writer writes to: bytes for an image, or a hash for a digest, so that both can never differ in what
//! they cover.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

/// Takes values in their image form.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }

    fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// A count of things in memory; none of them can be 2^64.
    fn count(&mut self, value: usize) {
        self.u64(value as u64);
    }

    fn text(&mut self, value: &str) {
        self.count(value.len());
        self.put(value.as_bytes());
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Hashes what it is given. Its key is fixed: it finds accidents, and members must agree on it.
pub(super) struct StateHasher(SipHasher13);

impl StateHasher {
    pub(super) fn new() -> Self {
        Self(SipHasher13::new_with_key(b"mainstay-state-1"))
    }

    pub(super) fn finish(&self) -> u128 {
        self.0.finish128().as_u128()
    }
}

impl Sink for StateHasher {
    fn put(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
}

/// The checksum at the end of an image.
pub(super) fn checksum(bytes: &[u8]) -> u128 {
    let mut hasher = StateHasher::new();
    hasher.put(bytes);
    hasher.finish()
}
