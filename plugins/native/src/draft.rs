//! Guesses at an answer's next tokens, from what was said before in the same prompt and answer.
//!
//! Pure: a drafter sees tokens and learns what became of its guesses. It guesses that what followed the last three
//! tokens where they stood before follows them again. It can't make an answer wrong, only a step longer, so all it has
//! to be is worth its rows: it guesses more where it was right, and rests where it was not.

/// Tokens that must have stood together before.
const SEEN_TOKENS: usize = 3;
/// Of several such places the one wins that more tokens before agree with, counted up to so many.
const AGREEING_MAX: usize = 24;
/// So many places are compared, from the latest on.
const PLACES_MAX: usize = 8;
/// How far back is looked.
const LOOK_BACK: usize = 1 << 16;
/// Guesses of a request that was neither right nor wrong yet.
const FIRST: usize = 4;
/// Tokens that it rests for at most.
const REST_MAX: u32 = 64;
/// Tokens that it rests for where it found nothing, since looking costs something, too.
const FOUND_NOTHING: u32 = 4;

/// What one request guesses, and how it did.
#[derive(Debug, Clone)]
pub struct Drafter {
    most: usize,
    next: usize,
    misses: u32,
    /// Tokens until it guesses again.
    rest: u32,
}

impl Drafter {
    /// Guesses at most so many tokens at a time; with none it never does.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, next: most.min(FIRST), misses: 0, rest: 0 }
    }

    /// Puts what may follow `tokens` into `draft`, at most `room` of it.
    pub fn guess(&mut self, tokens: &[u32], room: usize, draft: &mut Vec<u32>) {
        draft.clear();
        let wanted = self.next.min(room);
        if wanted == 0 || self.rest > 0 {
            return;
        }
        match seen_before(tokens) {
            Some(from) => draft.extend(tokens[from..].iter().take(wanted)),
            None => self.rest = FOUND_NOTHING,
        }
    }

    /// How many tokens a guess would look through.
    #[must_use]
    pub fn looks_at(&self, tokens: &[u32]) -> usize {
        if self.rest > 0 || self.next == 0 { 0 } else { tokens.len().min(LOOK_BACK) }
    }

    /// Learns from a step: so many tokens were guessed, so many were right. What was not guessed teaches nothing, but
    /// a rest gets shorter.
    pub fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            self.rest = self.rest.saturating_sub(1);
            return;
        }
        if right == 0 {
            self.misses = (self.misses + 1).min(REST_MAX.ilog2());
            self.rest = 1 << self.misses;
            self.next = 1;
            return;
        }
        self.misses = 0;
        self.next = if right == guessed { (self.next * 2).min(self.most) } else { right + 1 };
    }
}

/// Where the tokens after the latest occurrence of the last ones begin.
fn seen_before(tokens: &[u32]) -> Option<usize> {
    let last: [u32; SEEN_TOKENS] = *tokens.last_chunk()?;
    let before = &tokens[..tokens.len() - 1];
    let before = &before[before.len().saturating_sub(LOOK_BACK)..];
    let skipped = tokens.len() - 1 - before.len();
    let mut best = None;
    let mut end = before.len();
    for _ in 0..PLACES_MAX {
        let Some(at) = latest(&before[..end], last) else { break };
        let agreeing = agreeing(tokens, skipped + at + SEEN_TOKENS);
        if best.is_none_or(|(most, _)| agreeing > most) {
            best = Some((agreeing, skipped + at + SEEN_TOKENS));
        }
        if agreeing == AGREEING_MAX {
            break;
        }
        end = at + SEEN_TOKENS - 1;
    }
    best.map(|(_, from)| from)
}

/// Where `wanted` stands last.
fn latest(tokens: &[u32], wanted: [u32; SEEN_TOKENS]) -> Option<usize> {
    // A stretch is looked through for its rarest property first, without a branch for each token.
    const STRETCH: usize = 64;
    let mut end = tokens.len();
    while end >= SEEN_TOKENS {
        let start = end.saturating_sub(STRETCH + SEEN_TOKENS - 1);
        let stretch = &tokens[start..end];
        let hits = stretch[SEEN_TOKENS - 1..]
            .iter()
            .fold(0_u32, |hits, token| hits + u32::from(*token == wanted[SEEN_TOKENS - 1]));
        if hits > 0 {
            let at = stretch.windows(SEEN_TOKENS).rposition(|window| window == wanted);
            if let Some(at) = at {
                return Some(start + at);
            }
        }
        if start == 0 {
            return None;
        }
        end = start + SEEN_TOKENS - 1;
    }
    None
}

