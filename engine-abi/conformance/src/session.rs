//! A right use of an engine: requests go in, all three lanes are read, and each word is judged as it comes.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use mainstay_engine_abi::raw::{LANE_KV, LANE_OP, LANE_OUT};
use mainstay_engine_abi::sdk::types_of_mainstay::NamespaceId;
use mainstay_engine_abi::sdk::{Code, EngineError, Info, OpDone, Pin, Request, Sampling, caps};

use crate::cache_model::CacheModel;
use crate::driver::{Driver, Polled};
use crate::ledger::{Ledger, Told};
use crate::rng::Rng;
use crate::{Context, Stop};

/// Where all prompts lie that are not meant to lie elsewhere.
pub(crate) const NAMESPACE_OF_ALL: NamespaceId = NamespaceId(0x6b69_7400);
/// How long nothing may come for the lanes to count as quiet.
const QUIET: Duration = Duration::from_millis(60);
/// How often a full engine is asked again.
const RETRIES_MAX: u32 = 10_000;

pub(crate) struct Session {
    pub(crate) driver: Driver,
    pub(crate) ledger: Ledger,
    pub(crate) cache: CacheModel,
    pub(crate) rng: Rng,
    ops: HashMap<u64, OpDone>,
    ops_open: HashSet<u64>,
    next_id: u64,
    patience: Duration,
}

impl Session {
    pub(crate) fn new(context: &Context) -> Result<Self, Stop> {
        Ok(Self::over(Driver::create(context)?, context))
    }

    pub(crate) fn over(driver: Driver, context: &Context) -> Self {
        Self {
            driver,
            ledger: Ledger::default(),
            cache: CacheModel::default(),
            rng: Rng::new(context.seed),
            ops: HashMap::new(),
            ops_open: HashSet::new(),
            next_id: 1,
            patience: context.patience,
        }
    }

