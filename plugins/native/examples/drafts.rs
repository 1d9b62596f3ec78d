//! What drafts are worth: answers whose text a form dictates, with drafts and without, on the same engine settings.
//!
//! `drafts MODEL_DIR [ROUNDS]`. A model of random weights says nothing that repeats, so a grammar of its tokens says it
//! for it: a file as the prompt has it with every fifth line changed, records that differ in their values, and words
//! that never come again. Both engines pay for the form; answers must be equal. Times are medians, by turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use mainstay_engine_abi::sdk::{
    Engine, Finish, Guided, GuidedKind, HostLog, Lanes, Request, Sampling, Stats,
};
use mainstay_native::NativeEngine;
use tokenizers::Tokenizer;

const LINES: usize = 30;
const PATIENCE: Duration = Duration::from_secs(600);

struct Opened {
    engine: NativeEngine,
    lanes: Arc<Lanes>,
    next: u64,
}

impl Opened {
    fn new(model_dir: &str, drafts: usize) -> Result<Self> {
        let config = serde_json::json!({
            "model_dir": model_dir, "blocks": 1024, "draft_tokens_max": drafts, "threads": 2,
        });
        let lanes = Arc::new(Lanes::new());
        let engine =
            NativeEngine::create(&config.to_string(), Arc::clone(&lanes), HostLog::silent())
                .map_err(|error| anyhow!("{}", error.message))?;
        Ok(Self { engine, lanes, next: 0 })
    }

    /// Has it answer so, and says how long that took from its first token to its last.
    fn answer(&mut self, prompt: &[u32], answer: &[u32]) -> Result<(Vec<u32>, Duration)> {
        self.next += 1;
        let form = Guided { kind: GuidedKind::Lark, spec: grammar(answer) };
        let request = Request {
            id: self.next,
            tokens: prompt.to_vec(),
            sampling: Sampling { tokens_max: 4_000, ..Sampling::default() },
            guided: Some(form),
            ..Request::default()
        };
        self.engine.submit(request).map_err(|error| anyhow!("{}", error.message))?;
        let (mut tokens, begun, mut first) = (Vec::new(), Instant::now(), None);
        while begun.elapsed() < PATIENCE {
            self.lanes.wait_outputs(Duration::from_millis(100));
            for output in self.lanes.take_outputs(1_000).1 {
                first.get_or_insert_with(Instant::now);
                tokens.extend(output.tokens);
                match output.finish {
                    None => {}
                    Some(Finish::Stop) => {
                        return Ok((tokens, first.unwrap_or(begun).elapsed()));
                    }
                    Some(other) => bail!("it ended with {other:?}"),
                }
            }
            self.lanes.take_kv(1_000);
        }
        bail!("no end in sight")
    }

    fn stats(&self) -> Stats {
        self.engine.stats()
    }
}

/// A grammar of these tokens alone.
fn grammar(tokens: &[u32]) -> String {
    let tokens: Vec<String> = tokens.iter().map(|token| format!("<[{token}]>")).collect();
    format!("start: {}\n", tokens.join(" "))
}

/// Numbers that look like chance and are the same each time.
fn mixed(number: usize) -> usize {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

fn word(number: usize) -> String {
    let letter = |place: u32| char::from(b'a' + (mixed(number) / 23_usize.pow(place) % 23) as u8);
    (0..6).map(letter).collect()
}

fn line(number: usize) -> String {
    format!("    let {} = {}({});\n", word(number), word(number + 1_000), mixed(number) % 1_000)
}

/// Names, prompts and answers.
fn cases() -> Vec<(&'static str, String, String)> {
    let file: String = (0..LINES).map(line).collect();
    let edited = |n: usize| line(if n % 5 == 2 { n + 500 } else { n });
    let record =
        |n: usize| format!("{{\"name\": \"{}\", \"size\": {}}},\n", word(n), mixed(n) % 1_000);
    let new = (0..LINES * 4).map(|n| word(n + 9_000) + " ").collect();
    vec![
        ("a file with changes", file.clone(), (0..LINES).map(edited).collect()),
        ("records", file.clone(), (0..LINES).map(record).collect()),
        ("new words", file, new),
    ]
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model_dir = args.next().context("drafts MODEL_DIR [ROUNDS]")?;
    let rounds: usize = args.next().map_or(Ok(5), |text| text.parse())?;
    let tokenizer = Tokenizer::from_file(format!("{model_dir}/tokenizer.json"))
        .map_err(|error| anyhow!("{error}"))?;
    let tokens_of = |text: &str| -> Result<Vec<u32>> {
        let encoded = tokenizer.encode(text, false).map_err(|error| anyhow!("{error}"))?;
        Ok(encoded.get_ids().to_vec())
    };
    let mut engines = [Opened::new(&model_dir, 0)?, Opened::new(&model_dir, 8)?];
    println!("| answer | tokens | without, tok/s | with, tok/s | ratio | guessed | right |");
    println!("|---|---|---|---|---|---|---|");
    for (name, prompt, text) in cases() {
        let (prompt, wanted) = (tokens_of(&prompt)?, tokens_of(&text)?);
        let before = engines[1].stats();
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..rounds.max(1) {
            let mut answers = Vec::new();
            for at in [round % 2, 1 - round % 2] {
                let (answer, took) = engines[at].answer(&prompt, &wanted)?;
                rates[at].push((answer.len() - 1) as f64 / took.as_secs_f64());
                answers.push(answer);
            }
            ensure!(answers[0] == answers[1], "{name}: the answers differ");
            // The end token comes behind it.
            ensure!(answers[0].starts_with(&wanted), "{name}: not the answer that was dictated");
        }
        let now = engines[1].stats();
        let guessed = now.draft_tokens - before.draft_tokens;
        let right = now.accepted_tokens - before.accepted_tokens;
        let [without, with] = rates.map(median);
        let (of, runs) = (with / without, rounds.max(1) as u64);
        println!(
            "| {name} | {} | {without:.0} | {with:.0} | {of:.2} | {} | {} |",
            wanted.len(),
            guessed / runs,
            right / runs
        );
    }
    Ok(())
}
