//! The stations of a block's life, and which may follow which.
//!
//! Every move is checked where it is made, so that a caller's mistake is an error at once and not a
//! block that two sequences write to an hour later. Leases and pins are no stations: they say what
//! may happen to a block, not where it is.

/// Where a block is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Nothing is in it.
    Free,
    /// One sequence writes to it.
    Filling,
    /// Full, registered under its sequence hash, and in the table of one sequence or more.
    Used,
    /// Full and registered, and in nobody's table.
    Cached,
    /// Registered no more; its memory is still being read, by whoever copies it to a lower tier.
    Evicting,
}

impl Stage {
    /// Whether `next` may follow.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Free, Self::Filling)
                | (Self::Filling | Self::Evicting, Self::Free)
                | (Self::Filling | Self::Used | Self::Cached, Self::Used)
                | (Self::Used, Self::Cached)
                | (Self::Cached, Self::Evicting)
        )
    }

    /// Whether it can be found under its hash.
    #[must_use]
    pub const fn is_registered(self) -> bool {
        matches!(self, Self::Used | Self::Cached)
    }

    /// The name shown to people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Filling => "filling",
            Self::Used => "used",
            Self::Cached => "cached",
            Self::Evicting => "evicting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stage::{self, Cached, Evicting, Filling, Free, Used};

    #[test]
    fn only_the_written_moves_are_possible() {
        let allowed = [
            (Free, Filling),
            (Filling, Free),
            (Filling, Used),
            (Used, Used),
            (Used, Cached),
            (Cached, Used),
            (Cached, Evicting),
            (Evicting, Free),
        ];
        let all: [Stage; 5] = [Free, Filling, Used, Cached, Evicting];
        for from in all {
            for to in all {
                assert_eq!(from.may_become(to), allowed.contains(&(from, to)), "{from:?} {to:?}");
            }
        }
    }
}
