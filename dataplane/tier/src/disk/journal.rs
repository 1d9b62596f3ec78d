//! Which slot holds what, in a file that is read once: after a crash.
//!
//! Lines of 128 bytes, each with its own checksum, in two files of which one counts: the one whose first line
//! has the higher epoch. When it is full, what still holds is written to the other one, whose first line is taken away
//! first and written last.
//!
//! Lines are written in batches, and a batch is on the disk before the next begins. A crash can therefore tear only the
//! last batch, and all its lines are such that any part of them may be lost (the tier sees to that, see its
//! module). A line that is missing anywhere else is damage: a `Freed` may have stood there, so all that was claimed
//! before it is forgotten. That costs blocks and never makes one up.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::device::Device;
use crate::Layout;
use crate::record::{HEADER_BYTES, Header, Kind};

const LINE_BYTES: u64 = HEADER_BYTES as u64;
/// Lines that a small tier has besides.
const LINES_LEAST: u64 = 8;
/// Lines that are read or written by one call.
const PIECE_LINES: usize = 4096;

/// What a journal said.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Slots with their blocks, and the lines that say so: later ones were used later.
    pub(crate) claims: BTreeMap<u32, (u64, Header)>,
    /// Slots that are not to be used.
    pub(crate) quarantined: BTreeSet<u32>,
    /// The highest number of a write.
    pub(crate) generation: u64,
    /// Claims that damage made unsure.
    pub(crate) forgotten: u64,
}

/// The two files.
pub(crate) struct Journal {
    devices: [Box<dyn Device>; 2],
    layout: Layout,
    slot_bytes: u32,
    /// Which of them counts.
    active: usize,
    epoch: u64,
    /// Lines written, the first one included.
    lines: u64,
    /// The most lines of a file.
    lines_max: u64,
}

impl Journal {
    /// Reads what is there. Nothing may be appended before [`Journal::rewrite`].
    pub(crate) fn open(
        devices: [Box<dyn Device>; 2],
        layout: Layout,
        slot_bytes: u32,
        slots: u32,
    ) -> io::Result<(Self, Recovered)> {
        let mut best: Option<(usize, u64)> = None;
        let mut newest = 0;
        let mut recovered = Recovered::default();
        for (index, device) in devices.iter().enumerate() {
            let lines = read_lines(device.as_ref())?;
            // Also of a file that was never finished: its lines must not count in one that is written over it.
            newest = lines.iter().map(|(_, line)| line.epoch).fold(newest, u64::max);
            let Some((0, first)) = lines.first() else { continue };
            let fits = first.kind == Kind::Opening
                && first.key.layout == layout.id
                && first.length == slot_bytes;
            let epoch = first.epoch;
            if fits && best.is_none_or(|(_, other)| epoch > other) {
                best = Some((index, epoch));
                recovered = replay(lines, epoch);
            }
        }
        // Four lines a slot: files are rewritten once every three turnovers of the tier.
        let lines_max = u64::from(slots) * 4 + LINES_LEAST;
        let active = best.map_or(0, |(index, _)| index);
        let journal = Self {
            devices,
            layout,
            slot_bytes,
            active,
            epoch: newest,
            lines: lines_max,
            lines_max,
        };
        Ok((journal, recovered))
    }

    /// Whether so many more lines have room.
    pub(crate) const fn has_room(&self, lines: usize) -> bool {
        self.lines + lines as u64 <= self.lines_max
    }

    /// Writes lines behind the others. They are on the disk for good once this returns.
    pub(crate) fn append(&mut self, lines: &[Header]) -> io::Result<()> {
        if !self.has_room(lines.len()) {
            return Err(io::Error::other("the journal is full and was not rewritten"));
        }
        let device = self.devices[self.active].as_ref();
        let from_line = self.lines;
        // Full until this has succeeded: behind lines that are there in part, only a whole new file can be trusted.
        self.lines = self.lines_max;
        write_lines(device, self.epoch, from_line, from_line, lines)?;
        device.sync()?;
        self.lines = from_line + lines.len() as u64;
        Ok(())
    }

