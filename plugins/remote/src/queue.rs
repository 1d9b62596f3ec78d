//! Requests that wait for the server: by priority, then by arrival. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use mainstay_engine_abi::sdk::Request;

type Place = (Reverse<i32>, u64);

/// Those that wait. How many there may be is the door's business.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<Place, Request>,
    places: HashMap<u64, Place>,
    arrivals: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, request: Request) {
        let place = (Reverse(request.priority), self.arrivals);
        self.arrivals += 1;
        self.places.insert(request.id, place);
        self.waiting.insert(place, request);
    }

    /// The next one.
    pub(crate) fn pop(&mut self) -> Option<Request> {
        let (_, request) = self.waiting.pop_first()?;
        self.places.remove(&request.id);
        Some(request)
    }

    /// Takes one out, wherever it is.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        self.places.remove(&id).is_some_and(|place| self.waiting.remove(&place).is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urgent_go_first_and_then_the_early() {
        let mut queue = Queue::default();
        for (id, priority) in [(1, 0), (2, -1), (3, 5), (4, 0)] {
            queue.push(Request { id, priority, ..Request::default() });
        }
        assert!(queue.remove(4) && !queue.remove(4));
        let order: Vec<u64> =
            std::iter::from_fn(|| queue.pop()).map(|request| request.id).collect();
        assert_eq!((order, queue.is_empty()), (vec![3, 1, 2], true));
    }
}