/// How many tokens before `from` are the last ones of all.
fn agreeing(tokens: &[u32], from: usize) -> usize {
    let pairs = tokens[..from].iter().rev().zip(tokens.iter().rev());
    pairs.take(AGREEING_MAX).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(drafter: &Drafter, tokens: &[u32], room: usize) -> Vec<u32> {
        let mut draft = vec![9];
        // Each asks anew: what one found nothing for makes no rest for the next.
        drafter.clone().guess(tokens, room, &mut draft);
        draft
    }

    #[test]
    fn what_followed_before_is_guessed() {
        let drafter = Drafter::new(8);
        let tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3];
        assert_eq!(guess(&drafter, &tokens, 8), [4, 5, 6, 7]);
        assert_eq!(guess(&drafter, &tokens, 2), [4, 5]);
        assert!(guess(&drafter, &tokens, 0).is_empty());
        assert!(guess(&drafter, &[1, 2, 4, 1, 2, 3], 8).is_empty(), "never seen");
        for short in [&[][..], &[1], &[1, 2], &[1, 2, 3]] {
            assert!(guess(&drafter, short, 8).is_empty());
        }
        // What repeats at once is its own pattern, as far as it is known.
        assert_eq!(guess(&drafter, &[5, 5, 5, 5], 8), [5]);
        assert!(guess(&Drafter::new(0), &tokens, 8).is_empty());
    }

    #[test]
    fn of_several_places_the_one_that_agrees_longest_wins_then_the_latest() {
        let drafter = Drafter::new(1);
        let tokens = [8, 1, 2, 3, 40, 7, 1, 2, 3, 50, 8, 1, 2, 3];
        assert_eq!(guess(&drafter, &tokens, 1), [40], "four agree");
        let tokens = [8, 1, 2, 3, 40, 8, 1, 2, 3, 50, 8, 1, 2, 3];
        assert_eq!(guess(&drafter, &tokens, 1), [50], "the latest of equals");
    }

    #[test]
    fn places_are_found_wherever_stretches_end() {
        for at in 0..300 {
            let mut tokens: Vec<u32> = (1_000..1_400).collect();
            tokens[at..at + 4].copy_from_slice(&[1, 2, 3, 4]);
            tokens.extend([1, 2, 3]);
            assert_eq!(guess(&Drafter::new(1), &tokens, 1), [4], "{at}");
        }
        let mut far = vec![7, 8, 9, 10];
        far.resize(LOOK_BACK + 10, 1);
        far.extend([7, 8, 9]);
        assert!(guess(&Drafter::new(1), &far, 1).is_empty(), "too long ago");
    }

    #[test]
    fn it_guesses_more_where_it_was_right_and_rests_where_it_was_not() {
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3];
        let mut drafter = Drafter::new(8);
        drafter.learn(4, 4);
        assert_eq!(guess(&drafter, &tokens, 9).len(), 8);
        drafter.learn(8, 8);
        assert_eq!(guess(&drafter, &tokens, 9).len(), 8, "no more than it may");
        drafter.learn(8, 2);
        assert_eq!(guess(&drafter, &tokens, 9).len(), 3);
        for (misses, rest) in [(1, 2), (2, 4), (3, 8)] {
            drafter.learn(1, 0);
            for left in (0..rest).rev() {
                assert!(guess(&drafter, &tokens, 9).is_empty(), "{misses} misses, {left} to go");
                drafter.learn(0, 0);
            }
            assert_eq!(guess(&drafter, &tokens, 9).len(), 1);
        }
        for _ in 0..100 {
            drafter.learn(1, 0);
        }
        assert_eq!(drafter.rest, REST_MAX);
        drafter.learn(0, 0);
        assert_eq!(drafter.rest, REST_MAX - 1);
        let mut nothing = Drafter::new(8);
        assert_eq!(nothing.looks_at(&tokens), tokens.len());
        nothing.guess(&[1, 2, 3, 4], 8, &mut Vec::new());
        assert_eq!((nothing.rest, nothing.looks_at(&tokens)), (FOUND_NOTHING, 0));
        assert_eq!(Drafter::new(0).looks_at(&tokens), 0);
    }
}
