//! What one tenant can learn of another's cache over HTTP, and do to it: nothing, whatever it asks, names or pins.
//!
//! A victim warms prefixes, pins one and has sessions, stored responses and decisions. An attacker that knows its prompts
//! and all its names asks the same in all three APIs, under salts that may be taken for something else, and shows the
//! names to every endpoint that takes one. Answers must be those to names that nobody has, and first tries must be
//! computed: by what `cached_tokens` says and by the clock. The victim's own tries find what is there, so that others
//! could have.
//!
//! `MAINSTAY_PROBES=N` makes N tries.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_cluster_tests::rng::Rng;
use mainstay_cluster_tests::{Client, Reply, run_cli};
use serde_json::{Value, json};

use crate::tiers::{Small, key_file, strings};
use crate::{cached, filler, lifecycle, prompt_tokens, usage, user};

const PROBES: u64 = 2_000;
const LANES: u64 = 4;
/// Prompts of the victim that each lane tries, and lines of one: some nine blocks.
const SECRETS: u64 = 8;
const LINES: u64 = 12;
/// Of so many tries one asks for an answer; the others show names.
const NAMES_PER_ASK: u64 = 8;
/// And after so many answers the victim asks its own again, so that they stay near.
const OWN_EVERY: u64 = 12;
/// So many times on either side before the clock is believed.
const TIMES_MIN: usize = 12;
/// What an answer may add to a prompt's cached tokens, and a block that it fills.
const SLACK_TOKENS: u64 = 32;
const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];
/// Salts that may be taken for another tenant, another model, or an end.
const SALTS: [&str; 10] = [
    "",
    "victim",
    "victim\u{0}",
    "\u{0}victim",
    "demo",
    "victim/demo",
    "attacker",
    "..",
    "\u{ff}",
    "default",
];
const SOON: Duration = Duration::from_secs(20);

/// A command to the cluster, its answer read.
fn admin(member: &str, args: &[&str]) -> Result<Value> {
    let (code, out, err) = run_cli(&[args, &["--control", member, "-o", "json"]].concat())?;
    ensure!(code == 0, "{args:?}: {code} {err}");
    serde_json::from_str(&out).with_context(|| out)
}

/// A tenant of that quota, with a client that shows its key.
async fn tenant(member: &str, url: &str, name: &str, quota: &[&str]) -> Result<Client> {
    admin(member, &[&["tenant", "add", name], quota].concat())?;
    let made = admin(member, &["tenant", "key", "add", name])?;
    let client = Client::with_key(url, made["key"].as_str().context("a key")?)?;
    let begun = Instant::now();
    while client.get("/v1/sessions").await?.status != 200 {
        ensure!(begun.elapsed() < SOON, "the key of {name} is not known");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(client)
}

fn flags(dir: &Path, worker: u64) -> Vec<String> {
    let disk = dir.join(format!("disk-{worker}"));
    let disk = disk.to_string_lossy();
    strings(&["--host-memory", "64M", "--disk-tier", &disk, "--disk-size", "256M"])
}

/// A prompt for one of the three APIs, with an answer of one token.
fn body(path: &str, text: &str) -> Value {
    match path {
        "/v1/responses" => json!({
            "model": "demo", "max_output_tokens": 16, "temperature": 0, "store": false, "input": text,
        }),
        _ => {
            json!({"model": "demo", "max_tokens": 1, "temperature": 0, "messages": [user(text)]})
        }
    }
}

/// A text that no other begins like: the first block of two fillers is the same once in a thousand times, and what the
/// attacker has asked itself is no find.
fn text_of(number: u64, lines: u64) -> String {
    format!("{number:x} {}", filler(number, lines))
}

/// What a name is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Of {
    Pin,
    Session,
    Block,
    Response,
    Request,
}

