//! Templates rendered part by part, where only parts that would render something new are run.
//!
//! A turn repeats almost all of the turn before. What a part rendered is kept with all that it read, beside the
//! message where it is the body of a loop over messages, and if it would read the same again its text is taken and
//! what it did to variables is done again. The text must be the one that the template renders as a whole: that is
//! compared when a template is loaded and for a sample of prompts, and a template that was found to differ is never
//! rendered in parts again. So is whatever goes wrong in a part: the whole says how it ends.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::{Environment, Value};

use super::guarded;
use super::hf::Dict;
use super::scope::{List, Names, Read, Scope, Weight, Writes, rest};
use super::split::{REST, Source, plan};
use crate::limits::{PROMPT_BYTES_MAX, TEMPLATE_STEPS_MAX};

/// Most renderings of a part outside of loops that are kept.
const KEPT_MAX: usize = 128;
/// How much of one part is kept.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// The most that one rendering may take: its text, what it read and what it wrote.
const KEPT_ONE_BYTES_MAX: usize = 256 << 10;
/// Most renderings that are kept beside one message.
const KEPT_BESIDE_MAX: usize = 6;
/// Most of them that are of one part: as the last message, and as one that others follow.
const KEPT_VARIANTS_MAX: usize = 2;
/// How much more than their messages have room for may be kept beside all messages together: some templates print
/// tools with a message.
const LARGE_BYTES_MAX: usize = 32 << 20;
/// One in so many prompts is rendered as a whole as well, and compared.
const COMPARED_EVERY: u64 = 1024;

/// What a part rendered, and what of.
#[derive(Debug)]
pub(super) struct Kept {
    part: usize,
    /// Whose prompt it was rendered for; nobody else's finds it.
    asker: u64,
    reads: Vec<Read>,
    text: Arc<str>,
    writes: Writes,
    steps: u64,
    /// What it takes, in all.
    bytes: usize,
    /// How much of that is in its message's room.
    roomed: usize,
    /// Its part of what there is for all that messages have no room for.
    _large: Option<Large>,
    /// Its share of long texts beside messages, which others may hold as well.
    long: Vec<Arc<Long>>,
}

/// A long text that parts beside messages read or wrote. It is held here so that its address can't become another's.
#[derive(Debug)]
struct Long {
    text: Value,
    _large: Large,
}

impl Long {
    fn address(text: &Value) -> usize {
        text.as_str().map_or(0, |text| text.as_ptr().addr())
    }
}

/// A claim on memory that all messages share.
#[derive(Debug)]
struct Large {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Large {
    fn claim(all: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let before = all.fetch_add(bytes, Relaxed);
        // What does not fit is given back at once, as this goes out of scope.
        let claim = Self { bytes, all: Arc::clone(all) };
        (before + bytes <= LARGE_BYTES_MAX).then_some(claim)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
    }
}

/// What was rendered beside a message.
#[derive(Debug, Default)]
pub(super) struct Beside(Mutex<Vec<Arc<Kept>>>);

#[derive(Debug)]
enum Part {
    Once { template: String, kept: Mutex<VecDeque<Arc<Kept>>> },
    Each { template: String, list: usize, item: usize },
}

/// How many prompts and parts of prompts were rendered in which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PartCounts {
    /// Whether the template is rendered in parts at all.
    pub in_parts: bool,
    /// Prompts that were rendered in parts.
    pub prompts: u64,
    /// Parts whose text was known.
    pub known: u64,
    /// Parts that were run.
    pub run: u64,
    /// Prompts that were compared with the whole.
    pub compared: u64,
    /// Prompts that differed from it; the first one ends rendering in parts.
    pub differed: u64,
}

/// A template in parts.
#[derive(Debug)]
pub(super) struct Parts {
    parts: Vec<Part>,
    names: Arc<Names>,
    macros: BTreeSet<String>,
    /// A namespace, to know others by.
    sample: Value,
    large: Arc<AtomicUsize>,
    off: AtomicBool,
    prompts: AtomicU64,
    known: AtomicU64,
    run: AtomicU64,
    /// How much all prompts cost, or would have.
    steps: AtomicU64,
    compared: AtomicU64,
    differed: AtomicU64,
}

