//! Blocks out of the cache and into it: the host's memory, lent until the operation ends.
//!
//! The host promises (rule R4) that the bytes stay where they are and are nobody else's until the op has ended or
//! the engine is destroyed. Whoever holds an [`Export`] or [`Import`] ends its operation by giving it up, so that
//! the bytes can't be touched any more once the host was told.

use std::ptr::NonNull;

use super::Lanes;

/// Bytes of the host.
#[derive(Debug)]
struct Lent {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the host lends the bytes to the engine, to whichever of its threads, until the op ends.
unsafe impl Send for Lent {}
// SAFETY: shared references only read.
unsafe impl Sync for Lent {}

impl Lent {
    /// # Safety
    /// `len` bytes from `start` on are the engine's until the operation ends.
    unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self { start: NonNull::new(start).unwrap_or(NonNull::dangling()), len }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: by the promise of `new`, and whoever holds this has not ended the operation.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// Blocks that shall be copied out.
#[derive(Debug)]
pub struct Export {
    op_id: u64,
    blocks: Vec<u128>,
    lent: Lent,
}

impl Export {
    /// # Safety
    /// `len` bytes from `start` on are writable and the engine's until the operation ends.
    pub(super) unsafe fn new(op_id: u64, blocks: Vec<u128>, start: *mut u8, len: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { op_id, blocks, lent: unsafe { Lent::new(start, len) } }
    }

    /// First to last.
    #[must_use]
    pub fn blocks(&self) -> &[u128] {
        &self.blocks
    }

    /// Where the bytes go, `Info::block_bytes` for each block.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: writable by the promise of `new`, and borrowed mutably with this.
        unsafe { std::slice::from_raw_parts_mut(self.lent.start.as_ptr(), self.lent.len) }
    }

    /// Ends the operation: `rc` is 0 or one of the header's codes, `done` the blocks copied.
    pub fn end(self, lanes: &Lanes, rc: i32, done: u32) {
        lanes.op(self.op_id, rc, done);
    }
}

/// Blocks that shall be taken in.
#[derive(Debug)]
pub struct Import {
    op_id: u64,
    /// Where they lie.
    pub namespace: u128,
    /// The block before the first, or the namespace.
    pub parent: u128,
    /// A chain.
    pub blocks: Vec<u128>,
    /// 0 to 100.
    pub priority: u8,
    /// 0 is no limit.
    pub duration_ms: u32,
    lent: Lent,
}

impl Import {
    /// # Safety
    /// `len` bytes from `start` on are readable and unchanged until the operation ends.
    pub(super) unsafe fn new(
        op_id: u64,
        (namespace, parent): (u128, u128),
        blocks: Vec<u128>,
        (priority, duration_ms): (u8, u32),
        (start, len): (*const u8, usize),
    ) -> Self {
        // SAFETY: the caller's promise; nothing writes through it.
        let lent = unsafe { Lent::new(start.cast_mut(), len) };
        Self { op_id, namespace, parent, blocks, priority, duration_ms, lent }
    }

    /// `Info::block_bytes` for each block.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.lent.bytes()
    }

    /// Ends the operation: `rc` is 0 or one of the header's codes, `done` the blocks that are held.
    pub fn end(self, lanes: &Lanes, rc: i32, done: u32) {
        lanes.op(self.op_id, rc, done);
    }
}