/// Every way to show a name. `NAME` stands for it.
const WAYS: [(Of, &str, &str); 19] = [
    (Of::Pin, "GET", "/v1/pins/NAME"),
    (Of::Pin, "GET", "/v1/pins/NAME?consistency=local"),
    (Of::Pin, "PATCH", "/v1/pins/NAME"),
    (Of::Pin, "DELETE", "/v1/pins/NAME"),
    (Of::Session, "GET", "/v1/sessions/NAME"),
    (Of::Session, "POST", "/v1/sessions/NAME/prefetch"),
    (Of::Session, "POST", "/v1/sessions/NAME/end"),
    (Of::Session, "POST", "/v1/sessions/NAME/reset"),
    (Of::Session, "GET", "/v1/blocks?session=NAME"),
    (Of::Block, "GET", "/v1/blocks?hash=NAME"),
    (Of::Response, "GET", "/v1/responses/NAME"),
    (Of::Response, "GET", "/v1/responses/NAME/input_items"),
    (Of::Response, "DELETE", "/v1/responses/NAME"),
    (Of::Response, "POST", "/v1/responses/NAME/cancel"),
    (Of::Response, "POST", "/v1/responses"),
    (Of::Response, "POST", "/v1/responses/compact"),
    (Of::Request, "GET", "/api/v1/requests/NAME/explain"),
    (Of::Pin, "GET", "/api/v1/requests/NAME/explain"),
    (Of::Response, "GET", "/v1/sessions/NAME"),
];

/// Lists that must not have any name of others.
const LISTS: [&str; 9] = [
    "/v1/pins?all=true",
    "/v1/pins?consistency=local",
    "/v1/sessions?all=true",
    "/api/v1/requests/last/explain",
    "/api/v1/console/pins",
    "/api/v1/console/sessions",
    "/api/v1/console/decisions",
    "/api/v1/console/workers/1/blocks",
    "/api/v1/console/overview",
];

/// Shows a name in one way.
async fn show(client: &Client, way: (Of, &str, &str), name: &str) -> Result<Reply> {
    let (_, method, path) = way;
    let path = path.replace("NAME", name);
    match (method, path.as_str()) {
        ("POST", "/v1/responses" | "/v1/responses/compact") => {
            let asked = json!({
                "model": "demo", "input": "And then?", "previous_response_id": name,
                "max_output_tokens": 16,
            });
            client.post(&path, &asked).await
        }
        ("GET", _) => client.get(&path).await,
        ("DELETE", _) => client.delete(&path).await,
        ("PATCH", _) => client.patch(&path, &json!({"ttl": "1s"})).await,
        _ => client.post(&path, &json!({})).await,
    }
}

/// An answer without the name that was asked for and without what differs from call to call.
fn told(reply: &Reply, name: &str) -> (u16, String, bool) {
    let text = reply.body.to_string().replace(name, "NAME");
    (reply.status, text, reply.log_index.is_some())
}

/// The victim's names, and what they look like.
struct Names(HashMap<Of, Vec<String>>);

impl Names {
    fn some(&self, of: Of) -> &[String] {
        self.0.get(&of).map_or(&[], Vec::as_slice)
    }

    /// A name that nobody has, of the same form.
    fn invent(rng: &mut Rng, of: Of) -> String {
        let number = rng.next_u128();
        match of {
            Of::Pin => format!("p-{number:032x}"),
            Of::Session => format!("agent-{:08x}", number as u32),
            Of::Block => format!("{number:032x}"),
            Of::Response => format!("resp_{:024x}", number >> 32),
            Of::Request => format!("req_{:024x}", number >> 32),
        }
    }

    /// A block's name made from one of the victim's: its low half, by which the index knows it, or a bit of it.
    fn craft(&self, rng: &mut Rng) -> Result<String> {
        let known: &String = rng.one_of(self.some(Of::Block));
        let known = u128::from_str_radix(known, 16)?;
        let crafted = match rng.pick(0..4) {
            0 => known & u128::from(u64::MAX) | u128::from(rng.draw()) << 64,
            1 => known >> 64 << 64 | u128::from(rng.draw()),
            2 => known ^ 1 << rng.pick(0..128),
            _ => known.rotate_left(64),
        };
        Ok(format!("{crafted:032x}"))
    }
}