    /// Starts the other file with these lines. If it returns an error, one of the two files counts, whole, and nothing
    /// is appended before another attempt succeeded.
    pub(crate) fn rewrite(&mut self, lines: &[Header]) -> io::Result<()> {
        let other = 1 - self.active;
        let epoch = self.epoch + 1;
        // Taken whatever comes of it: lines of a failed attempt must not count in the next one. And until this
        // has succeeded, the old file, whose epoch is another, gets no more lines.
        self.epoch = epoch;
        self.lines = self.lines_max;
        // Both have their room before either is needed: a journal that must be rewritten on a full disk can be.
        for device in &self.devices {
            device.allocate(self.lines_max * LINE_BYTES)?;
        }
        let device = self.devices[other].as_ref();
        // A failed attempt may have left a first line that outranks the file that counts. Without it, that file
        // counts for sure while lines here are overwritten.
        device.write_at(&[0; HEADER_BYTES], 0)?;
        device.sync()?;
        write_lines(device, epoch, 1, 1, lines)?;
        device.sync()?;
        let mut first = Header::of_slot(Kind::Opening, 0);
        first.key.layout = self.layout.id;
        first.length = self.slot_bytes;
        first.epoch = epoch;
        device.write_at(&first.encode(), 0)?;
        device.sync()?;
        // From here on the new one counts on the disk, whatever becomes of the old one; were that one still held
        // for the one that counts, the next attempt would overwrite the only promises.
        let old = std::mem::replace(&mut self.active, other);
        // The old one must not come back if the new first line is damaged one day: it claims what is gone.
        let old = self.devices[old].as_ref();
        old.write_at(&[0; HEADER_BYTES], 0)?;
        old.sync()?;
        self.lines = 1 + lines.len() as u64;
        Ok(())
    }
}

fn write_lines(
    device: &dyn Device,
    epoch: u64,
    from_line: u64,
    batch: u64,
    lines: &[Header],
) -> io::Result<()> {
    let mut at = from_line * LINE_BYTES;
    for piece in lines.chunks(PIECE_LINES) {
        let bytes: Vec<u8> =
            piece.iter().flat_map(|line| Header { epoch, batch, ..*line }.encode()).collect();
        device.write_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// All whole lines with their numbers, in order.
fn read_lines(device: &dyn Device) -> io::Result<Vec<(u64, Header)>> {
    let total = device.len()? / LINE_BYTES;
    let mut lines = Vec::new();
    let mut bytes = vec![0; PIECE_LINES * HEADER_BYTES];
    let mut at = 0;
    while at < total {
        let count = (total - at).min(PIECE_LINES as u64);
        let piece = &mut bytes[..count as usize * HEADER_BYTES];
        device.read_at(piece, at * LINE_BYTES)?;
        for (number, line) in (at..).zip(piece.chunks_exact(HEADER_BYTES)) {
            lines.extend(Header::decode(line).map(|header| (number, header)));
        }
        at += count;
    }
    Ok(lines)
}

fn replay(mut lines: Vec<(u64, Header)>, epoch: u64) -> Recovered {
    lines.retain(|(number, line)| *number > 0 && line.epoch == epoch && line.batch <= *number);
    let last_batch = lines.last().map_or(0, |(_, line)| line.batch);
    let mut recovered = Recovered::default();
    let mut expected = 1;
    for (number, line) in lines {
        // A gap that begins before the last batch is no crash's doing.
        if number != expected && expected < last_batch {
            recovered.forgotten += recovered.claims.len() as u64;
            recovered.claims.clear();
        }
        expected = number + 1;
        recovered.generation = recovered.generation.max(line.generation);
        match line.kind {
            Kind::Stored => {
                recovered.claims.insert(line.slot, (number, line));
            }
            Kind::Freed => {
                recovered.claims.remove(&line.slot);
            }
            Kind::Quarantined => {
                recovered.claims.remove(&line.slot);
                recovered.quarantined.insert(line.slot);
            }
            Kind::Block | Kind::Opening => {}
        }
    }
    recovered
}
