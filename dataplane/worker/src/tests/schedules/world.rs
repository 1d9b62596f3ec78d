//! A cluster of three workers, what its clients have asked so far, and what must be true of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::v1;
use mainstay_types::{BlockHashKey, HashKey, NamespaceId, PinId, PinState, SequenceHash};
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::seat::{Blocks, Came, Plan, Question, Seat};
use super::truth::{BLOCK_TOKENS, Draw, SEQUENCE_MAX, Truth, engine_config, names};
use crate::tests::fake_control::{FakeControl, HASH_KEY};

/// Workers of a world.
const SEATS: usize = 3;
/// Tenants of a world.
const TENANTS: u128 = 3;
/// Blocks of an engine: a long prompt takes most of them.
const BLOCKS: std::ops::Range<u32> = 84..120;
/// Prompts that are gone on from.
const TEXTS_MAX: usize = 40;
/// Pins at a time, and blocks of one.
const PINS_MAX: usize = 3;
const PIN_BLOCKS_MAX: usize = 10;
/// Leases that have names.
const LEASES: u8 = 6;
const TOKENS: std::ops::Range<u32> = 3..280;

/// A pin that stands, and the seats of which it is known that they keep it whole.
struct Standing {
    id: u128,
    blocks: Vec<u128>,
    keepers: Vec<usize>,
}

/// What was done, for the end of the test.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) answers: u64,
    pub(super) cached_tokens: u64,
    pub(super) prompt_tokens: u64,
    pub(super) no_room: u64,
    pub(super) ends: u64,
    pub(super) resets: u64,
    pub(super) kept: u64,
    pub(super) blocks_checked: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.cached_tokens += other.cached_tokens;
        self.prompt_tokens += other.prompt_tokens;
        self.no_room += other.no_room;
        self.ends += other.ends;
        self.resets += other.resets;
        self.kept += other.kept;
        self.blocks_checked += other.blocks_checked;
    }
}

/// See the module.
pub(super) struct World {
    rng: TestRng,
    truth: Arc<Truth>,
    control: FakeControl,
    key: BlockHashKey,
    pub(super) seats: Vec<Seat>,
    /// Prompts with their answers, by tenant.
    texts: Vec<(NamespaceId, Vec<u32>)>,
    blocks: Blocks,
    /// What each tenant had computed, or has under way: nothing else can be cached for it.
    computed: HashSet<SequenceHash>,
    pins: Vec<Standing>,
    pins_made: u128,
    pub(super) tally: Tally,
    _folder: tempfile::TempDir,
}

