//! Whether some order of one pin's operations explains every answer: the search of Wing and Gong with a memory of
//! what was tried.
//!
//! A pin is absent, then live, then ended in one of three ways for ever. It may expire, or lose its place to
//! another, at any moment; whether that moment was right is the bounds' business and not this search's. An
//! operation of unknown outcome may take effect at any time after it was sent, or never.

use std::collections::HashSet;

use super::check::show;
use super::pin::Life;
use super::{Answer, Asked, Op, Refusal, Standing};

/// Operations of one pin that are searched: the bits of a mask.
const OPS_MAX: usize = 128;
/// Places looked at before the search gives up.
const PLACES_MAX: usize = 200_000;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Explained,
    Unexplained(String),
    TooLong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Is(Standing),
}

const LIVE: State = State::Is(Standing::Live);

fn ended(state: State) -> bool {
    !matches!(state, State::Absent | LIVE)
}

/// The state after an operation; nothing if its answer contradicts the state.
fn step(state: State, op: &Op) -> Option<State> {
    let keep = |ok: bool| ok.then_some(state);
    match (&op.asked, &op.answer) {
        (Asked::Create(_), Answer::Pin { view, .. }) => match state {
            State::Absent => (view.standing == Standing::Live).then_some(LIVE),
            known => keep(known == State::Is(view.standing)),
        },
        (Asked::Create(_), Answer::Unknown) => {
            Some(if state == State::Absent { LIVE } else { state })
        }
        (Asked::Release { .. }, Answer::Pin { view, .. }) => match state {
            LIVE => (view.standing == Standing::Released).then_some(State::Is(Standing::Released)),
            known => keep(known == State::Is(view.standing)),
        },
        (Asked::Release { .. }, Answer::Unknown) => {
            Some(if state == LIVE { State::Is(Standing::Released) } else { state })
        }
        (_, Answer::Pin { view, .. }) => keep(state == State::Is(view.standing)),
        // Ended pins are forgotten some day.
        (_, Answer::Refused(Refusal::NotFound)) => keep(state != LIVE),
        (Asked::Extend { .. }, Answer::Refused(Refusal::Ended)) => keep(ended(state)),
        _ => Some(state),
    }
}

/// The states that a pin may have slipped into by itself.
fn drift(state: State, owned: bool) -> Vec<State> {
    let mut states = vec![state];
    if state == LIVE {
        states.push(State::Is(Standing::Expired));
        if owned {
            states.push(State::Is(Standing::Superseded));
        }
    }
    states
}

fn optional(op: &Op) -> bool {
    op.answer == Answer::Unknown
}

/// What was sent before an operation's last attempt, each with an outcome of its own that nobody was told: a
/// creation that took effect at once may be answered, at its last attempt, with what became of the pin since.
fn lost_attempts(life: &Life<'_>) -> Vec<Op> {
    let again = life.ops.iter().filter(|op| op.attempts > 1 && !optional(op));
    let changes = again.filter(|op| matches!(op.asked, Asked::Create(_) | Asked::Release { .. }));
    changes.map(|op| Op { answer: Answer::Unknown, ..(*op).clone() }).collect()
}

pub(super) fn explain(life: &Life<'_>) -> Verdict {
    // An unknown read says nothing.
    let told =
        life.ops.iter().filter(|op| !optional(op) || !matches!(op.asked, Asked::Read { .. }));
    let lost = lost_attempts(life);
    let ops: Vec<&Op> = told.copied().chain(&lost).collect();
    if ops.len() > OPS_MAX {
        return Verdict::TooLong;
    }
    let owned = !life.spec.owner.is_empty();
    let mut tried = HashSet::new();
    let mut places = vec![(0_u128, State::Absent)];
    let mut furthest = 0_u128;
    while let Some((done, state)) = places.pop() {
        if done.count_ones() > furthest.count_ones() {
            furthest = done;
        }
        let open = |at: &usize| done & (1 << at) == 0;
        // Nothing may come before an operation that was answered before it was sent.
        let horizon = (0..ops.len())
            .filter(open)
            .filter(|at| !optional(ops[*at]))
            .map(|at| ops[at].returned_us)
            .min();
        let Some(horizon) = horizon else { return Verdict::Explained };
        for at in (0..ops.len()).filter(open).filter(|at| ops[*at].invoked_us <= horizon) {
            for state in drift(state, owned) {
                if let Some(next) = step(state, ops[at])
                    && tried.insert((done | 1 << at, next))
                {
                    places.push((done | 1 << at, next));
                }
            }
        }
        if tried.len() > PLACES_MAX {
            return Verdict::TooLong;
        }
    }
    let rest = (0..ops.len()).filter(|at| furthest & (1 << at) == 0).take(3);
    let rest: Vec<String> = rest.map(|at| show(ops[at])).collect();
    Verdict::Unexplained(format!("no order explains {} operations; stuck at {rest:?}", ops.len()))
}
