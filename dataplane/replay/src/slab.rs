//! A list whose places are used again: what is alive has a small number that stays.
//!
//! Sessions and requests are named by such numbers in events; an event about one that has ended finds nothing, or
//! the next one, which is why callers drop what they gave away.

/// Places that are used again.
pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn add(&mut self, item: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self.places[at as usize] = Some(item);
            return at;
        }
        self.places.push(Some(item));
        self.places.len() as u32 - 1
    }

    pub(crate) fn get(&mut self, at: u32) -> Option<&mut T> {
        self.places.get_mut(at as usize)?.as_mut()
    }

    pub(crate) fn take(&mut self, at: u32) -> Option<T> {
        let item = self.places.get_mut(at as usize)?.take()?;
        self.free.push(at);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again() {
        let mut slab = Slab::default();
        let (a, b) = (slab.add('a'), slab.add('b'));
        assert_eq!(
            (slab.take(a), slab.take(a), slab.get(b).copied()),
            (Some('a'), None, Some('b'))
        );
        assert_eq!((slab.add('c'), slab.get(9)), (a, None));
    }
}
