//! Lists of messages and the variable `loop`, which note how much of them was looked at.
//!
//! To the engine they are what its own would be; a list without its first items shares the items with the whole one.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind};

use super::reads::{Counter, Read, Reads};

/// The place beside another; none before the first.
pub(super) fn beside(index: usize, next: bool) -> usize {
    if next { index + 1 } else { index.wrapping_sub(1) }
}

/// A list of messages or tools, or what is left of one without its first items.
#[derive(Debug, Clone)]
pub(in crate::template) struct List {
    /// The variable that holds it, or held what it is left of when the part began.
    pub(super) name: usize,
    /// All items, those too that were left out.
    pub(super) items: Arc<[Value]>,
    pub(super) numbers: Arc<[u64]>,
    /// How many are left out.
    pub(super) start: usize,
    /// How many of those are not left out of what the variable held.
    pub(super) above: usize,
    /// What the engine takes it for.
    pub(super) repr: ObjectRepr,
    pub(super) reads: Arc<Reads>,
}

impl List {
    pub(in crate::template) fn items(&self) -> &[Value] {
        &self.items[self.start..]
    }

    pub(super) fn number(&self, index: usize) -> u64 {
        let place = self.start.checked_add(index);
        place.and_then(|place| self.numbers.get(place)).copied().unwrap_or(0)
    }

    pub(super) fn without(&self, skip: usize) -> Option<List> {
        let left = skip <= self.items().len();
        // A slice is lazy, so the engine does not take it for a sequence.
        let repr = ObjectRepr::Iterable;
        let (start, above) = (self.start + skip, self.above + skip);
        left.then(|| List { start, above, repr, ..self.clone() })
    }

    pub(super) fn renamed(&self, name: usize) -> List {
        List { name, above: 0, ..self.clone() }
    }
}

/// The filter in whose place a template has `list[skip:]`: the slice, without asking how long the list is.
pub(in crate::template) fn rest(list: &Value, skip: usize) -> Result<Value, Error> {
    let rest = list.downcast_object_ref::<List>().and_then(|list| list.without(skip));
    rest.map(Value::from_object)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "this list is not known in parts"))
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        self.repr
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = key.as_usize()?;
        let place = self.above.checked_add(index)?;
        self.reads.push(Read::Item(self.name, place, self.number(index)));
        self.items().get(index).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let start = self.start - self.above;
        self.reads.push(Read::All(self.name, Arc::clone(&self.numbers), start));
        let (items, start) = (Arc::clone(&self.items), self.start);
        Enumerator::Iter(Box::new((start..items.len()).map(move |index| items[index].clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        let length = self.items().len();
        self.reads.push(Read::Length(self.name, self.above + length));
        Some(length)
    }

    fn is_true(self: &Arc<Self>) -> bool {
        let filled = !self.items().is_empty();
        self.reads.push(match self.above {
            0 => Read::Filled(self.name, filled),
            above => Read::Item(self.name, above, self.number(0)),
        });
        filled
    }
}

/// The variable `loop`.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) list: Arc<List>,
    pub(super) index: usize,
    pub(super) reads: Arc<Reads>,
}

impl Object for Loop {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let counter = match key {
            "index" => Counter::Index,
            "index0" => Counter::Index0,
            "revindex" => Counter::Rest,
            "revindex0" => Counter::Rest0,
            "length" => Counter::Length,
            "first" => Counter::First,
            "last" => Counter::Last,
            "depth" => return Some(Value::from(1)),
            "depth0" => return Some(Value::from(0)),
            "previtem" | "nextitem" => {
                let next = key == "nextitem";
                let place = beside(self.index, next);
                self.reads.push(Read::Beside(next, self.list.number(place)));
                return Some(self.list.items().get(place).cloned().unwrap_or_default());
            }
            _ => return None,
        };
        let count = counter.count(self.index, self.list.items().len());
        self.reads.push(Read::Loop(counter, count));
        Some(match counter {
            Counter::First | Counter::Last => Value::from(count == 1),
            _ => Value::from(count),
        })
    }
}
