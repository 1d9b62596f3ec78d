//! The variables of a template that is rendered part by part, and what each part read of them.
//!
//! What a part renders depends on nothing but what it looks up, so each lookup is recorded with what was found. Lists
//! of messages and the variable `loop` record how much of them was looked at: a part that asked for one message does
//! not depend on how many there are. Values are compared by their content where that is short work, and by identity
//! where they are objects that stay the same for a session; whatever can be compared by neither makes a part depend
//! on something that never comes again.

mod lists;
mod reads;
mod values;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::State;
use minijinja::value::{Object, ObjectRepr, Value, ValueKind};

use lists::{Loop, beside};
use reads::Reads;
use values::{is_contained, is_scalar, number, same};

pub(super) use lists::{List, rest};
pub(super) use reads::Read;
pub(super) use values::Weight;

/// Most values in a container that a variable may hold.
const CONTAINED_MAX: usize = 4_096;
/// Deepest nesting of such a container.
const DEPTH_MAX: usize = 8;

/// The names that parts may look up; a name is known by its place.
#[derive(Debug)]
pub(super) struct Names(Vec<String>);

impl Names {
    pub(super) fn new(mut names: Vec<String>) -> Self {
        names.sort();
        Self(names)
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.0.binary_search_by(|known| known.as_str().cmp(name)).ok()
    }

    fn hidden(&self) -> impl Iterator<Item = &str> {
        let start = self.0.partition_point(|name| name.as_str() < "_");
        self.0[start..].iter().map(String::as_str).take_while(|name| name.starts_with('_'))
    }
}

/// What a namespace holds, by name.
#[derive(Debug)]
pub(super) struct Held {
    members: Vec<(String, Value)>,
    /// Whether all of it can be compared.
    comparable: bool,
}

impl Held {
    fn of(namespace: &Value) -> Option<Self> {
        let mut members = Vec::new();
        for key in namespace.try_iter().ok()? {
            let name = key.as_str()?.to_owned();
            let value = namespace.get_attr(&name).ok()?;
            if !is_contained(&value, DEPTH_MAX, &mut CONTAINED_MAX.clone()) {
                return None;
            }
            members.push((name, value));
        }
        let comparable = members.iter().all(|(_, value)| is_scalar(value));
        Some(Self { members, comparable })
    }

    fn same(&self, other: &Self) -> bool {
        self.comparable
            && other.comparable
            && self.members.len() == other.members.len()
            && self.members.iter().zip(&other.members).all(|(a, b)| a.0 == b.0 && same(&a.1, &b.1))
    }

    fn weigh(&self, weight: &mut Weight) {
        for (name, value) in &self.members {
            weight.bytes += size_of::<String>() + name.len();
            weight.add(value);
        }
    }

    fn namespace(&self) -> Option<Value> {
        let members = self.members.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let members: Value = Value::from_pairs(members);
        minijinja::functions::namespace(Some(members.into())).ok()
    }
}

/// A variable.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    Absent,
    Plain(Value),
    List(Arc<List>),
    Names {
        held: Arc<Held>,
        /// The namespace itself, once a part has looked it up since `held` was put here.
        live: Option<Value>,
    },
}

/// What a part leaves behind in a variable.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Value(Value),
    Names(Arc<Held>),
    /// A list that another variable held before, without its first items.
    List {
        of: usize,
        skip: usize,
        repr: ObjectRepr,
    },
}

impl Write {
    /// Adds what it keeps in memory.
    pub(super) fn weigh(&self, weight: &mut Weight) {
        weight.bytes += size_of::<(usize, Self)>();
        match self {
            Write::Value(value) => weight.add(value),
            Write::Names(held) => held.weigh(weight),
            Write::List { .. } => {}
        }
    }
}

/// What a part did: the variables it set, and what is in them.
pub(super) type Writes = Vec<(usize, Write)>;

/// The variable of a loop and the loop itself, while one of its items is rendered.
#[derive(Debug)]
struct Turn {
    name: usize,
    item: Value,
    around: Value,
}

#[derive(Debug)]
struct Inner {
    slots: Vec<Slot>,
    turn: Option<Turn>,
}

