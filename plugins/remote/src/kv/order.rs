//! The numbers of batches: what to do with the next one. Pure.
//!
//! Servers number their batches from 0 and begin again when they start; nothing says which life a number is of.
//! So the last batch is remembered by number and digest: a server that has another batch at that number, or
//! none, lives another life. Within a connection the numbers of live batches only rise.

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the next one; it counts as taken.
    Apply,
    /// It was taken before.
    Known,
    /// Batches before it are missing, from this number on.
    Missing { from: u64 },
    /// It is of another life: all that is known is void.
    Anew,
}

/// The last batch, and where this connection stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Order {
    last: Option<(u64, u64)>,
    /// The last live number on this connection.
    live: Option<u64>,
    /// Up to this number, replay has given what may come once more, live.
    overlap: Option<u64>,
    /// The other end of this connection may live another life than the last batch is of.
    is_doubtful: bool,
}

impl Order {
    /// A new connection: numbers of the old one say nothing about its.
    pub(crate) const fn connected(&mut self) {
        self.live = None;
        self.overlap = None;
        self.is_doubtful = self.last.is_some();
    }

    /// Nothing is known any more.
    pub(crate) const fn forget(&mut self) {
        self.last = None;
        self.overlap = None;
        self.is_doubtful = false;
    }

    /// Whether nothing was taken yet.
    pub(crate) const fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// Where a replay has to begin: at the last batch itself, so that it can be compared.
    pub(crate) fn replay_from(&self) -> u64 {
        self.last.map_or(0, |(number, _)| number)
    }

    /// A batch that came live.
    pub(crate) fn live(&mut self, number: u64, digest: u64) -> Verdict {
        if self.live.is_some_and(|before| number <= before) {
            self.live = Some(number);
            return Verdict::Anew;
        }
        self.live = Some(number);
        match self.last {
            Some((last, _)) if self.is_doubtful => Verdict::Missing { from: last },
            None if number == 0 => self.take(number, digest),
            None => Verdict::Missing { from: 0 },
            Some((last, _)) if number == last.saturating_add(1) => self.take(number, digest),
            Some((last, _)) if number > last => Verdict::Missing { from: last + 1 },
            Some((last, known)) if number == last && known == digest => Verdict::Known,
            Some((last, _)) if number < last && self.overlap >= Some(number) => Verdict::Known,
            Some(_) => Verdict::Anew,
        }
    }

    /// A batch that came by replay.
    pub(crate) fn replayed(&mut self, number: u64, digest: u64) -> Verdict {
        match self.last {
            // What was before the oldest that is kept is lost for everyone.
            None => self.take(number, digest),
            Some((last, known)) if number == last => {
                if known == digest {
                    Verdict::Known
                } else {
                    Verdict::Anew
                }
            }
            Some((last, _)) if number == last.saturating_add(1) => self.take(number, digest),
            Some((last, _)) if number > last => Verdict::Missing { from: last + 1 },
            Some(_) => Verdict::Known,
        }
    }

    /// A replay has ended that began at [`Order::replay_from`] and gave so many batches. False if the server does
    /// not know the batch that was the last one.
    pub(crate) fn replay_ended(&mut self, batches: u64) -> bool {
        if self.last.is_some() && batches == 0 {
            return false;
        }
        self.overlap = self.last.map(|(number, _)| number);
        self.is_doubtful = false;
        true
    }

    /// Takes a batch although what was before it is lost; nothing before it may be believed.
    pub(crate) fn begin_at(&mut self, number: u64, digest: u64) {
        self.last = Some((number, digest));
        self.is_doubtful = false;
    }

    const fn take(&mut self, number: u64, digest: u64) -> Verdict {
        self.last = Some((number, digest));
        Verdict::Apply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_repeats_and_other_lives_are_told_apart() {
        let mut order = Order::default();
        order.connected();
        assert_eq!(order.live(5, 50), Verdict::Missing { from: 0 });
        for number in 0..=5 {
            assert_eq!(order.replayed(number, number * 10), Verdict::Apply);
        }
        assert!(order.replay_ended(6));
        assert_eq!(order.live(6, 60), Verdict::Apply);
        assert_eq!(order.live(8, 80), Verdict::Missing { from: 7 });
        assert_eq!(order.replay_from(), 6);
        assert_eq!(order.replayed(6, 60), Verdict::Known);
        assert_eq!(order.replayed(7, 70), Verdict::Apply);
        assert_eq!(order.replayed(8, 80), Verdict::Apply);
        assert_eq!(order.replayed(9, 90), Verdict::Apply);
        assert!(order.replay_ended(4));
        assert_eq!(order.live(9, 90), Verdict::Known);
        assert_eq!(order.live(10, 100), Verdict::Apply);
        assert_eq!(order.live(0, 1), Verdict::Anew, "numbers never fall on one connection");
    }

    #[test]
    fn a_server_of_another_life_is_seen_by_its_last_batch() {
        let mut order = Order::default();
        for number in 0..4 {
            assert_eq!(order.live(number, number), Verdict::Apply);
        }
        order.connected();
        assert_eq!(order.replayed(3, 999), Verdict::Anew);
        assert!(!order.replay_ended(0), "it knows no batch of that number");
        assert_eq!(order.replayed(7, 7), Verdict::Missing { from: 4 }, "the window has moved on");
        order.forget();
        assert!(order.is_new());
        assert_eq!(order.replayed(2, 2), Verdict::Apply, "the oldest that is kept");
        order.connected();
        assert_eq!(order.live(3, 3), Verdict::Missing { from: 2 }, "that may be another life's");
    }

    proptest::proptest! {
        /// However a server's batches come, what is applied is each batch of one life, once and in order.
        #[test]
        fn only_whole_lives_are_applied(steps in proptest::collection::vec((0..5_u8, 1..6_u64), 1..80)) {
            let mut order = Order::default();
            let (mut life, mut sent, mut applied) = (0_u64, 0_u64, Vec::new());
            let digest = |life: u64, number: u64| life * 1000 + number;
            for (kind, amount) in steps {
                match kind {
                    // Batches that are lost.
                    0 => sent += amount,
                    // A restart, seen as a broken connection.
                    1 => { life += 1; sent = 0; order.connected(); }
                    // A connection that broke alone.
                    2 => order.connected(),
                    _ => for _ in 0..amount {
                        let number = sent;
                        sent += 1;
                        let mut verdict = order.live(number, digest(life, number));
                        while verdict != Verdict::Apply && verdict != Verdict::Known {
                            if verdict == Verdict::Anew { applied.clear(); order.forget(); }
                            let from = order.replay_from();
                            let mut batches = 0;
                            verdict = Verdict::Apply;
                            for number in from..sent {
                                batches += 1;
                                match order.replayed(number, digest(life, number)) {
                                    Verdict::Apply => applied.push((life, number)),
                                    Verdict::Known => {}
                                    other => { verdict = other; break; }
                                }
                            }
                            if verdict == Verdict::Apply {
                                if order.replay_ended(batches) { verdict = Verdict::Known; }
                                else { verdict = Verdict::Anew; }
                            } else {
                                verdict = Verdict::Anew;
                            }
                        }
                        if verdict == Verdict::Apply { applied.push((life, number)); }
                        let whole: Vec<_> = (0..sent).map(|number| (life, number)).collect();
                        proptest::prop_assert_eq!(&applied, &whole);
                    },
                }
            }
        }
    }
}