/// A rendering on its way.
struct Rendering<'p> {
    parts: &'p Parts,
    asker: u64,
    environment: &'p Environment<'static>,
    scope: Arc<Scope>,
    root: Value,
    texts: Vec<Arc<str>>,
    bytes: usize,
    steps: u64,
    known: u64,
    run: u64,
    /// The long texts that are paid for, by address.
    long: HashMap<usize, Arc<Long>>,
}

/// What running a part gave.
struct Ran {
    text: Arc<str>,
    steps: u64,
    /// What it read, if it would render the same for the same.
    reads: Option<Vec<Read>>,
    writes: Writes,
}

impl Parts {
    /// Cuts a template, and adds what it was cut into to its environment; nothing if it can't be rendered in parts.
    pub(super) fn new(environment: &mut Environment<'static>, source: &str) -> Option<Self> {
        let plan = plan(source)?;
        let names = Arc::new(Names::new(plan.names));
        environment.add_filter(REST, rest);
        let mut parts = Vec::with_capacity(plan.parts.len());
        for (number, part) in plan.parts.into_iter().enumerate() {
            let template = format!("part_{number}");
            let (source, part) = match part {
                Source::Once(source) => {
                    (source, Part::Once { template: template.clone(), kept: Mutex::default() })
                }
                Source::Each { list, item, body } => {
                    let (list, item) = (names.find(&list)?, names.find(&item)?);
                    (body, Part::Each { template: template.clone(), list, item })
                }
            };
            environment.add_template_owned(template, source).ok()?;
            parts.push(part);
        }
        Some(Self {
            parts,
            names,
            macros: plan.macros,
            sample: minijinja::functions::namespace(None).ok()?,
            large: Arc::default(),
            off: AtomicBool::new(false),
            prompts: AtomicU64::new(0),
            known: AtomicU64::new(0),
            run: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            compared: AtomicU64::new(0),
            differed: AtomicU64::new(0),
        })
    }

    /// The prompt's pieces; nothing if it must be rendered as a whole.
    pub(super) fn render(
        &self,
        environment: &Environment<'static>,
        context: &[(&'static str, Value)],
        asker: u64,
    ) -> Option<Vec<Arc<str>>> {
        if self.off.load(Relaxed) {
            return None;
        }
        let scope = Arc::new(Scope::new(Arc::clone(&self.names)));
        for (name, value) in context {
            scope.define(name, value.clone());
        }
        let root = Value::from_dyn_object(Arc::clone(&scope));
        let mut rendering = Rendering {
            parts: self,
            asker,
            environment,
            scope,
            root,
            texts: Vec::new(),
            bytes: 0,
            steps: 0,
            known: 0,
            run: 0,
            long: HashMap::new(),
        };
        for (number, part) in self.parts.iter().enumerate() {
            match part {
                Part::Once { template, kept } => rendering.once(number, template, kept)?,
                Part::Each { template, list, item } => {
                    let list = rendering.scope.list(*list)?;
                    rendering.each(number, template, &list, *item)?;
                }
            }
        }
        self.prompts.fetch_add(1, Relaxed);
        self.known.fetch_add(rendering.known, Relaxed);
        self.run.fetch_add(rendering.run, Relaxed);
        self.steps.fetch_add(rendering.steps, Relaxed);
        Some(rendering.texts)
    }

    /// Whether this prompt is one of those to compare.
    pub(super) fn is_sample(&self) -> bool {
        cfg!(debug_assertions) || self.prompts.load(Relaxed).is_multiple_of(COMPARED_EVERY)
    }

    /// Notes the outcome of a comparison; a template that differs is rendered as a whole from then on.
    pub(super) fn compared(&self, same: bool) {
        self.compared.fetch_add(1, Relaxed);
        if !same {
            self.differed.fetch_add(1, Relaxed);
            self.off.store(true, Relaxed);
        }
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// What is kept outside of loops.
    #[cfg(test)]
    fn kept_bytes(&self) -> usize {
        let bytes = |part: &Part| match part {
            Part::Once { kept, .. } => kept.lock().unwrap().iter().map(|kept| kept.bytes).sum(),
            Part::Each { .. } => 0,
        };
        self.parts.iter().map(bytes).sum()
    }

    pub(super) fn counts(&self) -> PartCounts {
        PartCounts {
            in_parts: !self.off.load(Relaxed),
            prompts: self.prompts.load(Relaxed),
            known: self.known.load(Relaxed),
            run: self.run.load(Relaxed),
            compared: self.compared.load(Relaxed),
            differed: self.differed.load(Relaxed),
        }
    }
}

impl Rendering<'_> {
    fn once(
        &mut self,
        number: usize,
        template: &str,
        kept: &Mutex<VecDeque<Arc<Kept>>>,
    ) -> Option<()> {
        let known = {
            let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = kept.iter().filter(|kept| kept.asker == self.asker);
            mine.cloned().collect::<Vec<_>>()
        };
        // What they read is compared while others may go on.
        let known = known.into_iter().find(|known| self.scope.holds(&known.reads, None));
        if let Some(known) = known {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|kept| Arc::ptr_eq(kept, &known))
                && let Some(known) = kept.remove(at)
            {
                kept.push_front(known);
            }
            drop(kept);
            return self.take(&known);
        }
        self.scope.begin(None);
        let ran = self.run(template, true)?;
        self.push(Arc::clone(&ran.text), ran.steps)?;
        let new = ran.kept(number, self.asker);
        if let Some((new, _)) = new.filter(|(new, _)| new.bytes <= KEPT_ONE_BYTES_MAX) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_front(Arc::new(new));
            let mut bytes = 0;
            let room = kept.iter().take(KEPT_MAX).take_while(|kept| {
                bytes += kept.bytes;
                bytes <= KEPT_BYTES_MAX
            });
            let room = room.count();
            let forgotten = kept.split_off(room);
            drop(kept);
            drop(forgotten);
        }
        Some(())
    }