/// The variables of one rendering, which the engine looks names up in.
#[derive(Debug)]
pub(super) struct Scope {
    names: Arc<Names>,
    loop_name: Option<usize>,
    inner: Mutex<Inner>,
    reads: Arc<Reads>,
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let name = self.names.find(key)?;
        let mut inner = locked(&self.inner);
        if let Some(turn) = &inner.turn {
            if turn.name == name {
                return Some(turn.item.clone());
            }
            if self.loop_name == Some(name) {
                return Some(turn.around.clone());
            }
        }
        let (read, found) = match inner.slots.get_mut(name)? {
            Slot::Absent => (Read::Absent(name), None),
            Slot::List(list) => {
                (Read::List(name, list.repr), Some(Value::from_dyn_object(Arc::clone(list))))
            }
            Slot::Names { held, live } => {
                let found = live.clone().or_else(|| held.namespace());
                live.clone_from(&found);
                (Read::Names(name, Arc::clone(held)), found)
            }
            Slot::Plain(value) => {
                let found = Some(value.clone());
                match (number(value), is_scalar(value)) {
                    (Some(number), _) => (Read::Object(name, number), found),
                    (None, true) => (Read::Value(name, value.clone()), found),
                    (None, false) => {
                        self.reads.spoil();
                        return found;
                    }
                }
            }
        };
        drop(inner);
        if matches!(&read, Read::Names(_, held) if !held.comparable) {
            self.reads.spoil();
        }
        self.reads.push(read);
        found
    }
}

impl Scope {
    pub(super) fn new(names: Arc<Names>) -> Self {
        let slots = vec![Slot::Absent; names.0.len()];
        Self {
            loop_name: names.find("loop"),
            names,
            inner: Mutex::new(Inner { slots, turn: None }),
            reads: Arc::default(),
        }
    }

    /// Defines a variable, if the template mentions it.
    pub(super) fn define(&self, name: &str, value: Value) {
        if let Some(name) = self.names.find(name) {
            let slot = match self.list_of(name, &value) {
                Some(list) => Slot::List(list),
                None => Slot::Plain(value),
            };
            locked(&self.inner).slots[name] = slot;
        }
    }

    /// The list under a name, if there is one.
    pub(super) fn list(&self, name: usize) -> Option<Arc<List>> {
        match &locked(&self.inner).slots[name] {
            Slot::List(list) => Some(Arc::clone(list)),
            _ => None,
        }
    }

    /// Begins a part, or an item of a loop.
    pub(super) fn begin(&self, turn: Option<(usize, &Arc<List>, usize)>) {
        self.reads.begin();
        locked(&self.inner).turn = turn.map(|(name, list, index)| Turn {
            name,
            item: list.items()[index].clone(),
            around: Value::from_object(Loop {
                list: Arc::clone(list),
                index,
                reads: Arc::clone(&self.reads),
            }),
        });
    }

    /// What the part read, if that can be compared, and the namespaces that it changed; nothing at all if it left
    /// something in one that parts can't share.
    pub(super) fn end(&self) -> Option<(Option<Vec<Read>>, Writes)> {
        let mut inner = locked(&self.inner);
        inner.turn = None;
        let mut writes = Vec::new();
        let mut comparable = true;
        for (name, slot) in inner.slots.iter_mut().enumerate() {
            let Slot::Names { held, live: Some(live) } = slot else { continue };
            let now = Held::of(live)?;
            if !now.same(held) {
                comparable &= now.comparable;
                *held = Arc::new(now);
                writes.push((name, Write::Names(Arc::clone(held))));
            }
        }
        let reads = self.reads.take().filter(|_| comparable);
        Some((reads, writes))
    }

    /// Takes over the variables that a part has set; nothing if parts can't share one. Whether all of them can be
    /// set again from what is added to `writes`.
    pub(super) fn export(
        &self,
        state: &State<'_, '_>,
        is_macro: impl Fn(&str) -> bool,
        sample: &Value,
        writes: &mut Writes,
    ) -> Option<bool> {
        let mut repeatable = true;
        // The engine does not list names with a leading underscore, which are variables all the same.
        let hidden = self.names.hidden();
        let exports = state.exports();
        for exported in exports.into_iter().chain(hidden) {
            if is_macro(exported) {
                continue;
            }
            let name = self.names.find(exported)?;
            let Some(value) = state.lookup(exported) else { continue };
            let (slot, write) = self.exported(name, value, sample)?;
            repeatable &= write.is_some();
            writes.retain(|(written, _)| *written != name);
            writes.extend(write.map(|write| (name, write)));
            locked(&self.inner).slots[name] = slot;
        }
        Some(repeatable)
    }

