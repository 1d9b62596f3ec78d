//! Numbers for namespaces, so that a run carries four bytes instead of sixteen.

use mainstay_types::NamespaceId;

use crate::hasher::KeyMap;

/// Namespaces that an index can tell apart: tenants times models times adapters.
const NAMESPACES_MAX: usize = 1 << 20;

/// All namespaces seen since the index was last empty.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    known: Vec<NamespaceId>,
    numbers: KeyMap<u128, u32>,
    /// The number that was asked for last, and will be next.
    last: u32,
}

impl Namespaces {
    /// The number of a namespace; `None` if there are too many.
    #[inline(always)]
    pub(crate) fn number(&mut self, id: NamespaceId) -> Option<u32> {
        if self.known.get(self.last as usize) != Some(&id) {
            self.last = self.look_up(id)?;
        }
        Some(self.last)
    }

    fn look_up(&mut self, id: NamespaceId) -> Option<u32> {
        if let Some(number) = self.numbers.get(&id.0) {
            return Some(*number);
        }
        if self.known.len() >= NAMESPACES_MAX {
            return None;
        }
        let number = self.known.len() as u32;
        self.known.push(id);
        self.numbers.insert(id.0, number);
        Some(number)
    }

    /// The namespace of a number.
    pub(crate) fn id(&self, number: u32) -> NamespaceId {
        self.known[number as usize]
    }

    /// Forgets all, once no run names any.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// An estimate of its memory.
    pub(crate) fn bytes(&self) -> u64 {
        (self.known.capacity() * size_of::<NamespaceId>() + self.numbers.capacity() * 33) as u64
    }
}
