//! The index of streams in parts: what a watcher gets before it can follow frames.
//!
//! Each part is whole runs behind a count and before a checksum, so that no part is larger than it has to be and a
//! part is checked as it comes. Runs are in order over all parts.

use mainstay_index::BlockIndex;

use super::read::{RunPlace, put_run, read_run};
use super::sink::{Sink, checksum};
use super::source::Source;
use super::write::write_run;
use super::{CHECKSUM_BYTES, ImageError};
use crate::limits::Limits;
use crate::streams::{Position, Streams};

const RUN_BYTES_MIN: usize = 69;

/// All runs, in parts of about `bytes` each; at least one part.
pub(crate) fn encode_parts(index: &BlockIndex, bytes: usize) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut body = Vec::new();
    let mut count = 0;
    for run in index.snapshot() {
        write_run(&mut body, &run);
        count += 1;
        if body.len() >= bytes {
            parts.push(seal(count, &body));
            (count, body) = (0, Vec::new());
        }
    }
    if count > 0 || parts.is_empty() {
        parts.push(seal(count, &body));
    }
    parts
}

fn seal(count: usize, body: &[u8]) -> Vec<u8> {
    let mut part = Vec::with_capacity(8 + body.len() + CHECKSUM_BYTES);
    part.count(count);
    part.put(body);
    let sum = checksum(&part);
    part.u128(sum);
    part
}

/// Puts an index together from its parts.
#[derive(Debug)]
pub struct IndexLoader {
    limits: Limits,
    index: BlockIndex,
    last: RunPlace,
}

impl IndexLoader {
    /// Before the first part.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, index: BlockIndex::new(limits.index_blocks_max), last: None }
    }

    /// Takes the next part in. Any bytes are safe to hand in.
    ///
    /// # Errors
    /// If it is cut, altered, out of order, or holds more than the limits allow; the loader is of no use then.
    pub fn take(&mut self, part: &[u8]) -> Result<(), ImageError> {
        let body_bytes = part.len().checked_sub(CHECKSUM_BYTES).ok_or(ImageError::Truncated)?;
        let (body, sum) = part.split_at(body_bytes);
        if checksum(body).to_le_bytes() != sum {
            return Err(ImageError::Checksum);
        }
        let mut source = Source::new(body);
        let count = source.count("runs of blocks", self.limits.index_blocks_max, RUN_BYTES_MIN)?;
        for _ in 0..count {
            let run = read_run(&mut source, &self.limits)?;
            put_run(&mut self.index, &run, &mut self.last)?;
        }
        source.end()
    }

    /// After the last part: the streams stand at these positions. Call [`Streams::follow`] next.
    #[must_use]
    pub fn finish(self, positions: &[Position]) -> Streams {
        Streams::restored(self.index, positions)
    }
}