    fn exported(&self, name: usize, value: Value, sample: &Value) -> Option<(Slot, Option<Write>)> {
        if is_scalar(&value) || number(&value).is_some() {
            return Some((Slot::Plain(value.clone()), Some(Write::Value(value))));
        }
        let type_of = |value: &Value| value.as_object().map(|object| object.type_name());
        if type_of(&value) == type_of(sample) {
            let held = Arc::new(Held::of(&value)?);
            let write = held.comparable.then(|| Write::Names(Arc::clone(&held)));
            return Some((Slot::Names { held, live: Some(value) }, write));
        }
        if let Some(list) = value.downcast_object_ref::<List>() {
            let write = Write::List { of: list.name, skip: list.above, repr: list.repr };
            return Some((Slot::List(Arc::new(list.renamed(name))), Some(write)));
        }
        if let Some(list) = self.list_of(name, &value) {
            return Some((Slot::List(list), None));
        }
        is_contained(&value, DEPTH_MAX, &mut CONTAINED_MAX.clone())
            .then_some((Slot::Plain(value), None))
    }

    /// Whether a part that read this would read the same now.
    pub(super) fn holds(&self, reads: &[Read], turn: Option<(&List, usize)>) -> bool {
        let inner = locked(&self.inner);
        reads.iter().all(|read| inner.holds(read, turn))
    }

    /// Does what a part did when it ran; nothing if that can't be done.
    pub(super) fn apply(&self, writes: &[(usize, Write)]) -> Option<()> {
        if writes.is_empty() {
            return Some(());
        }
        let mut inner = locked(&self.inner);
        // Lists are those from before the part, whatever it has put in their place.
        let mut lists = Vec::new();
        for (name, write) in writes {
            if let Write::List { of, skip, repr } = write {
                let Slot::List(list) = &inner.slots[*of] else { return None };
                let list = List { repr: *repr, ..list.without(*skip)?.renamed(*name) };
                lists.push((*name, Slot::List(Arc::new(list))));
            }
        }
        for (name, write) in writes {
            inner.slots[*name] = match write {
                Write::Value(value) => Slot::Plain(value.clone()),
                Write::Names(held) => Slot::Names { held: Arc::clone(held), live: None },
                Write::List { .. } => continue,
            };
        }
        for (name, list) in lists {
            inner.slots[name] = list;
        }
        Some(())
    }

    fn list_of(&self, name: usize, value: &Value) -> Option<Arc<List>> {
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            return None;
        }
        let repr = value.as_object()?.repr();
        let length = value.len()?;
        if length > crate::limits::MESSAGES_MAX * 2 {
            return None;
        }
        let mut items = Vec::with_capacity(length);
        let mut numbers = Vec::with_capacity(length);
        for item in value.try_iter().ok()? {
            numbers.push(number(&item)?);
            items.push(item);
        }
        let reads = Arc::clone(&self.reads);
        (length == items.len()).then(|| {
            let (items, numbers) = (items.into(), numbers.into());
            Arc::new(List { name, items, numbers, start: 0, above: 0, repr, reads })
        })
    }
}

impl Inner {
    fn holds(&self, read: &Read, turn: Option<(&List, usize)>) -> bool {
        let list = |name: usize| match &self.slots[name] {
            Slot::List(list) => Some(list),
            _ => None,
        };
        match read {
            Read::Absent(name) => matches!(self.slots[*name], Slot::Absent),
            Read::Value(name, seen) => {
                matches!(&self.slots[*name], Slot::Plain(value) if same(value, seen))
            }
            Read::Object(name, seen) => {
                matches!(&self.slots[*name], Slot::Plain(value) if number(value) == Some(*seen))
            }
            Read::List(name, repr) => list(*name).is_some_and(|list| list.repr == *repr),
            Read::Names(name, seen) => matches!(&self.slots[*name], Slot::Names { held, .. }
                if Arc::ptr_eq(held, seen) || held.same(seen)),
            Read::Item(name, index, seen) => list(*name).is_some_and(|l| l.number(*index) == *seen),
            Read::Length(name, seen) => list(*name).is_some_and(|list| list.items().len() == *seen),
            Read::Filled(name, seen) => {
                list(*name).is_some_and(|list| list.items().is_empty() != *seen)
            }
            Read::All(name, seen, start) => {
                list(*name).is_some_and(|list| list.numbers[list.start..] == seen[*start..])
            }
            Read::Loop(counter, seen) => {
                turn.is_some_and(|(list, index)| counter.count(index, list.items().len()) == *seen)
            }
            Read::Beside(next, seen) => {
                turn.is_some_and(|(list, index)| list.number(beside(index, *next)) == *seen)
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
