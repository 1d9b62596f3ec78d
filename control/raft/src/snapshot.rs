//! The state's image on disk: one file, replaced as a whole.
//!
//! It is written beside the current one, made durable, and renamed over it, so that a crash leaves the old or the
//! new. An image older than the one that is there is not written: an installed snapshot may overtake one that
//! was being built.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::codec::{CodecError, Coded};
use crate::types::{Snapshot, SnapshotMeta};

const MAGIC: [u8; 8] = *b"MSTSNAP1";
/// Magic, checksum of all that follows it, length of the meta data.
const HEAD_BYTES: usize = 8 + 4 + 4;
/// The largest image that is written, sent or read.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

pub(crate) struct SnapshotStore {
    file: PathBuf,
    /// Held while the file is replaced.
    writing: Mutex<()>,
}

impl SnapshotStore {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file, writing: Mutex::new(()) }
    }

    /// The current image; `None` before the first.
    pub(crate) fn load(&self) -> io::Result<Option<Snapshot>> {
        let length = match fs::metadata(&self.file) {
            Ok(data) => data.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if length > SNAPSHOT_BYTES_MAX {
            return Err(CodecError("snapshot: too large").into());
        }
        let bytes = Bytes::from(fs::read(&self.file)?);
        let (meta, snapshot) = open(&bytes)?;
        Ok(Some(Snapshot { meta, snapshot }))
    }

    /// Makes `state` the current image, unless a newer one is there. Returns once it is durable.
    pub(crate) fn save(&self, meta: &SnapshotMeta, state: &[u8]) -> io::Result<()> {
        if state.len() as u64 > SNAPSHOT_BYTES_MAX - (1 << 20) {
            return Err(io::Error::other(format!(
                "the state takes {} bytes, more than a snapshot may have",
                state.len()
            )));
        }
        let _writing = self.writing.lock();
        // A damaged current image must not stand in the way of a good one.
        if let Ok(Some(current)) = self.load()
            && current.meta.last_log_id >= meta.last_log_id
        {
            return Ok(());
        }
        let temporary = self.file.with_extension("tmp");
        let mut file = fs::File::create(&temporary)?;
        let meta = meta.encode();
        file.write_all(&head(&meta, state)?)?;
        for part in [&meta, state] {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(&temporary, &self.file)?;
        fs::File::open(self.file.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// What goes before the meta data and the image.
fn head(meta: &[u8], state: &[u8]) -> io::Result<Vec<u8>> {
    let meta_bytes = u32::try_from(meta.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut sum = crc32fast::Hasher::new();
    for part in [&meta_bytes[..], meta, state] {
        sum.update(part);
    }
    Ok([&MAGIC[..], &sum.finalize().to_le_bytes(), &meta_bytes].concat())
}

/// A whole file's bytes.
pub(crate) fn close(meta: &SnapshotMeta, state: &[u8]) -> io::Result<Vec<u8>> {
    let meta = meta.encode();
    Ok([&head(&meta, state)?[..], &meta, state].concat())
}

/// The opposite of [`close`].
pub(crate) fn open(bytes: &Bytes) -> Result<(SnapshotMeta, Bytes), CodecError> {
    let head = bytes.get(..HEAD_BYTES).ok_or(CodecError("snapshot: too short"))?;
    let (magic, rest) = head.split_at(MAGIC.len());
    let (sum, length) = rest.split_at(4);
    if magic != MAGIC {
        return Err(CodecError("snapshot: of another format"));
    }
    let word = |b: &[u8]| b.try_into().map(u32::from_le_bytes).map_err(|_| CodecError("snapshot"));
    let (sum, length) = (word(sum)?, word(length)? as usize);
    if crc32fast::hash(&bytes[MAGIC.len() + 4..]) != sum {
        return Err(CodecError("snapshot: its checksum is wrong"));
    }
    let body = bytes.slice(HEAD_BYTES..);
    if length > body.len() {
        return Err(CodecError("snapshot: its meta data is cut off"));
    }
    let meta = SnapshotMeta::decode(body.slice(..length))?;
    Ok((meta, body.slice(length..)))
}

#[cfg(test)]
mod tests;
