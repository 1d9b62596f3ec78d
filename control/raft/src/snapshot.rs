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
    place: Place,
    /// Held while the file is replaced.
    writing: Mutex<()>,
}

enum Place {
    File(PathBuf),
    #[cfg(feature = "simulation")]
    Memory(crate::simulation::Disk),
}

impl SnapshotStore {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { place: Place::File(file), writing: Mutex::new(()) }
    }

    #[cfg(feature = "simulation")]
    pub(crate) fn in_memory(disk: crate::simulation::Disk) -> Self {
        Self { place: Place::Memory(disk), writing: Mutex::new(()) }
    }

    /// Whether nothing here waits for a disk.
    pub(crate) fn is_in_memory(&self) -> bool {
        !matches!(self.place, Place::File(_))
    }

    /// The current image; `None` before the first.
    pub(crate) fn load(&self) -> io::Result<Option<Snapshot>> {
        let bytes = match &self.place {
            Place::File(file) => read_file(file)?,
            #[cfg(feature = "simulation")]
            Place::Memory(disk) => disk.image(),
        };
        let Some(bytes) = bytes else { return Ok(None) };
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
        let meta = meta.encode();
        let head = head(&meta, state)?;
        let parts = [&head[..], &meta, state];
        match &self.place {
            Place::File(file) => replace_file(file, &parts),
            #[cfg(feature = "simulation")]
            Place::Memory(disk) => {
                disk.save_image(parts.concat().into());
                Ok(())
            }
        }
    }
}

fn read_file(path: &Path) -> io::Result<Option<Bytes>> {
    let length = match fs::metadata(path) {
        Ok(data) => data.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if length > SNAPSHOT_BYTES_MAX {
        return Err(CodecError("snapshot: too large").into());
    }
    Ok(Some(Bytes::from(fs::read(path)?)))
}

fn replace_file(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
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