    fn each(&mut self, number: usize, template: &str, list: &Arc<List>, item: usize) -> Option<()> {
        for index in 0..list.items().len() {
            let message = list.items()[index].downcast_object_ref::<Dict>()?;
            let beside = message.beside.as_ref();
            let known = beside.and_then(|beside| {
                let kept = beside.0.lock().unwrap_or_else(PoisonError::into_inner);
                let holds =
                    |kept: &&Arc<Kept>| self.scope.holds(&kept.reads, Some((&**list, index)));
                let mine = |kept: &&Arc<Kept>| kept.part == number && kept.asker == self.asker;
                kept.iter().filter(mine).find(holds).cloned()
            });
            if let Some(known) = known {
                self.take(&known)?;
                continue;
            }
            self.scope.begin(Some((item, list, index)));
            let ran = self.run(template, false)?;
            self.push(Arc::clone(&ran.text), ran.steps)?;
            let Some(beside) = beside else { continue };
            let Some((mut new, weight)) = ran.kept(number, self.asker) else { continue };
            // The text is as long as the message, which has room for it.
            if new.bytes - new.text.len() > KEPT_ONE_BYTES_MAX {
                continue;
            }
            let shares = weight.long.iter().map(|text| self.share(text));
            let Some(long) = shares.collect::<Option<Vec<_>>>() else { continue };
            let all_long: usize = long.iter().map(|long| long._large.bytes).sum();
            new.bytes = new.bytes.saturating_sub(all_long);
            new.long = long;
            beside.keep(new, message.room, &self.parts.large);
        }
        Some(())
    }

    /// A share of a long text; nothing if there is no room for it.
    fn share(&mut self, text: &Value) -> Option<Arc<Long>> {
        let address = Long::address(text);
        if let Some(known) = self.long.get(&address) {
            return Some(Arc::clone(known));
        }
        let large = Large::claim(&self.parts.large, text.as_str()?.len())?;
        let long = Arc::new(Long { text: text.clone(), _large: large });
        self.long.insert(address, Arc::clone(&long));
        Some(long)
    }