/// The victim at work: prefixes, sessions, a pin of each kind, a stored response, decisions.
async fn settle(victim: &Client) -> Result<Names> {
    let mut names: HashMap<Of, Vec<String>> = HashMap::new();
    for n in 0..4 {
        let session = format!("agent-{n:08x}");
        let mut asked = body(PATHS[0], &filler(20_000 + n, LINES));
        asked["prompt_cache_key"] = json!(session);
        if n == 0 {
            asked["nvext"] = json!({"cache_control": {"type": "ephemeral", "ttl": "1h"}});
        }
        ensure!(victim.post(PATHS[0], &asked).await?.status == 200);
        let last = victim.get("/api/v1/requests/last/explain").await?.body;
        names
            .entry(Of::Request)
            .or_default()
            .push(last["request"].as_str().context("a request")?.into());
        let found = victim.get(&format!("/v1/blocks?session={session}")).await?.body;
        names.entry(Of::Block).or_default().push(found["hash"].as_str().context("a hash")?.into());
        names.entry(Of::Session).or_default().push(session);
        let mut stored = body(PATHS[1], &filler(21_000 + n, 3));
        stored["store"] = json!(true);
        let stored = victim.post(PATHS[1], &stored).await?.body;
        names.entry(Of::Response).or_default().push(stored["id"].as_str().context("an id")?.into());
    }
    let pin = json!({"model": "demo", "ttl": "1h", "messages": [user(&filler(20_001, LINES))]});
    ensure!(victim.post("/v1/pins", &pin).await?.status == 200);
    let two = |list: &Value| {
        let pins = list["data"].as_array()?;
        let of = |key: &str| -> Option<Vec<String>> {
            pins.iter().map(|pin| Some(pin[key].as_str()?.to_owned())).collect()
        };
        (pins.len() == 2).then(|| of("id").zip(of("last_block"))).flatten()
    };
    let (pins, blocks) = victim.wait_for("/v1/pins", SOON, two).await?;
    names.entry(Of::Pin).or_default().extend(pins);
    names.entry(Of::Block).or_default().extend(blocks);
    Ok(Names(names))
}

/// What a lane found.
#[derive(Default)]
struct Found {
    asks: u64,
    shows: u64,
    /// Asks of the victim's that were found in a cache.
    own: u64,
    /// How long whole secrets took at first, texts that nobody has asked for, and what the victim found.
    secret: Vec<Duration>,
    unknown: Vec<Duration>,
    own_took: Vec<Duration>,
}

struct Lane<'a> {
    number: u64,
    rng: Rng,
    victim: &'a Client,
    attacker: &'a Client,
    names: &'a Names,
    /// The longest prompt that the attacker has had computed, by secret and salt.
    asked: HashMap<(u64, String), u64>,
    found: Found,
}

