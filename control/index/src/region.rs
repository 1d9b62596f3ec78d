//! Reserved ranges of zeroed memory, so that an index can grow without ever moving what readers look at.
//!
//! A region is address space first: pages cost memory when they are touched, and go back to the system with
//! [`Region::discard`]. Nothing inside is ever unmapped while the region lives, which is what lets a reader hold
//! a stale position: it reads another value, sees that the version moved, and starts again. Under Miri and loom a
//! region is a small boxed slice.

use core::ops::{Deref, DerefMut};

/// Types for which all bytes zero is a value, so that fresh pages can be looked at.
///
/// # Safety
/// The implementor promises just that.
pub(crate) unsafe trait Zeroed {}

// SAFETY: zero is a value of every integer, atomic or not.
unsafe impl Zeroed for crate::sync::AtomicU64 {}

#[cfg(not(any(miri, loom)))]
mod mapped {
    use core::ptr::NonNull;

    use super::Zeroed;

    /// From here on a region asks for huge pages; below, a small index would pay 2 MB for a few blocks.
    const HUGE_FROM_BYTES: usize = 1 << 20;

    pub(crate) struct Region<T> {
        start: NonNull<T>,
        items: usize,
    }

    // SAFETY: a region owns its memory like a boxed slice does.
    unsafe impl<T: Send> Send for Region<T> {}
    // SAFETY: as above; shared access only reaches `&T`.
    unsafe impl<T: Sync> Sync for Region<T> {}

    impl<T: Zeroed> Region<T> {
        /// Reserves room for `items`. Where the system refuses it ends the process the way a failed allocation does.
        pub(crate) fn new(items: usize) -> Self {
            let bytes = items.max(1) * size_of::<T>();
            // SAFETY: an anonymous private mapping at an address of the system's choice touches nothing of ours.
            let start = unsafe {
                libc::mmap(
                    core::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            let layout = core::alloc::Layout::array::<T>(items.max(1));
            match NonNull::new(start.cast::<T>()) {
                Some(start_of) if start != libc::MAP_FAILED => Self { start: start_of, items },
                _ => {
                    std::alloc::handle_alloc_error(layout.expect("a region fits the address space"))
                }
            }
        }

        fn advise(&self, from: usize, to: usize, advice: libc::c_int) {
            const PAGE: usize = 4096;
            let base = self.start.as_ptr() as usize;
            let low = (base + from * size_of::<T>()).next_multiple_of(PAGE);
            let high = (base + to.min(self.items) * size_of::<T>()) / PAGE * PAGE;
            if low < high {
                // SAFETY: the range lies inside our own mapping. Dropping pages of it reads as zeroes written by
                // somebody else, and zero is a value of `T`. A refusal only costs memory.
                unsafe { libc::madvise(low as *mut libc::c_void, high - low, advice) };
            }
        }

        /// Asks for huge pages once `used` items are in use; cheap to call again.
        pub(crate) fn widen_pages(&self, used: usize) {
            if used * size_of::<T>() >= HUGE_FROM_BYTES {
                self.advise(0, self.items, libc::MADV_HUGEPAGE);
            }
        }

        /// Gives the whole pages of a range back; they read as zeroes.
        pub(crate) fn discard(&self, from: usize, to: usize) {
            self.advise(from, to, libc::MADV_DONTNEED);
        }
    }

    impl<T> Region<T> {
        pub(super) fn parts(&self) -> (*mut T, usize) {
            (self.start.as_ptr(), self.items)
        }
    }

    impl<T> Drop for Region<T> {
        fn drop(&mut self) {
            // SAFETY: this is the mapping that `new` made, and nobody borrows it any more.
            unsafe {
                libc::munmap(self.start.as_ptr().cast(), self.items.max(1) * size_of::<T>());
            }
        }
    }
}

#[cfg(any(miri, loom))]
mod mapped {
    use super::Zeroed;

    pub(crate) struct Region<T> {
        items: Box<[T]>,
    }

    impl<T: Zeroed + Default> Region<T> {
        pub(crate) fn new(items: usize) -> Self {
            Self { items: (0..items).map(|_| T::default()).collect() }
        }

        pub(crate) fn widen_pages(&self, _used: usize) {}

        pub(crate) fn discard(&self, _from: usize, _to: usize) {}
    }

    impl<T> Region<T> {
        pub(super) fn parts(&self) -> (*mut T, usize) {
            (self.items.as_ptr().cast_mut(), self.items.len())
        }

        pub(super) fn parts_mut(&mut self) -> (*mut T, usize) {
            (self.items.as_mut_ptr(), self.items.len())
        }
    }
}

pub(crate) use mapped::Region;

impl<T> Deref for Region<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let (start, items) = self.parts();
        // SAFETY: the region owns `items` values from `start` on, all zero or written since, for as long as it lives.
        unsafe { core::slice::from_raw_parts(start, items) }
    }
}

impl<T> DerefMut for Region<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        #[cfg(any(miri, loom))]
        let (start, items) = self.parts_mut();
        #[cfg(not(any(miri, loom)))]
        let (start, items) = self.parts();
        // SAFETY: as in `deref`, and the exclusive borrow of the region is one of all of its items.
        unsafe { core::slice::from_raw_parts_mut(start, items) }
    }
}

/// Fetches the cache line of an item that will be wanted soon; past the end it does nothing.
#[inline(always)]
pub(crate) fn prefetch<T>(items: &[T], at: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if let Some(item) = items.get(at) {
        // SAFETY: a prefetch of a live reference changes nothing but caches.
        unsafe {
            core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(
                core::ptr::from_ref(item).cast(),
            );
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (items, at);
}
