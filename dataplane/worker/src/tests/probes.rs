//! What one tenant can learn of another's blocks from a worker: nothing, whatever it tries.
//!
//! An attacker has prompts of a victim and wants to know whether somebody computed them. It asks them under its own
//! names, with every salt it can think of, and asks for blocks under names that it makes up. A model that knows only
//! what the attacker itself had computed says beforehand what each try may find; anything else is a leak. The same
//! tries by the victim find what is there, so that they could have.
//!
//! `MAINSTAY_PROBES=N` makes N tries, `MAINSTAY_LONG=1` a million.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::entry_point;
use mainstay_engine_host::Source;
use mainstay_proto::tokens::pack;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_types::{BlockHashKey, HashKey, NamespaceId};
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tonic::transport::Channel;

use super::fake_control::{FakeControl, HASH_KEY};
use super::hosted::{BLOCK_TOKENS, Parrot};
use crate::config::WorkerConfig;
use crate::lifecycle::{WorkerHandle, start};

const PROBES: u64 = 10_000;
const PROBES_LONG: u64 = 1_000_000;
/// Prompts that the victim had computed, and tokens of one.
const SECRETS: u32 = 64;
const SECRET_TOKENS: u32 = 32;
/// Blocks of the engine, of which the victim's take an eighth; the attacker's come and go.
const KEEPS: usize = 4_096;
const VICTIM: &str = "victim";
const ATTACKER: &str = "attacker";
/// What a gateway names a model.
const MODEL: &str = "demo@r1";
/// Beginnings of salts: what may be taken for another tenant, another model, or an end.
const SALTS: [&str; 12] = [
    "",
    "victim",
    "victim\0",
    "\0victim",
    "demo@r1",
    "victim/demo@r1",
    "attacker",
    "..",
    "\u{ff}",
    "victimdemo@r1",
    "\0\0\0\0",
    "v",
];

struct Attack {
    rng: TestRng,
    key: BlockHashKey,
    client: WorkerClient<Channel>,
    layout: u64,
    secrets: Vec<Vec<u32>>,
    /// Names of the victim's blocks, which the attacker does not know; what it makes up is held against them.
    theirs: HashSet<u128>,
    /// What the engine holds, by the names that are known here: the oldest chain goes first.
    held: HashSet<u128>,
    came: VecDeque<Vec<u128>>,
    /// Tries for something that the engine did hold for the victim.
    could: u64,
}

impl Attack {
    fn namespace(&self, tenant: &str, salt: &str) -> NamespaceId {
        self.key.namespace(tenant, MODEL, salt, BLOCK_TOKENS)
    }

    fn names(&self, namespace: NamespaceId, prompt: &[u32]) -> Vec<u128> {
        self.key.hash_prompt(namespace, BLOCK_TOKENS, prompt).iter().map(|name| name.0).collect()
    }

    /// Asks, and says how many blocks were cached.
    async fn ask(&mut self, namespace: NamespaceId, prompt: &[u32]) -> usize {
        let request = v1::GenerateRequest {
            namespace: namespace.0.to_le_bytes().to_vec().into(),
            tokens: pack(prompt),
            ..super::Stage::request()
        };
        let mut events = self.client.generate(request).await.expect("taken").into_inner();
        let mut cached = 0;
        while let Some(event) = events.message().await.expect("an event") {
            cached = event.cached_tokens.max(cached);
        }
        (cached / BLOCK_TOKENS) as usize
    }

    /// How many bytes a worker would get for these names.
    async fn export(&mut self, namespace: Option<NamespaceId>, names: &[u128]) -> usize {
        let namespace = namespace.map(|namespace| namespace.0.to_le_bytes().to_vec());
        let request = v1::ExportBlocksRequest {
            blocks: names.iter().flat_map(|name| name.to_le_bytes()).collect(),
            kv_layout: self.layout,
            namespace: namespace.unwrap_or_default().into(),
        };
        let mut blocks = self.client.export_blocks(request).await.expect("taken").into_inner();
        let mut bytes = 0;
        while let Some(message) = blocks.message().await.expect("a message") {
            bytes += message.content.len();
        }
        bytes
    }

    /// A prompt of the victim, or its beginning, with something of the attacker's own behind it at times.
    fn guess(&mut self) -> Vec<u32> {
        let at = self.rng.random_range(0..self.secrets.len());
        let length = self.rng.random_range(1..=SECRET_TOKENS as usize);
        let mut guess = self.secrets[at][..length].to_vec();
        if self.rng.random_bool(0.3) {
            guess.extend((0..self.rng.random_range(1..6)).map(|_| self.rng.random_range(0..1_000)));
        }
        guess
    }

