//! A stretch of bytes that outlives the process: what the disk tier needs of a file, and nothing else.
//!
//! It is a trait so that tests can lose writes, tear them, and fill the disk, at any point and thousands of times.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatvfs};
use rustix::io::Errno;

/// What direct I/O wants offsets, lengths and memory to be multiples of.
pub(crate) const ALIGN_BYTES: usize = 4096;

/// See the module. Writes are on it for good once a later [`Device::sync`] has returned; until then each may be
/// there, not there, or there in part.
pub(crate) trait Device: Send + Sync {
    /// Fills `bytes` from `offset` on.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Puts `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Waits until all that was written is there for good.
    fn sync(&self) -> io::Result<()>;
    /// Takes room, so that writes below `bytes` cannot run out of it.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// How long it is.
    fn len(&self) -> io::Result<u64>;
}

/// A file.
#[derive(Debug)]
pub(crate) struct FileDevice {
    file: File,
    /// Room of the disk that is left to others.
    reserve_bytes: u64,
}

impl FileDevice {
    /// Opens or makes a file; `direct` goes past the page cache where the file system can.
    pub(crate) fn open(path: &Path, direct: bool, reserve_bytes: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        if direct {
            let mut past_cache = options.clone();
            past_cache.custom_flags(OFlags::DIRECT.bits().cast_signed());
            match past_cache.open(path) {
                Ok(file) => return Ok(Self { file, reserve_bytes }),
                // Some file systems have no such thing; the page cache is slower, not wrong.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { file: options.open(path)?, reserve_bytes })
    }
}

impl Device for FileDevice {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let have = self.file.metadata()?.len();
        if bytes <= have {
            return Ok(());
        }
        let disk = fstatvfs(&self.file)?;
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free_bytes < (bytes - have).saturating_add(self.reserve_bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match fallocate(&self.file, FallocateFlags::empty(), have, bytes - have) {
            Ok(()) => Ok(()),
            // Without it, a full disk is met by the write itself.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(bytes),
            Err(error) => {
                // What was got of it would fill the disk to its last byte, and others live there too.
                self.file.set_len(have)?;
                Err(error.into())
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}
