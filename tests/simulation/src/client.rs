//! A client: makes, prolongs, gives back and reads pins through the leader, tries again when it hears nothing, and
//! writes down what it asked and what it was told.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use mainstay_proto::convert::{hashes_to_wire, pin_from_wire, u128_to_wire};
use mainstay_proto::v1;
use mainstay_raft::ProposeError;
use mainstay_types::{Command, PinId, PinRequest, SequenceHash};
use tokio::sync::oneshot;

use crate::dice::Dice;
use crate::history::{Answer, Ask, Attempt, History};
use crate::member::{Request, Seat, now_ms};
use crate::network::member_at;

/// How often one question is asked before the client does something else.
const ATTEMPTS: u64 = 3;
/// How long an answer is waited for; a member gives up after five seconds.
const PATIENCE: Duration = Duration::from_secs(6);
/// Of the pins that were made, clients care for so many, the latest.
const RECENT: usize = 24;
const READ_PINS: u64 = 6;

/// What all clients share.
pub(crate) struct Clients {
    pub(crate) seats: Vec<Rc<Seat>>,
    pub(crate) history: Rc<RefCell<History>>,
    /// Everything that was ever asked for.
    pub(crate) pins: RefCell<Vec<PinRequest>>,
    pub(crate) end_ms: u64,
}

/// One client, from the beginning to the end of the run.
pub(crate) async fn run(clients: Rc<Clients>, id: u64, mut dice: Dice) -> turmoil::Result {
    let mut client = Client { id, target: dice.within(1, clients.seats.len() as u64), clients };
    while now_ms() < client.clients.end_ms {
        pause(dice.within(5, 90)).await;
        let ask = client.next(&mut dice)?;
        for _ in 0..dice.within(1, ATTEMPTS) {
            if client.ask(&mut dice, ask.clone()).await {
                break;
            }
        }
    }
    Ok(())
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

struct Client {
    id: u64,
    /// Whom it takes for the leader.
    target: u64,
    clients: Rc<Clients>,
}

impl Client {
    fn next(&self, dice: &mut Dice) -> Result<Ask, Box<dyn std::error::Error>> {
        let known = self.recent();
        let kind = dice.within(0, 99);
        if known.is_empty() || kind < 25 {
            let pin = self.new_pin(dice)?;
            self.clients.pins.borrow_mut().push(pin.clone());
            return Ok(Ask::Write(Command::PutPin(pin)));
        }
        let index = dice.within(0, known.len() as u64 - 1);
        let one = known[usize::try_from(index)?].clone();
        Ok(match kind {
            // Asking once more for what was asked before must not begin it anew.
            25..33 => Ask::Write(Command::PutPin(one)),
            33..45 => {
                let ttl_ms = dice.within(1, 5_000);
                Ask::Write(Command::ExtendPin { id: one.id, ttl_ms })
            }
            45..53 => Ask::Write(Command::ReleasePin { id: one.id }),
            _ => {
                let from = dice.within(0, known.len() as u64 - 1);
                let rest = known.iter().cycle().skip(usize::try_from(from)?);
                let count = usize::try_from(READ_PINS)?.min(known.len());
                Ask::Read(rest.take(count).map(|p| p.id).collect())
            }
        })
    }

    fn recent(&self) -> Vec<PinRequest> {
        let pins = self.clients.pins.borrow();
        pins[pins.len().saturating_sub(RECENT)..].to_vec()
    }

    fn new_pin(&self, dice: &mut Dice) -> Result<PinRequest, Box<dyn std::error::Error>> {
        let number = self.clients.pins.borrow().len() as u128 + 1;
        let blocks: Vec<SequenceHash> =
            (0..dice.within(1, 4)).map(|i| SequenceHash((number << 8) + u128::from(i))).collect();
        let ttl_ms = dice.within(600, 1_500) * dice.pick(&[1, 1, 3]);
        // By way of the wire, as the real service gets it.
        let wire = v1::PutPin {
            id: u128_to_wire(PinId(number).0),
            tenant: dice.pick(&["ant", "bee"]).to_owned(),
            namespace: u128_to_wire(1),
            blocks: hashes_to_wire(&blocks),
            prefix_tokens: 16,
            ttl_ms,
            priority: 50,
            copies_min: 1,
            ..v1::PutPin::default()
        };
        Ok(pin_from_wire(&wire)?)
    }

    /// Asks one member once; whether an answer came.
    async fn ask(&mut self, dice: &mut Dice, ask: Ask) -> bool {
        let seat = &self.clients.seats[usize::try_from(self.target - 1).expect("a small id")];
        let Some(live) = seat.live.borrow().clone() else {
            self.turn(None);
            pause(20).await;
            return false;
        };
        let number = {
            let mut history = self.clients.history.borrow_mut();
            let attempt =
                Attempt { client: self.id, asked_ms: now_ms(), ask: ask.clone(), answer: None };
            history.attempts.push(attempt);
            history.attempts.len() - 1
        };
        pause(dice.within(0, 3)).await;
        let (reply, replied) = oneshot::channel();
        if live.requests.send(Request { ask, reply }).await.is_err() {
            self.turn(None);
            return false;
        }
        drop(live);
        let answer = tokio::time::timeout(PATIENCE, replied).await;
        pause(dice.within(0, 3)).await;
        // Some answers get lost.
        let lost = dice.chance(3);
        match answer {
            Ok(Ok(Ok(answer))) if !lost => {
                self.note(number, answer);
                true
            }
            Ok(Ok(Err(ProposeError::NotLeader { leader }))) => {
                self.turn(leader.as_deref().and_then(member_at));
                pause(dice.within(5, 40)).await;
                false
            }
            Ok(Ok(Ok(_))) => false,
            _ => {
                self.turn(None);
                false
            }
        }
    }

    fn note(&self, number: usize, answer: Answer) {
        let mut history = self.clients.history.borrow_mut();
        history.attempts[number].answer = Some((now_ms(), answer));
    }

    /// Turns to the member that leads, or to the next.
    fn turn(&mut self, leader: Option<u64>) {
        let members = self.clients.seats.len() as u64;
        let known = leader.filter(|id| (1..=members).contains(id));
        self.target = known.unwrap_or(self.target % members + 1);
    }
}