    fn salt(&mut self) -> String {
        let beginning = SALTS[self.rng.random_range(0..SALTS.len())];
        match self.rng.random_range(0..3) {
            0 => beginning.to_owned(),
            1 => format!("{beginning}{}", self.rng.random_range(0..1_000_000)),
            _ => format!("{}{beginning}", self.rng.random_range(0..1_000_000)),
        }
    }

    /// Asks; an error if it found more or less than what was computed under these very names.
    async fn ask_and_compare(
        &mut self,
        namespace: NamespaceId,
        prompt: &[u32],
    ) -> Result<(), String> {
        let names = self.names(namespace, prompt);
        let known = names.iter().take_while(|name| self.held.contains(*name)).count();
        let cached = self.ask(namespace, prompt).await;
        if cached != known {
            return Err(format!(
                "{cached} blocks of {prompt:?} were found, and {known} are its own"
            ));
        }
        self.held.extend(&names);
        if known < names.len() {
            self.came.push_back(names[known..].to_vec());
        }
        while self.held.len() > KEEPS
            && let Some(gone) = self.came.pop_front()
        {
            gone.iter().for_each(|name| {
                self.held.remove(name);
            });
        }
        Ok(())
    }

    /// The victim asks for all that it has.
    async fn victim_asks(&mut self) -> Result<(), String> {
        let victim = self.namespace(VICTIM, "");
        for secret in self.secrets.clone() {
            self.ask_and_compare(victim, &secret).await?;
            let names = self.names(victim, &secret);
            self.theirs.extend(names);
        }
        Ok(())
    }

    /// The attacker asks a guess under a salt.
    async fn probe(&mut self) -> Result<(), String> {
        let (salt, guess) = (self.salt(), self.guess());
        let victims = self.names(self.namespace(VICTIM, ""), &guess);
        self.could += u64::from(victims.first().is_some_and(|name| self.held.contains(name)));
        let namespace = self.namespace(ATTACKER, &salt);
        let asked = self.ask_and_compare(namespace, &guess).await;
        asked.map_err(|leak| format!("salt {salt:?}: {leak}"))
    }

    /// Names that the attacker makes up: of its own, of another key, of what it can see.
    async fn forge(&mut self) -> Result<(), String> {
        let guess = self.guess();
        let (own, victim) = (self.namespace(ATTACKER, ""), self.namespace(VICTIM, ""));
        let forger = BlockHashKey::new(HashKey([self.rng.random_range(0..8); 16]));
        let other = |namespace: NamespaceId| -> Vec<u128> {
            let names = forger.hash_prompt(namespace, BLOCK_TOKENS, &guess);
            names.iter().map(|name| name.0).collect()
        };
        let mut names = match self.rng.random_range(0..6) {
            0 => self.names(own, &guess),
            1 => other(own),
            2 => other(victim),
            3 => vec![own.0],
            4 => vec![u128::from(self.rng.random_range(0..u64::MAX))],
            _ => vec![self.rng.random_range(0..u128::MAX)],
        };
        if self.rng.random_bool(0.5) {
            let bit = self.rng.random_range(0..128_u32);
            names.iter_mut().for_each(|name| *name ^= 1 << bit);
        }
        if names.is_empty() {
            return Ok(());
        }
        // A name that is right by chance is no proof of anything; there are 2^128 of them.
        let known = names.iter().take_while(|name| self.held.contains(*name)).count();
        let namespace = [None, Some(own), Some(victim)][self.rng.random_range(0..3_usize)];
        let bytes = self.export(namespace, &names).await;
        if names.iter().any(|name| self.theirs.contains(name))
            || bytes > known * super::hosted::BLOCK_BYTES
        {
            return Err(format!("{names:x?} in {namespace:?} gave {bytes} bytes"));
        }
        Ok(())
    }
}

async fn worker(control: &FakeControl) -> WorkerHandle {
    let source = Source::Linked(entry_point::<Parrot>());
    let engine_config = serde_json::json!({ "keeps": KEEPS });
    let config = WorkerConfig {
        engine_config,
        ..WorkerConfig::new("w", vec![control.address.clone()], source)
    };
    start(config).await.expect("starts")
}

fn attack(worker: &WorkerHandle) -> Attack {
    let channel = mainstay_proto::client::channel(&worker.address().to_string());
    let layout = worker.shared().life().expect("it runs").info.kv_layout;
    Attack {
        rng: TestRng::from_seed(RngAlgorithm::ChaCha, &[5; 32]),
        key: BlockHashKey::new(HashKey(HASH_KEY)),
        client: WorkerClient::new(channel.expect("an address")),
        layout,
        secrets: (0..SECRETS).map(|at| (at..at + SECRET_TOKENS).collect()).collect(),
        theirs: HashSet::new(),
        held: HashSet::new(),
        came: VecDeque::new(),
        could: 0,
    }
}

