//! What a part of a template read of its variables.
//!
//! Each question is kept once, with what was found. The list has a limit: a part that asks for more is cheaper to run
//! than to compare.

use std::sync::{Arc, Mutex};

use minijinja::Value;
use minijinja::value::ObjectRepr;

use super::values::Weight;
use super::{Held, locked};

/// Most lookups of a part that are worth comparing.
const READS_MAX: usize = 48;

/// What a part found when it looked something up.
#[derive(Debug, Clone)]
pub(in crate::template) enum Read {
    /// Nothing under this name.
    Absent(usize),
    /// A scalar or a text.
    Value(usize, Value),
    /// An object that is known by its number.
    Object(usize, u64),
    /// A list, however long it may be.
    List(usize, ObjectRepr),
    /// A namespace with these members.
    Names(usize, Arc<Held>),
    /// An item of a list: its place and its number, 0 where there was none.
    Item(usize, usize, u64),
    /// How many items a list has.
    Length(usize, usize),
    /// Whether a list has any.
    Filled(usize, bool),
    /// All items of a list: the numbers from a place on.
    All(usize, Arc<[u64]>, usize),
    /// A number or a switch of the loop.
    Loop(Counter, usize),
    /// The item before this one in the loop, or the one after it.
    Beside(bool, u64),
}

impl Read {
    /// Whether both asked the same.
    fn asks_same(&self, other: &Read) -> bool {
        match (self, other) {
            (Read::Item(a, i, _), Read::Item(b, j, _)) => a == b && i == j,
            (Read::Length(a, _), Read::Length(b, _))
            | (Read::Filled(a, _), Read::Filled(b, _))
            | (Read::All(a, ..), Read::All(b, ..)) => a == b,
            (Read::Loop(a, _), Read::Loop(b, _)) => a == b,
            (Read::Beside(a, _), Read::Beside(b, _)) => a == b,
            (a, b) => a.name().is_some() && a.name() == b.name(),
        }
    }

    /// Adds what it keeps in memory.
    pub(in crate::template) fn weigh(&self, weight: &mut Weight) {
        weight.bytes += size_of::<Self>();
        match self {
            Read::Value(_, value) => weight.add(value),
            Read::Names(_, held) => held.weigh(weight),
            Read::All(_, numbers, _) => weight.bytes += size_of_val(&**numbers),
            _ => {}
        }
    }

    fn name(&self) -> Option<usize> {
        match self {
            Read::Absent(name)
            | Read::Value(name, _)
            | Read::Object(name, _)
            | Read::List(name, _)
            | Read::Names(name, _) => Some(*name),
            _ => None,
        }
    }
}

/// What is asked of `loop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::template) enum Counter {
    Index,
    Index0,
    Rest,
    Rest0,
    Length,
    First,
    Last,
}

/// What a part read so far; nothing once it read what can't be compared, or too much.
#[derive(Debug, Default)]
pub(super) struct Reads(Mutex<Option<Vec<Read>>>);

impl Reads {
    /// Begins anew.
    pub(super) fn begin(&self) {
        *locked(&self.0) = Some(Vec::new());
    }

    /// What was read since.
    pub(super) fn take(&self) -> Option<Vec<Read>> {
        locked(&self.0).take()
    }

    pub(super) fn push(&self, read: Read) {
        let mut reads = locked(&self.0);
        let Some(list) = &mut *reads else { return };
        if list.iter().any(|known| known.asks_same(&read)) {
            return;
        }
        if list.len() >= READS_MAX {
            *reads = None;
        } else {
            list.push(read);
        }
    }

    pub(super) fn spoil(&self) {
        *locked(&self.0) = None;
    }
}

impl Counter {
    /// What the loop says of itself at an item of a list.
    pub(super) fn count(self, index: usize, length: usize) -> usize {
        match self {
            Counter::Index => index + 1,
            Counter::Index0 => index,
            Counter::Rest => length - index,
            Counter::Rest0 => length - index - 1,
            Counter::Length => length,
            Counter::First => usize::from(index == 0),
            Counter::Last => usize::from(index + 1 == length),
        }
    }
}
