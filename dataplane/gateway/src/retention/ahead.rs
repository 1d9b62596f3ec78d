//! Sessions for which something is to be done before they come back: in line, or at work, each once. No I/O.
//!
//! Both are bounded: who finds no room is told so. Whoever comes back is taken out of line, and what is at work
//! for it is called off.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use mainstay_block::SessionId;
use tokio::sync::Notify;

/// What becomes of a session that is entered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is in line.
    Waits,
    /// It was there already.
    Known,
    /// There is no room.
    Full,
}

/// See the module.
pub(super) struct Ahead {
    waiting: VecDeque<SessionId>,
    in_line: HashSet<SessionId, RandomState>,
    /// Those at work, and how they are called off.
    running: HashMap<SessionId, Arc<Notify>, RandomState>,
    waiting_max: usize,
    running_max: usize,
}

impl Ahead {
    pub(super) fn new(waiting_max: usize, running_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            in_line: HashSet::default(),
            running: HashMap::default(),
            waiting_max,
            running_max,
        }
    }

    /// Puts a session in line.
    pub(super) fn enter(&mut self, session: SessionId) -> Entered {
        if self.in_line.contains(&session) || self.running.contains_key(&session) {
            return Entered::Known;
        }
        if self.in_line.len() >= self.waiting_max {
            return Entered::Full;
        }
        self.in_line.insert(session);
        self.waiting.push_back(session);
        Entered::Waits
    }

    /// Begins with a session that does not wait in line. The caller is to say when it is done.
    pub(super) fn begin(&mut self, session: SessionId) -> Result<Arc<Notify>, Entered> {
        if self.running.contains_key(&session) {
            return Err(Entered::Known);
        }
        if self.running.len() >= self.running_max {
            return Err(Entered::Full);
        }
        self.in_line.remove(&session);
        let stop = Arc::new(Notify::new());
        self.running.insert(session, Arc::clone(&stop));
        Ok(stop)
    }

    /// Begins with the next in line, if one more may be at work.
    pub(super) fn next(&mut self) -> Option<(SessionId, Arc<Notify>)> {
        while self.running.len() < self.running_max {
            let session = self.waiting.pop_front()?;
            // One that was taken out of line meanwhile has left its place.
            if !self.in_line.contains(&session) {
                continue;
            }
            if let Ok(stop) = self.begin(session) {
                return Some((session, stop));
            }
        }
        None
    }

    /// What was begun is over; `stop` tells it from what may have begun since.
    pub(super) fn done(&mut self, session: SessionId, stop: &Arc<Notify>) {
        if self.running.get(&session).is_some_and(|now| Arc::ptr_eq(now, stop)) {
            self.running.remove(&session);
        }
    }

    /// It is back, or has ended: true where it had been in line, and nothing else is to say what became of it.
    pub(super) fn call_off(&mut self, session: SessionId) -> bool {
        if let Some(stop) = self.running.get(&session) {
            stop.notify_one();
        }
        let waited = self.in_line.remove(&session);
        if self.waiting.len() > 2 * self.waiting_max {
            self.waiting.retain(|session| self.in_line.contains(session));
        }
        waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: [SessionId; 4] = [SessionId(1), SessionId(2), SessionId(3), SessionId(4)];

    #[test]
    fn each_is_there_once_and_both_sides_are_bounded() {
        let mut ahead = Ahead::new(2, 1);
        assert_eq!(ahead.enter(S[0]), Entered::Waits);
        assert_eq!(ahead.enter(S[0]), Entered::Known);
        let (first, stop) = ahead.next().expect("one may be at work");
        assert_eq!((first, ahead.enter(S[0])), (S[0], Entered::Known));
        assert_eq!(ahead.enter(S[1]), Entered::Waits);
        assert_eq!(ahead.enter(S[2]), Entered::Waits);
        assert_eq!(ahead.enter(S[3]), Entered::Full);
        assert!(ahead.next().is_none(), "one is at work");
        assert_eq!(ahead.begin(S[3]).err(), Some(Entered::Full));
        ahead.done(S[0], &stop);
        // Somebody asks for one that is in line: it goes at once, and not a second time.
        let second = ahead.begin(S[2]).expect("room");
        ahead.done(S[2], &second);
        assert_eq!(ahead.next().map(|(session, _)| session), Some(S[1]));
        assert!(ahead.waiting.is_empty() || ahead.in_line.is_empty());
    }

    #[tokio::test]
    async fn who_comes_back_leaves_the_line_and_stops_what_is_at_work() {
        let mut ahead = Ahead::new(2, 1);
        for session in [S[0], S[1]] {
            ahead.enter(session);
        }
        let (_, stop) = ahead.next().expect("work");
        assert!(ahead.call_off(S[1]) && !ahead.call_off(S[0]) && !ahead.call_off(S[3]));
        stop.notified().await;
        // An end that comes late does not end what began since.
        ahead.done(S[0], &stop);
        let again = ahead.begin(S[0]).expect("room");
        ahead.done(S[0], &stop);
        assert_eq!(ahead.begin(S[0]).err(), Some(Entered::Known));
        ahead.done(S[0], &again);
        assert!(ahead.next().is_none(), "nobody is in line");
        // A line that is entered and left all the time does not grow.
        for n in 0..1_000 {
            ahead.enter(SessionId(n));
            ahead.call_off(SessionId(n));
        }
        assert!(ahead.waiting.len() <= 5, "{}", ahead.waiting.len());
    }
}
