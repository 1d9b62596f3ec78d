//! Large zeroed memory that begins at a cache line.
//!
//! Weights and key-value blocks are streamed, so a line must never straddle two loads. The memory
//! is asked for as zeroed pages and nothing touches them, so what is never written costs nothing;
//! a larger alignment in the request itself would make the allocator clear every page.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// A piece of memory.
pub(crate) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    /// Bytes before the first cache line.
    skip: usize,
}

// SAFETY: the memory is owned; shared access reads only and writing takes `&mut self`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` zeroed bytes, or nothing when there is no such room.
    pub(crate) fn zeroed(bytes: usize) -> Option<Memory> {
        let layout = Layout::from_size_align(bytes.checked_add(LINE_BYTES)?, 4).ok()?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = start.as_ptr().align_offset(LINE_BYTES);
        assert!(skip < LINE_BYTES, "a byte pointer can always be aligned");
        Some(Memory { start, layout, skip })
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.layout.size() - LINE_BYTES
    }

    /// The first byte, at a cache line.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        // SAFETY: `skip` is less than the `LINE_BYTES` that were added for it.
        unsafe { self.start.as_ptr().add(self.skip) }
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation holds `len` initialised bytes from there on.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// All bytes, for writing.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().cast_mut(), self.len()) }
    }

    /// The memory as numbers; a rest of less than four bytes is left out.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `bytes_mut`; a cache line is aligned for u32 and any bits are a u32.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().cast_mut().cast(), self.len() / 4) }
    }

    /// As [`Memory::words_mut`], for reading.
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: as in `words_mut`.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() / 4) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` was allocated with this layout and is not used any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
