//! A disk in memory that can lose power: what was written since the last sync may be there, not there, or torn.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::device::Device;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Platter {
    durable: Vec<u8>,
    /// What readers see: all writes.
    seen: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Room of the disk.
    room: Option<usize>,
    /// Operations until a fault, and which.
    fault: Option<(u64, i32)>,
}

/// A file on such a disk; clones are the same file.
#[derive(Debug, Clone, Default)]
pub(super) struct SimDevice {
    platter: Arc<Mutex<Platter>>,
    /// Operations until the power goes, which all files of a disk share; after that all fail and nothing changes.
    power: Arc<Mutex<Option<u64>>>,
    /// Writes and syncs do not return for as long as this is set.
    hangs: Arc<AtomicBool>,
}

impl SimDevice {
    /// Another file of the same disk.
    pub(super) fn beside(&self) -> Self {
        Self {
            platter: Arc::default(),
            power: Arc::clone(&self.power),
            hangs: Arc::clone(&self.hangs),
        }
    }

    /// The next life after a loss of power: `random` decides for each sector that was not synced.
    pub(super) fn crash(&self, mut random: impl FnMut() -> u64) {
        let mut platter = self.platter.lock();
        for (offset, bytes) in std::mem::take(&mut platter.unsynced) {
            // Some writes vanish whole, some arrive whole, some are torn.
            let fate = random() % 3;
            for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                let at = offset + index * SECTOR_BYTES;
                if (fate == 0 || (fate == 1 && random().is_multiple_of(2)))
                    && at + sector.len() <= platter.durable.len()
                {
                    platter.durable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        platter.seen = platter.durable.clone();
        platter.fault = None;
        *self.power.lock() = None;
    }

    pub(super) fn lose_power_after(&self, operations: u64) {
        *self.power.lock() = Some(operations);
    }

    pub(super) fn has_power(&self) -> bool {
        *self.power.lock() != Some(0)
    }

    pub(super) fn fail_after(&self, operations: u64, errno: i32) {
        self.platter.lock().fault = Some((operations, errno));
    }

    pub(super) fn heal(&self) {
        self.platter.lock().fault = None;
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Release);
    }

    fn wait_while_hanging(&self) {
        while self.hangs.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn set_room(&self, bytes: Option<usize>) {
        self.platter.lock().room = bytes;
    }

    pub(super) fn flip(&self, byte: usize, bit: u8) {
        let mut platter = self.platter.lock();
        platter.durable[byte] ^= 1 << bit;
        platter.seen[byte] ^= 1 << bit;
    }

    /// Takes over what another file holds.
    pub(super) fn become_like(&self, other: &Self) {
        let seen = other.platter.lock().seen.clone();
        let mut platter = self.platter.lock();
        platter.durable = seen.clone();
        platter.seen = seen;
        platter.unsynced.clear();
    }

    pub(super) fn bytes(&self) -> usize {
        self.platter.lock().seen.len()
    }
}

impl SimDevice {
    fn has_power_still(&self) -> io::Result<()> {
        let mut power = self.power.lock();
        if let Some(left) = power.as_mut().filter(|left| **left > 0) {
            *left -= 1;
        }
        if *power == Some(0) { Err(io::Error::other("no power")) } else { Ok(()) }
    }
}

impl Platter {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.fault {
            Some((0, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Device for SimDevice {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let platter = self.platter.lock();
        let at = offset as usize;
        let from = platter.seen.get(at..at + bytes.len());
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.wait_while_hanging();
        let mut platter = self.platter.lock();
        if !self.has_power() {
            return Err(io::Error::other("no power"));
        }
        // The write that the power cuts short may have begun.
        let powered = self.has_power_still();
        platter.step()?;
        let at = offset as usize;
        let end = at + bytes.len();
        if platter.room.is_some_and(|room| end > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if platter.seen.len() < end {
            platter.seen.resize(end, 0);
            platter.durable.resize(end, 0);
        }
        platter.seen[at..end].copy_from_slice(bytes);
        platter.unsynced.push((at, bytes.to_vec()));
        powered
    }

    fn sync(&self) -> io::Result<()> {
        self.wait_while_hanging();
        let mut platter = self.platter.lock();
        self.has_power_still()?;
        platter.step()?;
        for (at, bytes) in std::mem::take(&mut platter.unsynced) {
            platter.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut platter = self.platter.lock();
        self.has_power_still()?;
        platter.step()?;
        if platter.room.is_some_and(|room| bytes as usize > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if platter.seen.len() < bytes as usize {
            platter.seen.resize(bytes as usize, 0);
            platter.durable.resize(bytes as usize, 0);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes() as u64)
    }
}
