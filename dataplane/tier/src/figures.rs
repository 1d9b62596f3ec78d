//! What a tier counts, for people and for the measurements that the route's cost rests on.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a tier since it was opened.
        #[derive(Debug, Default)]
        pub struct Figures {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// The counters at one time.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct FiguresView {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Figures {
            /// Reads all of them; each is right, together they may be of slightly different times.
            #[must_use]
            pub fn view(&self) -> FiguresView {
                FiguresView { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

figures! {
    /// Reads that gave a block.
    hits,
    /// Reads that did not.
    misses,
    /// Blocks written.
    stored,
    /// Writes of blocks that were there.
    present,
    /// Writes that were refused, for whatever reason.
    refused,
    /// Blocks that made room for others.
    evicted,
    /// Blocks that were not what their checksum says.
    bad_sums,
    /// Reads and writes that the system failed.
    faults,
    /// Places that are not used any more.
    quarantined,
    /// Bytes given.
    read_bytes,
    /// Bytes taken.
    written_bytes,
    /// Blocks that were there when the tier was opened.
    recovered,
    /// Blocks whose journal was damaged, so that they were forgotten.
    forgotten,
    /// Calls that took too long.
    timeouts,
    /// Calls that were turned away since too many waited.
    busy,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
