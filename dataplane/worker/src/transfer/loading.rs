//! One load for one prefix: whoever lacks the same first block waits for who asked first, and takes over what came.
//!
//! Only requests in flight are in the table, and each waits no longer than its own load might take.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use mainstay_types::SequenceHash;
use parking_lot::Mutex;
use tokio::sync::watch;

/// What came in, once it is known.
type Brought = Option<Arc<[SequenceHash]>>;
type Table = Arc<Mutex<HashMap<SequenceHash, watch::Receiver<Brought>>>>;

/// The loads of this worker.
#[derive(Default)]
pub(crate) struct Loading {
    table: Table,
}

/// Whose turn it is.
pub(crate) enum Turn {
    /// The caller's.
    First(Lead),
    /// Another's, who is to be waited for.
    After(Follow),
}

/// Brings in for itself and for those that follow. Gone without a word, it leaves its turn to the next.
pub(crate) struct Lead {
    first: SequenceHash,
    table: Table,
    tell: watch::Sender<Brought>,
}

/// Waits for a [`Lead`].
pub(crate) struct Follow(watch::Receiver<Brought>);

impl Loading {
    /// Joins the load of what begins with this block.
    pub(crate) fn enter(&self, first: SequenceHash) -> Turn {
        match self.table.lock().entry(first) {
            Entry::Occupied(known) => Turn::After(Follow(known.get().clone())),
            Entry::Vacant(place) => {
                let (tell, told) = watch::channel(None);
                place.insert(told);
                Turn::First(Lead { first, table: Arc::clone(&self.table), tell })
            }
        }
    }
}

impl Lead {
    /// Tells what came in, from the first block on.
    pub(crate) fn brought(self, blocks: &[SequenceHash]) {
        self.tell.send_replace(Some(blocks.into()));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // Before the sender goes: whoever is woken by that finds the place free.
        self.table.lock().remove(&self.first);
    }
}

impl Follow {
    /// What came in; `None` if the other gave up, and somebody else may try.
    pub(crate) async fn brought(mut self) -> Brought {
        match self.0.wait_for(Option::is_some).await {
            Ok(brought) => brought.clone(),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: [SequenceHash; 2] = [SequenceHash(1), SequenceHash(2)];

    #[tokio::test]
    async fn the_first_brings_in_and_the_others_hear_what() {
        let loading = Loading::default();
        let Turn::First(lead) = loading.enter(BLOCKS[0]) else { panic!("nobody else is there") };
        let Turn::After(one) = loading.enter(BLOCKS[0]) else { panic!("somebody brings it in") };
        let Turn::After(two) = loading.enter(BLOCKS[0]) else { panic!("somebody brings it in") };
        assert!(matches!(loading.enter(BLOCKS[1]), Turn::First(_)), "another prefix");
        lead.brought(&BLOCKS);
        assert_eq!(one.brought().await.as_deref(), Some(&BLOCKS[..]));
        assert_eq!(two.brought().await.as_deref(), Some(&BLOCKS[..]));
        assert!(loading.table.lock().is_empty());
    }

    #[tokio::test]
    async fn one_that_gives_up_leaves_its_turn_to_the_next() {
        let loading = Loading::default();
        let Turn::First(lead) = loading.enter(BLOCKS[0]) else { panic!("nobody else is there") };
        let Turn::After(follow) = loading.enter(BLOCKS[0]) else { panic!("somebody is there") };
        drop(lead);
        assert_eq!(follow.brought().await, None);
        assert!(matches!(loading.enter(BLOCKS[0]), Turn::First(_)));
    }
}
