//! What was made once and may be asked for again: a map bounded by the bytes that its values take.
//!
//! Two generations: what is used moves to the young one, and when that is full the old one is forgotten. So what belongs
//! to a conversation that goes on stays, and what belongs to one that ended leaves, at the cost of one look for each use
//! and no order to be kept. What is found is a hint: whoever asks can make the value again.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::mem;
use std::sync::{Mutex, PoisonError};

/// One value may take this share of a generation, so that none pushes out all others.
const SHARE: usize = 8;

struct Held<V> {
    value: V,
    bytes: usize,
}

struct Generation<K, V, S> {
    held: HashMap<K, Held<V>, S>,
    bytes: usize,
}

impl<K, V, S: Default> Default for Generation<K, V, S> {
    fn default() -> Self {
        Self { held: HashMap::default(), bytes: 0 }
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> Generation<K, V, S> {
    fn get(&self, key: &K) -> Option<&V> {
        self.held.get(key).map(|held| &held.value)
    }

    fn insert(&mut self, key: K, held: Held<V>) -> Option<V> {
        self.bytes += held.bytes;
        let before = self.held.insert(key, held)?;
        self.bytes -= before.bytes;
        Some(before.value)
    }

    fn take(&mut self, key: &K) -> Option<Held<V>> {
        let taken = self.held.remove(key)?;
        self.bytes -= taken.bytes;
        Some(taken)
    }
}

/// Both generations, under the lock of a [`Memory`].
pub struct Generations<K, V, S = RandomState> {
    young: Generation<K, V, S>,
    old: Generation<K, V, S>,
    /// Of one generation.
    bytes_max: usize,
    /// What is to be dropped once nobody waits for the lock.
    forgotten: Vec<Generation<K, V, S>>,
    replaced: Vec<V>,
}

impl<K: Eq + Hash, V, S: BuildHasher + Default> Generations<K, V, S> {
    fn new(bytes_max: usize) -> Self {
        let (young, old) = (Generation::default(), Generation::default());
        Self { young, old, bytes_max: bytes_max / 2, forgotten: Vec::new(), replaced: Vec::new() }
    }

    /// A value that fits, which stays longer for being asked for.
    pub fn find(&mut self, key: &K, fits: impl Fn(&V) -> bool) -> Option<&V>
    where
        K: Clone,
    {
        if !self.young.held.contains_key(key) {
            self.old.get(key).filter(|value| fits(value))?;
            let held = self.old.take(key)?;
            self.put(key.clone(), held);
        }
        self.young.get(key).filter(|value| fits(value))
    }

    /// What there is under a key, the young one first, which stays no longer for it.
    pub fn look(&self, key: &K) -> impl Iterator<Item = &V> + use<'_, K, V, S> {
        [self.young.get(key), self.old.get(key)].into_iter().flatten()
    }

    /// Remembers a value that takes so many bytes, in the place of the one that had its key; not one that is too large.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) {
        if bytes <= self.bytes_max / SHARE {
            self.put(key, Held { value, bytes });
        }
    }

    /// Forgets what is young under a key, if it is what is meant.
    pub fn remove_young(&mut self, key: &K, meant: impl Fn(&V) -> bool) {
        if self.young.get(key).is_some_and(meant) {
            self.replaced.extend(self.young.take(key).map(|held| held.value));
        }
    }

    /// Bytes of all that is held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.young.bytes + self.old.bytes
    }

    /// How many values are held.
    #[must_use]
    pub fn values(&self) -> usize {
        self.young.held.len() + self.old.held.len()
    }

    #[cfg(test)]
    pub(crate) fn clear(&mut self) {
        (self.young, self.old) = (Generation::default(), Generation::default());
    }

    fn put(&mut self, key: K, held: Held<V>) {
        if self.young.bytes + held.bytes > self.bytes_max {
            let young = mem::take(&mut self.young);
            self.forgotten.push(mem::replace(&mut self.old, young));
        }
        self.replaced.extend(self.young.insert(key, held));
    }
}

/// What is remembered, for all who ask at once.
pub struct Memory<K, V, S = RandomState>(Mutex<Generations<K, V, S>>);

impl<K: Eq + Hash, V, S: BuildHasher + Default> Memory<K, V, S> {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self(Mutex::new(Generations::new(bytes_max)))
    }

    /// Works on it while others wait, who do not wait for what is forgotten to be dropped.
    pub fn with<T>(&self, work: impl FnOnce(&mut Generations<K, V, S>) -> T) -> T {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = work(&mut generations);
        let forgotten = mem::take(&mut generations.forgotten);
        let replaced = mem::take(&mut generations.replaced);
        drop(generations);
        drop((forgotten, replaced));
        made
    }
}