impl World {
    pub(super) async fn new(seed: u64, model: usize, truth: Arc<Truth>, bent: bool) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let folder = tempfile::tempdir().expect("a scratch folder");
        let control = FakeControl::start().await;
        let mut seats = Vec::new();
        for at in 0..SEATS {
            let engine = engine_config(model, rng.random_range(BLOCKS), rng.random_range(8..64));
            // The last one has tiers in some worlds, and in others its neighbours alone.
            let at_tiers = if at == 2 && rng.random_bool(0.5) { 3 } else { at };
            let plan =
                Plan { name: format!("w{at}"), bent, ..Plan::of(at_tiers, engine, folder.path()) };
            seats.push(Seat::take(plan, &control).await);
        }
        Self {
            rng,
            truth,
            control,
            key: BlockHashKey::new(HashKey(HASH_KEY)),
            seats,
            texts: Vec::new(),
            blocks: Blocks::default(),
            computed: HashSet::new(),
            pins: Vec::new(),
            pins_made: 0,
            tally: Tally::default(),
            _folder: folder,
        }
    }

    /// Plays one schedule, and holds the world to what it claims.
    pub(super) async fn schedule(&mut self) -> Result<(), String> {
        for _ in 0..self.rng.random_range(5..12) {
            self.step().await?;
        }
        for seat in &self.seats {
            self.tally.blocks_checked += seat.check_engine(&self.blocks).await? as u64;
        }
        self.check_pins()
    }

    /// Reads what the tiers have, and ends the world.
    pub(super) async fn end(mut self) -> Result<Tally, String> {
        for seat in &self.seats {
            self.tally.blocks_checked += seat.check_tiers(&self.blocks).await? as u64;
        }
        for seat in &self.seats {
            seat.worker.drain().await.map_err(|error| error.to_string())?;
        }
        let faults = self.control.faults();
        if faults.is_empty() { Ok(self.tally) } else { Err(format!("the index: {faults:?}")) }
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..1000) {
            0..620 => self.one().await,
            620..760 => self.several().await,
            760..800 => self.leave().await,
            800..860 => self.pin().await,
            860..910 => self.unpin(),
            910..960 => self.change_lease().await,
            960..985 => {
                // Until what was computed has come to the tiers.
                tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..60))).await;
                Ok(())
            }
            985..996 => self.end_of_worker().await,
            _ => self.end_of_engine().await,
        }
    }

    /// One question while nobody else asks: what the worker claims counts.
    async fn one(&mut self) -> Result<(), String> {
        let at = self.rng.random_range(0..SEATS);
        let question = self.question(at);
        let names = names(&self.key, question.namespace, &question.prompt);
        let reusable = (question.prompt.len() - 1) / BLOCK_TOKENS as usize;
        let mut missed = String::new();
        // A request whose client has left may still come in after the look, and bring blocks or have some go, once or
        // twice.
        for _ in 0..3 {
            self.seats[at].calm().await?;
            let claimed = self.seats[at].claimed(&names).min(reusable);
            let could = self.could(&names).min(reusable);
            let alone = question.sources.is_empty() && self.seats[at].shared().tiers().is_none();
            let Some(cached) = self.answer(at, &question).await? else { return Ok(()) };
            let cached = cached as usize / BLOCK_TOKENS as usize;
            let name = &self.seats[at].plan.name;
            missed = format!(
                "{cached} blocks were cached at {name}, which claimed {claimed}; {could} were computed for this tenant"
            );
            if cached > could {
                return Err(missed);
            }
            if cached == claimed || (!alone && cached > claimed) {
                return Ok(());
            }
        }
        Err(missed)
    }

    /// Several at once, at one worker or at all.
    async fn several(&mut self) -> Result<(), String> {
        let count = self.rng.random_range(2..5);
        let mut asked = Vec::new();
        for _ in 0..count {
            let at = self.rng.random_range(0..SEATS);
            // The same again now and then: one is to compute for both.
            let question = match asked.last() {
                Some((_, question)) if self.rng.random_bool(0.3) => Question::clone(question),
                _ => self.question(at),
            };
            self.learn(&question);
            asked.push((at, question));
        }
        let answers = asked.iter().map(|(at, question)| self.seats[*at].ask(question));
        let answers = futures::future::join_all(answers).await;
        for ((at, question), came) in asked.iter().zip(answers) {
            self.judge(*at, question, came?)?;
        }
        Ok(())
    }

    /// A client that does not wait for its answer.
    async fn leave(&mut self) -> Result<(), String> {
        let at = self.rng.random_range(0..SEATS);
        let question = self.question(at);
        self.learn(&question);
        let after = Duration::from_micros(self.rng.random_range(100..6_000));
        self.seats[at].ask_and_leave(&question, after).await;
        Ok(())
    }

    /// Takes in what a question will have computed, however far it comes.
    fn learn(&mut self, question: &Question) {
        let known = self.truth.about(&question.prompt, question.draw);
        let mut all = question.prompt.clone();
        all.extend(&known.answer.tokens);
        all.pop();
        for (name, digest) in names(&self.key, question.namespace, &all).iter().zip(&known.blocks) {
            self.blocks.insert(SequenceHash(*name), (question.namespace, *digest));
            self.computed.insert(SequenceHash(*name));
        }
        all.extend(known.answer.tokens.last());
        if self.texts.len() < TEXTS_MAX {
            self.texts.push((question.namespace, all));
        } else {
            let at = self.rng.random_range(0..TEXTS_MAX);
            self.texts[at] = (question.namespace, all);
        }
    }

    /// How many leading blocks were ever computed for whoever has these names.
    fn could(&self, names: &[u128]) -> usize {
        names.iter().take_while(|name| self.computed.contains(&SequenceHash(**name))).count()
    }

    async fn answer(&mut self, at: usize, question: &Question) -> Result<Option<u32>, String> {
        self.learn(question);
        let came = self.seats[at].ask(question).await?;
        self.judge(at, question, came)
    }

    fn judge(&mut self, at: usize, question: &Question, came: Came) -> Result<Option<u32>, String> {
        let name = &self.seats[at].plan.name;
        let Came::Answer(answer, cached) = came else {
            self.tally.no_room += 1;
            let pinned = !self.pins.is_empty() || self.pins_made > 0;
            return if pinned {
                Ok(None)
            } else {
                Err(format!("{name} has no room, without a pin"))
            };
        };
        let known = self.truth.about(&question.prompt, question.draw);
        if answer != known.answer {
            return Err(format!(
                "{name} answered {:?} over {cached} cached tokens of {}, and without a cache it is {:?}",
                answer,
                question.prompt.len(),
                known.answer
            ));
        }
        let names = names(&self.key, question.namespace, &question.prompt);
        if cached as usize > self.could(&names) * BLOCK_TOKENS as usize {
            return Err(format!("{cached} tokens were cached, which nobody computed"));
        }
        self.tally.answers += 1;
        self.tally.cached_tokens += u64::from(cached);
        self.tally.prompt_tokens += question.prompt.len() as u64;
        Ok(Some(cached))
    }

    /// A prompt: a new one, one that was there, or one that goes on from there, from its end or from its middle.
    fn prompt(&mut self) -> (NamespaceId, Vec<u32>) {
        let long = SEQUENCE_MAX - 12;
        let some = |rng: &mut TestRng, most: usize| -> Vec<u32> {
            let length = if rng.random_bool(0.12) { 262..280 } else { 6..70 };
            let length = rng.random_range(length).min(most.max(1));
            // Few kinds of beginnings, or nothing would ever be shared by chance.
            let first = rng.random_range(0..4_u32);
            let fresh = (1..length).map(|_| rng.random_range(TOKENS));
            std::iter::once(first).chain(fresh).collect()
        };
        if self.texts.is_empty() || self.rng.random_bool(0.2) {
            let tenant = NamespaceId((7 << 64) | self.rng.random_range(0..TENANTS));
            return (tenant, some(&mut self.rng, long));
        }
        let at = self.rng.random_range(0..self.texts.len());
        let (mut tenant, mut text) = self.texts[at].clone();
        match self.rng.random_range(0..10) {
            0..3 => {}
            3..6 => {
                let keep = self.rng.random_range(1..=text.len());
                text.truncate(keep);
                text.extend(some(&mut self.rng, 40));
            }
            // Another tenant asks the very same.
            6 => tenant = NamespaceId((7 << 64) | self.rng.random_range(0..TENANTS)),
            _ => text.extend(some(&mut self.rng, 60)),
        }
        text.truncate(long);
        (tenant, text)
    }

    fn question(&mut self, at: usize) -> Question {
        let (namespace, prompt) = self.prompt();
        let seed = self.rng.random_bool(0.4).then(|| self.rng.random_range(0..3));
        let draw = Draw { seed, tokens: self.rng.random_range(1..7) };
        let names = names(&self.key, namespace, &prompt);
        let mut sources = Vec::new();
        for (_, seat) in self.seats.iter().enumerate().filter(|(other, _)| *other != at) {
            let held = seat.claimed(&names) as u32;
            // A gateway's index may be behind, or ahead.
            let blocks = match self.rng.random_range(0..10) {
                0 => held + self.rng.random_range(0..40),
                1 | 2 => 0,
                _ => held,
            };
            if blocks > 0 {
                sources.push(v1::BlockSource { address: seat.address.clone(), blocks });
            }
        }
        let (ranges, leases) = self.wishes(prompt.len() as u32);
        Question { namespace, prompt, draw, sources, ranges, leases }
    }

    fn wishes(&mut self, tokens: u32) -> (Vec<v1::RetentionRange>, Vec<bytes::Bytes>) {
        if self.rng.random_bool(0.5) {
            return (Vec::new(), Vec::new());
        }
        let lease = self.lease();
        let ranges = (0..self.rng.random_range(1..4)).map(|_| {
            let start = self.rng.random_range(0..tokens);
            v1::RetentionRange {
                start,
                end: self.rng.random_range(start + 1..=tokens + 8),
                priority: self.rng.random_range(0..101),
                duration_ms: [0, 20, 500, 60_000][self.rng.random_range(0..4_usize)],
                after: 0,
                kind: self.rng.random_range(0..8),
                lease: self.rng.random_range(0..2),
            }
        });
        (ranges.collect(), vec![lease])
    }

    fn lease(&mut self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&[self.rng.random_range(0..LEASES); 16])
    }

    async fn change_lease(&mut self) -> Result<(), String> {
        let at = self.rng.random_range(0..SEATS);
        let tenant = (7_u128 << 64) | self.rng.random_range(0..TENANTS);
        let ends = [v1::LeaseEnd::Released, v1::LeaseEnd::Finished, v1::LeaseEnd::Compacted];
        let change = v1::LeaseChange {
            namespace: tenant.to_le_bytes().to_vec().into(),
            lease: self.lease(),
            end: ends[self.rng.random_range(0..3_usize)].into(),
            ranges: Vec::new(),
        };
        self.seats[at].change_lease(change).await
    }

    /// Pins the beginning of what was asked once, and waits until somebody keeps it, if anybody can.
    async fn pin(&mut self) -> Result<(), String> {
        if self.pins.len() >= PINS_MAX || self.texts.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.texts.len());
        let (tenant, text) = self.texts[at].clone();
        let mut blocks = names(&self.key, tenant, &text);
        blocks.truncate(self.rng.random_range(1..=PIN_BLOCKS_MAX));
        if blocks.is_empty() {
            return Ok(());
        }
        self.pins_made += 1;
        let id = self.pins_made;
        self.control.put_pin_in(id, tenant, &blocks, 600_000);
        let until = tokio::time::Instant::now() + Duration::from_millis(100);
        while self.control.pin_state(id) != Some(PinState::Active)
            && tokio::time::Instant::now() < until
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let keepers = self.keepers(id, blocks.len());
        self.tally.kept += keepers.len() as u64;
        self.pins.push(Standing { id, blocks, keepers });
        Ok(())
    }

    /// The seats that said that they keep all of a pin.
    fn keepers(&self, id: u128, blocks: usize) -> Vec<usize> {
        let holders = self.control.look(|machine| {
            machine.pin(PinId(id)).map(|pin| pin.holders.clone()).unwrap_or_default()
        });
        let keeps = |at: &usize| {
            holders.get(&self.seats[*at].worker.worker_id()).is_some_and(|n| *n as usize == blocks)
        };
        (0..SEATS).filter(keeps).collect()
    }

    fn unpin(&mut self) -> Result<(), String> {
        self.check_pins()?;
        if !self.pins.is_empty() {
            let at = self.rng.random_range(0..self.pins.len());
            let pin = self.pins.swap_remove(at);
            self.control.release_pin(pin.id);
        }
        Ok(())
    }

    /// Who said that it keeps a pin has all of its blocks.
    fn check_pins(&self) -> Result<(), String> {
        for pin in &self.pins {
            for seat in pin.keepers.iter().map(|at| &self.seats[*at]) {
                let has = seat.claimed(&pin.blocks);
                if has < pin.blocks.len() {
                    return Err(format!(
                        "{} has {has} of {} blocks of pin {}, which it keeps",
                        seat.plan.name,
                        pin.blocks.len(),
                        pin.id
                    ));
                }
            }
        }
        Ok(())
    }

    fn keeps_no_more(&mut self, at: usize) {
        for pin in &mut self.pins {
            pin.keepers.retain(|keeper| *keeper != at);
        }
    }

    /// A worker ends, in order or at once, and another begins with its tiers.
    async fn end_of_worker(&mut self) -> Result<(), String> {
        let at = self.rng.random_range(0..SEATS);
        self.keeps_no_more(at);
        let orderly = self.rng.random_bool(0.7);
        let seat = &self.seats[at];
        let ended = if orderly { seat.worker.drain().await } else { seat.worker.shutdown().await };
        ended.map_err(|error| format!("{} ended badly: {error}", seat.plan.name))?;
        let plan = seat.plan.clone();
        self.seats[at] = Seat::take(plan, &self.control).await;
        self.tally.ends += 1;
        Ok(())
    }

    /// An engine is replaced: what it held is gone, and the worker has a new epoch.
    async fn end_of_engine(&mut self) -> Result<(), String> {
        // Each pause before the next engine is twice as long.
        if self.tally.resets >= 2 {
            return Ok(());
        }
        let at = self.rng.random_range(0..SEATS);
        self.keeps_no_more(at);
        let seat = &self.seats[at];
        let Some(life) = seat.shared().life() else { return Ok(()) };
        let number = life.number;
        life.retire.notify_one();
        drop(life);
        seat.shared().life_ended(number).await;
        seat.calm().await?;
        self.tally.resets += 1;
        Ok(())
    }
}