    pub(crate) fn info(&self) -> &Info {
        &self.driver.info
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A prompt of so many random tokens.
    pub(crate) fn prompt(&mut self, tokens: usize) -> Vec<u32> {
        let vocab = u64::from(self.driver.info.vocab);
        (0..tokens).map(|_| self.rng.below(vocab) as u32).collect()
    }

    /// A prompt of whole blocks and one token more, so that all whole ones may be hit. Fewer where the engine's
    /// context or cache is small.
    pub(crate) fn prompt_of_blocks(&mut self, blocks: usize) -> Vec<u32> {
        let blocks = blocks.min(self.blocks_of_a_prompt());
        self.prompt(blocks * self.driver.info.block_tokens as usize + 1)
    }

    /// The most blocks that the kit gives one prompt: a quarter of the cache, half of the context.
    pub(crate) fn blocks_of_a_prompt(&self) -> usize {
        let info = &self.driver.info;
        let by_context = info.context_tokens_max / 2 / info.block_tokens;
        (by_context as usize).min(info.blocks_total as usize / 4).max(1)
    }

    /// A greedy request of so many output tokens in a namespace of its own choice.
    pub(crate) fn request(&mut self, tokens: Vec<u32>, tokens_max: u32) -> Request {
        Request {
            id: self.id(),
            namespace: NAMESPACE_OF_ALL.0,
            tokens,
            sampling: Sampling { tokens_max, ignore_eos: true, ..Sampling::default() },
            ..Request::default()
        }
    }

    /// Submits; an engine that is full is asked again once it has ended something.
    pub(crate) fn submit(&mut self, request: &Request) -> Result<(), Stop> {
        for _ in 0..RETRIES_MAX {
            match self.try_submit(request)? {
                Ok(()) => return Ok(()),
                Err(error) if error.rc == Code::Exhausted && self.ledger.open() > 0 => {
                    self.pump(Duration::from_millis(2))?;
                }
                Err(error) => {
                    return Err(format!("a sound request was refused: {error}").into());
                }
            }
        }
        Err("an engine that says EXHAUSTED never had room again".to_owned().into())
    }

    pub(crate) fn try_submit(
        &mut self,
        request: &Request,
    ) -> Result<Result<(), EngineError>, Stop> {
        self.ledger.enter(request);
        let result = self.driver.submit_raw(request, |_| {});
        if result.is_err() {
            self.ledger.refuse(request.id)?;
        }
        Ok(result)
    }

    /// Reads what is there; waits up to `timeout` for the OUT lane when there is nothing. True if something came.
    pub(crate) fn pump(&mut self, timeout: Duration) -> Result<bool, Stop> {
        let mut came = self.read_lane(LANE_OUT)?;
        came |= self.read_lane(LANE_KV)?;
        came |= self.read_lane(LANE_OP)?;
        if !came && !timeout.is_zero() {
            let rc = self.driver.wait(LANE_OUT, timeout);
            if rc != 0 && rc != Code::NotFound.rc() && rc != Code::Unavailable.rc() {
                return Err(format!("wait on lane OUT gave {rc}").into());
            }
        }
        Ok(came)
    }

    /// Reads one lane until it is empty.
    pub(crate) fn read_lane(&mut self, lane: u32) -> Result<bool, Stop> {
        let mut came = false;
        loop {
            match self.driver.poll(lane)? {
                Polled::Nothing => return Ok(came),
                Polled::Outputs(outputs) => {
                    let vocab = self.driver.info.vocab;
                    for output in outputs {
                        self.ledger.take_in(output, vocab)?;
                    }
                }
                Polled::Events { reset, events } => {
                    if reset {
                        self.cache.reset();
                    }
                    for event in &events {
                        self.cache.apply(event)?;
                    }
                }
                Polled::Ops(ops) => {
                    for op in ops {
                        if !self.ops_open.remove(&op.op_id) {
                            let id = op.op_id;
                            return Err(format!("op {id} ended, which was not open").into());
                        }
                        self.ops.insert(op.op_id, op);
                    }
                }
            }
            came = true;
        }
    }

    /// Reads until `done`; says what was waited for when nothing at all comes for too long.
    pub(crate) fn read_until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<(), Stop> {
        let mut last = Instant::now();
        while !done(self) {
            if self.pump(Duration::from_millis(5))? {
                last = Instant::now();
            }
            if last.elapsed() > self.patience {
                let open = self.ledger.open();
                let seconds = self.patience.as_secs();
                return Err(format!(
                    "{what} did not come within {seconds} s ({open} requests without their end, R9)"
                )
                .into());
            }
        }
        Ok(())
    }

    /// All requests end.
    pub(crate) fn finish_all(&mut self) -> Result<(), Stop> {
        self.read_until("the end of all requests", |session| session.ledger.open() == 0)
    }

    /// Reads until nothing comes any more: what was said too much is found here.
    pub(crate) fn settle(&mut self) -> Result<(), Stop> {
        let mut last = Instant::now();
        let begun = Instant::now();
        while last.elapsed() < QUIET && begun.elapsed() < self.patience {
            if self.pump(Duration::from_millis(5))? {
                last = Instant::now();
            }
        }
        Ok(())
    }

    /// One request from its beginning to its end.
    pub(crate) fn generate(&mut self, request: &Request) -> Result<Told, Stop> {
        self.submit(request)?;
        let id = request.id;
        self.read_until("a request's end", |session| session.ledger.has_ended(id))?;
        self.ledger.take(id).ok_or_else(|| Stop::Fault(format!("request {id} vanished")))
    }

    /// The same of a prompt, greedy, with so many output tokens.
    pub(crate) fn tell(&mut self, prompt: &[u32], tokens_max: u32) -> Result<Told, Stop> {
        let request = self.request(prompt.to_vec(), tokens_max);
        let told = self.generate(&request)?;
        if let Some(mainstay_engine_abi::sdk::Finish::Error { rc, message }) = &told.finish {
            return Err(format!("a sound request ended with error {rc}: {message}").into());
        }
        Ok(told)
    }

    /// Starts an operation and waits for its one end.
    pub(crate) fn operate(
        &mut self,
        what: &str,
        start: impl FnOnce(&Driver, u64) -> Result<(), EngineError>,
    ) -> Result<OpDone, Stop> {
        let op_id = self.id();
        self.ops_open.insert(op_id);
        if let Err(error) = start(&self.driver, op_id) {
            self.ops_open.remove(&op_id);
            return Err(format!("{what} was refused: {error}").into());
        }
        self.read_until(what, |session| session.ops.contains_key(&op_id))?;
        self.ops.remove(&op_id).ok_or_else(|| Stop::Fault(format!("{what} vanished")))
    }

    /// A pin on these blocks.
    pub(crate) fn pin(
        &mut self,
        pin_id: u128,
        blocks: &[u128],
        ttl_ms: u64,
    ) -> Result<OpDone, Stop> {
        let blocks = blocks.to_vec();
        self.operate("a pin's end", |driver, op_id| {
            driver.pin(&Pin { op_id, pin_id, blocks, ttl_ms, priority: 100 }, |_| {})
        })
    }

    /// A new picture of the cache in the model.
    pub(crate) fn snapshot(&mut self) -> Result<(), Stop> {
        let resets = self.cache.resets;
        let op = self.operate("a snapshot's end", Driver::kv_snapshot)?;
        if op.rc != 0 {
            return Err(format!("a snapshot ended with {}", op.rc).into());
        }
        // The op's lane says nothing of the order among lanes.
        self.read_until("a snapshot's RESET", |session| session.cache.resets > resets)?;
        self.settle()
    }

    /// The blocks that hold a prompt which was just computed, first to last, by what the events said.
    pub(crate) fn blocks_of(&mut self, prompt: &[u32]) -> Result<Vec<u128>, Stop> {
        self.driver.needs(caps::KV_EVENTS, "KV_EVENTS")?;
        let before: HashSet<u128> = self.cache.held.keys().copied().collect();
        self.tell(prompt, 1)?;
        self.settle()?;
        let whole = prompt.len() / self.driver.info.block_tokens as usize;
        let new: Vec<u128> =
            self.cache.held.keys().filter(|block| !before.contains(*block)).copied().collect();
        let most = (prompt.len() + 1) / self.driver.info.block_tokens as usize;
        if new.len() > most {
            let told = new.len();
            return Err(
                format!("{told} blocks were STORED where {most} can have been computed").into()
            );
        }
        let deepest = new.iter().map(|block| self.cache.chain_to(*block)).max_by_key(Vec::len);
        let chain = deepest.unwrap_or_default();
        if chain.len() < whole {
            let told = chain.len();
            return Err(format!("{whole} blocks were computed, STORED names {told}").into());
        }
        Ok(chain[..whole].to_vec())
    }

    /// Prompts that fill the cache `times` over; not offered where that is too much for a test.
    pub(crate) fn flood(&mut self, times: u64) -> Result<(), Stop> {
        const FLOOD_TOKENS_MAX: u64 = 1 << 19;
        let info = self.driver.info.clone();
        let tokens = info.blocks_total * u64::from(info.block_tokens) * times;
        if info.blocks_total == 0 || tokens > FLOOD_TOKENS_MAX {
            return Err(Stop::NotOffered(format!(
                "{tokens} tokens to fill its {} blocks; configure fewer blocks to have this checked",
                info.blocks_total
            )));
        }
        let each = self.blocks_of_a_prompt();
        let mut blocks = 0;
        while blocks < info.blocks_total * times {
            let prompt = self.prompt_of_blocks(each);
            let request = self.request(prompt, 1);
            self.submit(&request)?;
            blocks += each as u64;
        }
        self.finish_all()?;
        self.settle()
    }
}