impl Lane<'_> {
    fn secret(&self, n: u64) -> u64 {
        30_000 + self.number * SECRETS + n
    }

    /// One prompt of the attacker's.
    async fn ask(&mut self) -> Result<()> {
        let path = *self.rng.one_of(&PATHS);
        let n = self.rng.pick(0..SECRETS);
        let secret = self.secret(n);
        let salt = match self.rng.percent(50) {
            true => format!("{}{:x}", self.rng.one_of(&SALTS), self.rng.draw()),
            false => (*self.rng.one_of(&SALTS)).to_owned(),
        };
        let whole = self.rng.percent(60);
        let lines = if whole { LINES } else { self.rng.pick(1..LINES) };
        let stranger = self.rng.percent(25);
        let text =
            text_of(if stranger { 40_000 + self.rng.pick(0..1 << 40) } else { secret }, lines);
        let mut asked = body(path, &text);
        if !salt.is_empty() {
            asked["cache_salt"] = json!(salt);
        }
        let begun = Instant::now();
        let reply = self.attacker.post(path, &asked).await?;
        let took = begun.elapsed();
        ensure!(reply.status == 200, "{path}: {}", reply.body);
        let (tokens, found) = usage(path, &reply.body)?;
        self.found.asks += 1;
        if stranger {
            if whole {
                self.found.unknown.push(took);
            }
            return Ok(());
        }
        let before = self.asked.get(&(secret, salt.clone())).copied();
        let own = before.map_or(0, |tokens| tokens + SLACK_TOKENS);
        ensure!(
            found <= own,
            "{found} of {tokens} tokens of {secret} under {salt:?}: {own} are its own"
        );
        if whole && before.is_none() {
            self.found.secret.push(took);
        }
        let longest = self.asked.entry((secret, salt)).or_default();
        *longest = tokens.max(*longest);
        Ok(())
    }

    /// The victim's own prompts are there for it, whatever others did.
    async fn own(&mut self) -> Result<()> {
        for n in 0..SECRETS {
            let path = *self.rng.one_of(&PATHS);
            let begun = Instant::now();
            let reply =
                self.victim.post(path, &body(path, &text_of(self.secret(n), LINES))).await?;
            let took = begun.elapsed();
            let (tokens, found) = usage(path, &reply.body)?;
            if found + SLACK_TOKENS >= tokens {
                self.found.own += 1;
                self.found.own_took.push(took);
            }
        }
        Ok(())
    }

    /// A name of the victim's is told as one that nobody has.
    async fn name(&mut self) -> Result<()> {
        let way = *self.rng.one_of(&WAYS);
        let name = match way.0 {
            Of::Block if self.rng.percent(50) => self.names.craft(&mut self.rng)?,
            of => self.rng.one_of(self.names.some(of)).clone(),
        };
        let invented = Names::invent(&mut self.rng, way.0);
        let real = show(self.attacker, way, &name).await?;
        let nobodys = show(self.attacker, way, &invented).await?;
        let (real, nobodys) = (told(&real, &name), told(&nobodys, &invented));
        ensure!(real == nobodys, "{way:?} {name}: {real:?}, and for nobody's {nobodys:?}");
        let shown = if way.0 == Of::Block { real.0 == 200 } else { (400..500).contains(&real.0) };
        ensure!(shown, "{way:?}: {real:?}");
        ensure!(way.0 != Of::Block || real.1.contains("\"nowhere\""), "{real:?}");
        self.found.shows += 1;
        Ok(())
    }

    async fn run(mut self, tries: u64) -> Result<Found> {
        self.own().await?;
        for n in 0..tries {
            if n % NAMES_PER_ASK > 0 {
                self.name().await?;
                continue;
            }
            self.ask().await?;
            if self.found.asks.is_multiple_of(OWN_EVERY) {
                self.own().await?;
            }
        }
        Ok(self.found)
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// All the victim has is as it was.
async fn untouched(victim: &Client, attacker: &Client, names: &Names) -> Result<()> {
    for way in WAYS.iter().filter(|(_, method, path)| *method == "GET" && !path.contains("explain"))
    {
        if way.0 == Of::Response && way.2.contains("sessions") {
            continue;
        }
        for name in names.some(way.0) {
            let reply = show(victim, *way, name).await?;
            ensure!(reply.status == 200, "{way:?} {name}: {}", reply.body);
        }
    }
    for pin in names.some(Of::Pin) {
        let pin = victim.get(&format!("/v1/pins/{pin}")).await?.body;
        ensure!(pin["state"] == "active" && pin["ttl_left_ms"].as_u64() > Some(1_800_000), "{pin}");
    }
    for session in names.some(Of::Session) {
        let session = victim.get(&format!("/v1/sessions/{session}")).await?.body;
        ensure!(session["turns"] == 1 && session["ended"].is_null(), "{session}");
    }
    for path in LISTS {
        let list = attacker.get(path).await?.body.to_string();
        let all = names.0.values().flatten();
        let named: Vec<&String> = all.filter(|name| list.contains(name.as_str())).collect();
        ensure!(named.is_empty(), "{path} names {named:?}: {list}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_try_over_http_finds_anything_of_another_tenant() -> Result<()> {
    let asked = std::env::var("MAINSTAY_PROBES").ok().and_then(|count| count.parse().ok());
    let probes: u64 = asked.unwrap_or(PROBES);
    let dir = tempfile::tempdir()?;
    let flags = [flags(dir.path(), 1), flags(dir.path(), 2)];
    let cluster =
        Small::start_with(&dir.path().join("one"), &key_file(dir.path())?, &flags, 2_000)?;
    let victim = tenant(&cluster.member, &cluster.url, "victim", &[]).await?;
    let attacker = tenant(&cluster.member, &cluster.url, "attacker", &[]).await?;
    let names = settle(&victim).await?;
    let seed = Rng::seed_of_run();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let begun = Instant::now();
    let lanes: Vec<_> = (0..LANES)
        .map(|number| {
            let (victim, attacker, names) = (&victim, &attacker, &names);
            let (asked, found) = (HashMap::new(), Found::default());
            let lane = Lane { number, rng: rng.fork(), victim, attacker, names, asked, found };
            lane.run(probes.div_ceil(LANES))
        })
        .collect();
    let lanes = futures::future::try_join_all(lanes).await?;
    let took = begun.elapsed();
    let sum = |of: fn(&Found) -> u64| lanes.iter().map(of).sum::<u64>();
    let (asks, shows, own) = (sum(|f| f.asks), sum(|f| f.shows), sum(|f| f.own));
    println!(
        "isolation: {} tries in {took:.1?}, {:.0} a second ({asks} prompts, {shows} names); {own} of the victim's own hit",
        asks + shows,
        (asks + shows) as f64 / took.as_secs_f64()
    );
    ensure!(own >= LANES * SECRETS, "only {own} of the victim's own hit, so tries say little");
    let times = |of: fn(&Found) -> &[Duration]| lanes.iter().flat_map(of).copied().collect();
    let mut secret: Vec<Duration> = times(|f| &f.secret);
    let mut unknown: Vec<Duration> = times(|f| &f.unknown);
    let mut own_took: Vec<Duration> = times(|f| &f.own_took);
    if secret.len().min(unknown.len()) >= TIMES_MIN {
        let (known, fresh) = (median(&mut secret), median(&mut unknown));
        println!(
            "median answer: {known:.1?} to what the victim has, {fresh:.1?} to what nobody has, {:.1?} to the victim",
            median(&mut own_took)
        );
        ensure!(known * 3 > fresh * 2, "{known:?} beside {fresh:?}: time tells them apart");
    }
    untouched(&victim, &attacker, &names).await
}

/// Pins a text; the blocks that it has, or why not.
async fn pin(client: &Client, session: &str, text: &str) -> Result<Result<u64, String>> {
    let asked = json!({"model": "demo", "ttl": "1h", "session": session, "messages": [user(text)]});
    let reply = client.post("/v1/pins", &asked).await?;
    if reply.status == 200 {
        return Ok(Ok(reply.body["blocks"].as_u64().context("blocks")?));
    }
    ensure!(reply.status == 429, "{} {}", reply.status, reply.body);
    Ok(Err(reply.body["error"]["message"].as_str().context("a message")?.to_owned()))
}

/// Pins until the budget is spent: what was pinned, and the last refusal.
async fn spend(client: &Client, seed: u64, lines: u64) -> Result<(u64, String)> {
    let mut pinned = 0;
    for n in 0..64 {
        // Sessions have budgets of their own.
        match pin(client, &format!("s-{n}"), &filler(seed + n, lines)).await? {
            Ok(blocks) => pinned += blocks,
            Err(why) => return Ok((pinned, why)),
        }
    }
    anyhow::bail!("{pinned} blocks pinned and no end")
}

/// Blocks of each worker in the test of pins.
const BLOCKS: u64 = 400;

/// What the victim's pinned session holds on the worker's device.
async fn on_device(victim: &Client) -> Result<u64> {
    let found = victim.get("/v1/blocks?session=agent").await?.body;
    let tiers = found["holders"][0]["tiers"].as_array().with_context(|| found.to_string())?;
    let device = tiers.iter().find(|tier| tier["tier"] == "device");
    Ok(device.and_then(|tier| tier["blocks"].as_u64()).unwrap_or(0))
}

#[tokio::test]
async fn pins_and_budgets_hold_per_tenant() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = [flags(dir.path(), 1)];
    let cluster =
        Small::start_with(&dir.path().join("one"), &key_file(dir.path())?, &flags, BLOCKS)?;
    let (member, url) = (&cluster.member, &cluster.url);
    let victim = tenant(member, url, "victim", &["--pinned-blocks", "80"]).await?;
    let attacker = tenant(member, url, "attacker", &["--pinned-blocks", "50"]).await?;
    let text = filler(50_000, 40);
    let mut asked = body(PATHS[0], &text);
    asked["prompt_cache_key"] = json!("agent");
    let first = victim.post(PATHS[0], &asked).await?.body;
    ensure!(cached(&first) == 0, "{first}");
    let own = pin(&victim, "agent", &text).await?.map_err(anyhow::Error::msg)?;
    let active = |list: &Value| {
        let pins = list["data"].as_array()?;
        (!pins.is_empty() && pins.iter().all(|pin| pin["state"] == "active")).then_some(())
    };
    victim.wait_for("/v1/pins", SOON, active).await?;

    // To the end of its own budget, of which the victim's blocks are no part, nor the other way round.
    let (theirs, why) = spend(&attacker, 51_000, 10).await?;
    ensure!(
        theirs <= 50 && why.contains(&format!("(attacker): {} of 50 left", 50 - theirs)),
        "{why}"
    );
    ensure!(!why.contains("victim"), "{why}");
    let mut hinted = body(PATHS[0], &filler(52_000, 20));
    hinted["nvext"] =
        json!({"cache_control": {"type": "ephemeral", "ttl": "1h"}, "session_id": "x"});
    let reply = attacker.post(PATHS[0], &hinted).await?.body;
    assert_eq!(reply["nvext"]["pins"][0]["outcome"], "rejected", "{reply}");
    let (more, why) = spend(&victim, 53_000, 10).await?;
    let left = 80 - own - more;
    ensure!(
        more > 0 && why.contains(&format!("(victim): {left} of 80 left")),
        "{own} {more}: {why}"
    );
    let second = pin(&attacker, "agent", &text).await?;
    ensure!(second.is_err(), "the victim's prefix is not free for others: {second:?}");

    // Without a budget of its own it may ask for far more than the worker protects, and floods it five times.
    admin(member, &["tenant", "add", "attacker"])?;
    let mut pinned = 0;
    for n in 0..12 {
        pinned += pin(&attacker, &format!("b-{n}"), &filler(54_000 + n, 40)).await?.unwrap_or(0);
        let prompt = body(PATHS[0], &filler(54_000 + n, 40));
        ensure!(attacker.post(PATHS[0], &prompt).await?.status == 200);
    }
    ensure!(pinned > BLOCKS / 2, "only {pinned} blocks are pinned, which is no pressure");
    let mut computed = 0;
    for n in 0..u64::MAX {
        if computed >= 5 * BLOCKS {
            break;
        }
        let reply = attacker.chat(&json!([user(&filler(60_000 + n, 120))]), 1).await?;
        computed += (prompt_tokens(&reply) - cached(&reply)) / 16;
    }
    let held = on_device(&victim).await?;
    ensure!(held >= own, "{held} of {own} pinned blocks are left in the engine");
    let again = victim.post(PATHS[0], &asked).await?.body;
    ensure!(cached(&again) >= own * 16, "{} of {own} pinned blocks are found", cached(&again));
    println!(
        "isolation: {own} pinned blocks found whole after {pinned} of another's pins and {computed} blocks"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_ends_anothers_session() -> Result<()> {
    let mut bench = lifecycle::Bench::start("--lifecycle=on")?;
    let victim = tenant(&bench.member, &bench.url, "victim", &[]).await?;
    bench.client = tenant(&bench.member, &bench.url, "attacker", &[]).await?;
    // Until the gateway knows how fast blocks have to go.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        bench.flood(lifecycle::BLOCKS / 4).await?;
    }
    let tools = json!([
        {"type": "function", "function": {"name": "Bash", "parameters": {"type": "object"}}},
    ]);
    let question = user(&format!("{}\nrun the tool", filler(7, 80)));
    let mut asked = json!({
        "model": "demo", "max_tokens": 40, "prompt_cache_key": "agent", "messages": [question],
        "tools": tools,
    });
    let first = victim.post(PATHS[0], &asked).await?.body;
    let message = first["choices"][0]["message"].clone();
    let call = &message["tool_calls"][0];
    ensure!(call["function"]["name"] == "Bash", "{first}");
    // The same session by name, with the same prompt, ended in every way while a flood looks for what may go.
    for n in 0..5 {
        let mut mine = asked.clone();
        let same = bench.client.post(PATHS[0], &mine).await?;
        ensure!(same.status == 200 && (n > 0 || cached(&same.body) == 0), "{}", same.body);
        let reset = bench.client.post("/v1/sessions/agent/reset", &json!({})).await?;
        ensure!(reset.status == 200 && reset.body["pins_released"] == 0, "{}", reset.body);
        let evict = json!({"session_id": "agent", "kv_hints": {"evict_session": true}});
        mine["nvext"] = json!({"agent_context": evict});
        ensure!(bench.client.post(PATHS[0], &mine).await?.status == 200);
        bench.client.post("/v1/sessions/agent/end", &json!({})).await?;
        bench.flood(lifecycle::BLOCKS).await?;
    }
    let session = victim.get("/v1/sessions/agent").await?.body;
    ensure!(session["ended"].is_null() && session["turns"] == 1, "{session}");
    let result = json!({"role": "tool", "tool_call_id": call["id"], "content": "ls said: nothing"});
    asked["messages"] = json!([asked["messages"][0], message, result]);
    let second = victim.post(PATHS[0], &asked).await?.body;
    let kept = cached(&second) as f64 / prompt_tokens(&first) as f64;
    println!(
        "isolation: {:.1} % of a paused session found after another ended its own of that name",
        kept * 100.0
    );
    ensure!(kept >= 0.95, "{kept}");
    Ok(())
}