    fn take(&mut self, known: &Kept) -> Option<()> {
        self.known += 1;
        for long in &known.long {
            self.long.entry(Long::address(&long.text)).or_insert_with(|| Arc::clone(long));
        }
        self.scope.apply(&known.writes)?;
        self.push(Arc::clone(&known.text), known.steps)
    }

    fn run(&mut self, template: &str, exports: bool) -> Option<Ran> {
        self.run += 1;
        guarded(|| self.run_unguarded(template, exports)).flatten()
    }

    fn run_unguarded(&self, template: &str, exports: bool) -> Option<Ran> {
        let template = self.environment.get_template(template).ok()?;
        let mut out = Room { bytes: Vec::new(), left: PROMPT_BYTES_MAX - self.bytes };
        let captured = template.render_captured_to(self.root.clone(), &mut out).ok()?;
        let state = captured.state();
        let steps = state.fuel_levels().map_or(0, |(used, _)| used);
        let mut exported = Vec::new();
        let mut repeatable = true;
        if exports {
            let is_macro = |name: &str| self.parts.macros.contains(name);
            repeatable = self.scope.export(state, is_macro, &self.parts.sample, &mut exported)?;
        }
        let (reads, mut writes) = self.scope.end()?;
        writes.retain(|(name, _)| !exported.iter().any(|(other, _)| other == name));
        writes.extend(exported);
        let text = String::from_utf8(out.bytes).ok()?;
        Some(Ran { text: text.into(), steps, reads: reads.filter(|_| repeatable), writes })
    }

    /// Adds to the prompt. What comes near a limit is left to the whole, which knows how to end.
    fn push(&mut self, text: Arc<str>, steps: u64) -> Option<()> {
        self.steps += steps;
        self.bytes += text.len();
        if !text.is_empty() {
            self.texts.push(text);
        }
        (self.steps <= TEMPLATE_STEPS_MAX / 2 && self.bytes <= PROMPT_BYTES_MAX).then_some(())
    }
}

impl Ran {
    /// What is to be kept of it, and what that weighs; nothing if it would not come again.
    fn kept(self, part: usize, asker: u64) -> Option<(Kept, Weight)> {
        let Ran { text, steps, reads, writes } = self;
        let reads = reads?;
        let mut weight = Weight { bytes: size_of::<Kept>() + text.len(), long: Vec::new() };
        reads.iter().for_each(|read| read.weigh(&mut weight));
        writes.iter().for_each(|(_, write)| write.weigh(&mut weight));
        weight.long.sort_by_key(Long::address);
        weight.long.dedup_by_key(|text| Long::address(text));
        let long = weight.long.iter().filter_map(Value::as_str).map(str::len).sum::<usize>();
        let bytes = weight.bytes + long;
        let kept = Kept {
            part,
            asker,
            reads,
            text,
            writes,
            steps,
            bytes,
            roomed: 0,
            _large: None,
            long: Vec::new(),
        };
        Some((kept, weight))
    }
}

impl Beside {
    /// Keeps what a message has room for, or what all messages have room for together.
    fn keep(&self, mut new: Kept, room: usize, all: &Arc<AtomicUsize>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let variants = kept.iter().filter(|other| other.part == new.part).count();
        if variants >= KEPT_VARIANTS_MAX
            && let Some(oldest) = kept.iter().position(|other| other.part == new.part)
        {
            kept.remove(oldest);
        }
        if kept.len() >= KEPT_BESIDE_MAX {
            return;
        }
        let left = room.saturating_sub(kept.iter().map(|kept| kept.roomed).sum());
        new.roomed = new.bytes.min(left);
        let more = new.bytes - new.roomed;
        if more > 0 {
            // A rendering for which there is no room is not kept.
            let large = Some(more).filter(|more| *more <= KEPT_ONE_BYTES_MAX);
            new._large = large.and_then(|more| Large::claim(all, more));
            if new._large.is_none() {
                return;
            }
        }
        kept.push(Arc::new(new));
    }
}

/// Collects a part's text, as much as a prompt has room for.
struct Room {
    bytes: Vec<u8>,
    left: usize,
}

impl io::Write for &mut Room {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if chunk.len() > self.left {
            return Err(io::Error::other("the prompt is too long"));
        }
        self.left -= chunk.len();
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