fn tries() -> u64 {
    let asked = std::env::var("MAINSTAY_PROBES").ok().map(|text| text.parse().expect("a number"));
    let long = std::env::var("MAINSTAY_LONG").is_ok_and(|text| text == "1");
    asked.unwrap_or(if long { PROBES_LONG } else { PROBES })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_try_finds_another_tenants_blocks() {
    let control = FakeControl::start().await;
    let worker = worker(&control).await;
    let mut attack = attack(&worker);
    let (begun, tries) = (Instant::now(), tries());
    for at in 0..tries {
        // What it has goes with time, and the victim is back.
        let tried = match at % 200 {
            0 => attack.victim_asks().await,
            turn if turn % 4 == 3 => attack.forge().await,
            _ => attack.probe().await,
        };
        tried.unwrap_or_else(|leak| panic!("try {at}: {leak}"));
    }
    let could = attack.could;
    println!("{tries} tries in {:.0?}, {could} for what was there, none found it", begun.elapsed());
    assert!(could > tries / 4, "only {could} tries could have found anything");
    // They could have: the victim finds its own, by asking and by name, and an attacker that had the victim's names
    // would, too.
    attack.victim_asks().await.expect("as before");
    let (victim, secret) = (attack.namespace(VICTIM, ""), attack.secrets[3].clone());
    let names = attack.names(victim, &secret);
    assert_eq!(attack.ask(victim, &secret).await, names.len());
    let bytes = names.len() * super::hosted::BLOCK_BYTES;
    assert_eq!(attack.export(Some(victim), &names).await, bytes);
    // And a model that knows less than is there notices.
    attack.held.remove(&names[2]);
    assert!(attack.ask_and_compare(victim, &secret).await.is_err());
}

#[test]
fn no_two_lists_of_tenant_model_and_salt_have_one_namespace() {
    let key = BlockHashKey::new(HashKey(HASH_KEY));
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[6; 32]);
    let pieces = ["a", "b", "ab", "\0", "@", "/", ":", "victim", "", "aa", "\u{0}\u{0}", "r1"];
    let mut known: HashMap<u128, (String, String, String, u32)> = HashMap::new();
    for _ in 0..tries() {
        let mut part = || -> String {
            (0..rng.random_range(0..4)).map(|_| pieces[rng.random_range(0..pieces.len())]).collect()
        };
        let of = (part(), part(), part(), rng.random_range(1..4) * 8);
        let namespace = key.namespace(&of.0, &of.1, &of.2, of.3);
        let before = known.entry(namespace.0).or_insert_with(|| of.clone());
        assert_eq!(*before, of, "one namespace for two");
    }
    // Equal lists do share one, so that equal names would have been seen.
    assert!(known.len() > 1_000);
}

/// The middle of many times.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_to_an_answer_tells_nothing_of_anothers_blocks() {
    use super::schedules::native_alone;
    let control = FakeControl::start().await;
    let seat = native_alone(&control).await;
    let (mut theirs, mut nobodys, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..60_u32 {
        let prompt = |kind: u32| -> Vec<u32> {
            let rest = (2..480).map(|at| 3 + (round * 977 + kind * 31 + at * 7) % 270);
            [3 + round, 70 + kind].into_iter().chain(rest).collect()
        };
        let time = async |tenant: u128, prompt: &[u32]| {
            let begun = Instant::now();
            let cached = seat.cached(NamespaceId(tenant), prompt).await.expect("answered");
            (begun.elapsed(), cached)
        };
        let (known, unknown) = (prompt(1), prompt(2));
        assert_eq!(time(1, &known).await.1, 0, "the victim computes it");
        // By turns, since the first after another is not the same as the second.
        for known_first in [round % 2 == 0, round % 2 == 1] {
            let (prompt, times) =
                if known_first { (&known, &mut theirs) } else { (&unknown, &mut nobodys) };
            let (took, cached) = time(2, prompt).await;
            assert_eq!(cached, 0);
            times.push(took);
        }
        let (took, cached) = time(1, &known).await;
        assert_eq!(cached, 476, "it is there");
        own.push(took);
    }
    let (theirs, nobodys, own) = (median(theirs), median(nobodys), median(own));
    println!(
        "medians: a prompt that another had computed {theirs:.1?}, one that nobody had {nobodys:.1?}, one's own {own:.1?}"
    );
    let ratio = theirs.as_secs_f64() / nobodys.as_secs_f64();
    assert!((0.67..1.5).contains(&ratio), "{theirs:?} against {nobodys:?}");
    assert!(own < theirs * 4 / 5, "a hit would be seen: {own:?} against {theirs:?}");
}
