//! Reads: one block, or the start of a chain, whose blocks often lie beside each other and are then read together.

use super::{DiskTier, Table};
use crate::figures::{add, count};
use crate::record::{HEADER_BYTES, Header, Kind};
use crate::{BlockKey, Get, Held, TierError, copy_summed};

/// Where a block lies while somebody reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    slot: u32,
    generation: u64,
}

/// How a slot was found.
enum Slot {
    Whole(Held),
    Broken,
    Unreadable,
}

impl Table {
    /// Finds a block, and keeps it from going until [`Table::let_go`].
    pub(super) fn take_hold(&mut self, key: &BlockKey) -> Option<Place> {
        let slot = self.shelf.find(key)?;
        self.shelf.touch(slot);
        self.shelf.hold(slot);
        Some(Place { slot, generation: self.marks[slot as usize].generation })
    }

    /// Whether the block was there all the time; it may have been forgotten or found bad by others.
    fn let_go(&mut self, key: &BlockKey, place: Place) -> bool {
        let still = self.shelf.key_of(place.slot) == Some(key)
            && self.marks[place.slot as usize].generation == place.generation;
        if still {
            self.shelf.unhold(place.slot);
        }
        still
    }
}

impl DiskTier {
    /// Reads the leading blocks of a chain that are here and whole, one behind the other, into `into`, which must have
    /// room for all of `keys`. What is behind the last that it tells of is of no use.
    pub fn get_run(
        &self,
        keys: &[BlockKey],
        into: &mut [u8],
        now_ms: u64,
    ) -> Result<Vec<Held>, TierError> {
        let block_bytes = self.layout.block_bytes as usize;
        let want = keys.len() * block_bytes;
        if into.len() != want {
            return Err(TierError::WrongLength { got: into.len(), want });
        }
        if keys.iter().any(|key| key.layout != self.layout.id) {
            return Err(TierError::WrongLayout);
        }
        let places: Vec<Place> = {
            let mut table = self.table.lock();
            keys.iter().map_while(|key| table.take_hold(key)).collect()
        };
        if places.len() < keys.len() {
            count(&self.figures.misses);
        }
        let mut told = Vec::with_capacity(places.len());
        let mut buffer = self.buffer();
        while told.len() < places.len() {
            let from = told.len();
            let run = self.run_length(&places[from..]);
            let bytes = &mut buffer[..run * self.slot_bytes];
            // What can't be read together is read one by one, so that only what is bad is lost.
            let read = self.data.read_at(bytes, self.offset(places[from].slot)).is_ok();
            for (at, slot_bytes) in (from..).zip(bytes.chunks_exact(self.slot_bytes)) {
                let part = &mut into[at * block_bytes..(at + 1) * block_bytes];
                let got = if read {
                    let slot = self.examine(&keys[at], places[at], slot_bytes, part);
                    self.conclude(&keys[at], places[at], slot, now_ms)
                } else {
                    self.read_one(&keys[at], places[at], part, now_ms)
                };
                let Get::Hit(held) = got else {
                    let mut table = self.table.lock();
                    for (key, place) in keys.iter().zip(&places).skip(at + 1) {
                        table.let_go(key, *place);
                    }
                    return Ok(told);
                };
                told.push(held);
            }
        }
        self.give_buffer(buffer);
        Ok(told)
    }

    /// Reads a block that is held, and lets it go.
    pub(super) fn read_one(
        &self,
        key: &BlockKey,
        place: Place,
        into: &mut [u8],
        now_ms: u64,
    ) -> Get {
        let mut buffer = self.buffer();
        let bytes = &mut buffer[..self.slot_bytes];
        let slot = match self.data.read_at(bytes, self.offset(place.slot)) {
            Ok(()) => self.examine(key, place, bytes, into),
            Err(_) => {
                into.fill(0);
                Slot::Unreadable
            }
        };
        self.give_buffer(buffer);
        self.conclude(key, place, slot, now_ms)
    }

    /// How many of the places, from the first on, lie beside each other; no more than one read takes.
    fn run_length(&self, places: &[Place]) -> usize {
        let beside = |pair: &&[Place]| pair[1].slot == pair[0].slot + 1;
        (1 + places.windows(2).take_while(beside).count()).min(self.run_slots)
    }

    /// Whether a slot's bytes are what they should be; if so they are in `into` then, else zeros are: a slot that was
    /// forgotten while it is read may have the header of one tenant's block and bytes of another's.
    fn examine(&self, key: &BlockKey, place: Place, bytes: &[u8], into: &mut [u8]) -> Slot {
        let Some(header) = Header::decode(&bytes[bytes.len() - HEADER_BYTES..]) else {
            into.fill(0);
            return Slot::Broken;
        };
        let meant = header.kind == Kind::Block
            && header.key == *key
            && header.slot == place.slot
            && header.generation == place.generation
            && header.length as usize == into.len();
        if meant && copy_summed(&bytes[..into.len()], into) == header.sum {
            Slot::Whole(header.held())
        } else {
            into.fill(0);
            Slot::Broken
        }
    }

    fn conclude(&self, key: &BlockKey, place: Place, slot: Slot, now_ms: u64) -> Get {
        let mut table = self.table.lock();
        let still = table.let_go(key, place);
        if let Slot::Whole(held) = slot {
            let retention = table.shelf.retention_of(place.slot).filter(|_| still);
            count(&self.figures.hits);
            add(&self.figures.read_bytes, u64::from(self.layout.block_bytes));
            return Get::Hit(Held { retention: retention.unwrap_or(held.retention), ..held });
        }
        // A slot that went to another block meanwhile says nothing about this one.
        if !still {
            count(&self.figures.misses);
            return Get::Miss;
        }
        let broken = matches!(slot, Slot::Broken);
        count(if broken { &self.figures.bad_sums } else { &self.figures.faults });
        self.quarantine(&mut table, place.slot);
        drop(table);
        self.flush(now_ms);
        Get::Bad
    }
}