impl<K, V, S> std::fmt::Debug for Memory<K, V, S> {
    /// Says nothing of what clients wrote.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Weak};

    use super::*;

    const ALL: usize = 1_000;

    fn asked(memory: &Memory<u32, Arc<u32>>, key: u32) -> bool {
        memory.with(|known| known.find(&key, |_| true).is_some())
    }

    #[test]
    fn what_is_used_stays_what_is_not_leaves_and_the_whole_is_bounded() {
        let memory = Memory::<u32, Arc<u32>>::new(ALL);
        let keep = |key: u32| memory.with(|known| known.insert(key, Arc::new(key), 60));
        keep(0);
        keep(1);
        let mut bytes_most = 0;
        for key in 2..200 {
            keep(key);
            assert!(asked(&memory, 0), "after {key}");
            bytes_most = bytes_most.max(memory.with(|known| known.bytes()));
        }
        assert!(!asked(&memory, 1), "nobody asked for it");
        assert!((ALL / 2..=ALL).contains(&bytes_most), "{bytes_most}");
    }

    #[test]
    fn what_is_too_large_or_does_not_fit_is_not_found() {
        let memory = Memory::<u32, Arc<u32>>::new(ALL);
        memory.with(|known| {
            known.insert(1, Arc::new(1), ALL);
            known.insert(2, Arc::new(2), 1);
        });
        assert!(!asked(&memory, 1));
        assert!(memory.with(|known| known.find(&2, |value| **value == 3).is_none()));
        assert!(asked(&memory, 2), "somebody else may mean it");
    }

    #[test]
    fn what_takes_anothers_place_takes_its_bytes_too_and_the_other_is_gone() {
        let memory = Memory::<u32, Arc<u32>>::new(ALL);
        let first = Arc::new(1);
        let last = Arc::new(2);
        memory.with(|known| known.insert(1, Arc::clone(&first), 50));
        memory.with(|known| known.insert(1, Arc::clone(&last), 20));
        assert_eq!(memory.with(|known| (known.bytes(), known.values())), (20, 1));
        assert_eq!(Arc::strong_count(&first), 1);
        memory.with(|known| known.remove_young(&1, |value| **value == 1));
        assert!(asked(&memory, 1), "another was meant");
        memory.with(|known| known.remove_young(&1, |value| **value == 2));
        assert_eq!(memory.with(|known| known.bytes()), 0);
        assert_eq!(Arc::strong_count(&last), 1);
    }

    #[test]
    fn what_is_old_is_seen_without_becoming_young() {
        let memory = Memory::<u32, Arc<u32>>::new(ALL);
        memory.with(|known| known.insert(0, Arc::new(0), 60));
        let seen = |key: u32| memory.with(|known| known.look(&key).count());
        for key in 1..10 {
            assert_eq!(seen(0), 1);
            memory.with(|known| known.insert(key, Arc::new(key), 60));
        }
        for key in 10..20 {
            memory.with(|known| known.insert(key, Arc::new(key), 60));
        }
        assert_eq!(seen(0), 0);
    }

    /// Tells, when it is dropped, whether somebody had to wait for that.
    struct Probe(Weak<Memory<u32, Probe>>, Arc<[AtomicUsize; 2]>);

    impl Drop for Probe {
        fn drop(&mut self) {
            let Some(memory) = self.0.upgrade() else { return };
            let free = memory.0.try_lock().is_ok();
            self.1[usize::from(free)].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn nobody_waits_while_what_is_forgotten_or_replaced_is_dropped() {
        let memory = Arc::new(Memory::<u32, Probe>::new(ALL));
        let dropped = Arc::new([0, 0].map(AtomicUsize::new));
        for key in 0..200 {
            let probe = Probe(Arc::downgrade(&memory), Arc::clone(&dropped));
            memory.with(|known| known.insert(key % 90, probe, 60));
            memory.with(|known| known.remove_young(&(key % 7), |_| true));
        }
        let seen = [0, 1].map(|n: usize| dropped[n].load(Ordering::Relaxed));
        assert_eq!(seen[0], 0, "dropped under the lock");
        assert!(seen[1] > 100, "{seen:?}");
    }
}
