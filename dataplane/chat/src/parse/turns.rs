//! A history read item by item, with notes of how far the conversation had come after each.
//!
//! The notes are what a later body with the same items goes on from. An item may do more than add to a message: it
//! adds to the system prompt, refers to a deferred tool, leaves something to be said to the client. All that is noted
//! and comes again in the same order; behind an item that does anything else nothing is noted.

use std::mem;
use std::sync::Arc;

use serde_json::Value;

use super::json::{Node, Path};
use super::split::{Items, Split};
use crate::error::{ApiError, ErrorKind};
use crate::ir::{Block, Message, Tool, value_bytes, weight};
use crate::limits::{MESSAGES_MAX, TOOLS_MAX, WARNINGS_MAX};
use crate::request::{Request, Told, push_warning};

/// A message without its blocks, with its place in a list.
pub(super) const MESSAGE_BYTES: usize = 64;

/// A text in a list, beside what it says.
const TEXT_BYTES: usize = 48;

/// How far a conversation had come after an item.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// Where in the body the item ends.
    pub(super) end: usize,
    messages: usize,
    /// Blocks of the last message.
    blocks: usize,
    /// Blocks of the system prompt that came as items.
    system: usize,
    warnings: usize,
    told: usize,
    referenced: usize,
    /// What all messages so far take in memory, roughly.
    pub(super) bytes: usize,
}

/// A tool's namespace, its name for the client and its name for the model, where these are two names.
type Renamed = (Option<String>, String, String);

/// What was made of a history, as far as it may come again.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pub(super) marks: Vec<Mark>,
    pub(super) messages: Vec<Arc<Message>>,
    system: Arc<Vec<Block>>,
    warnings: Vec<String>,
    told: Vec<Told>,
    referenced: Vec<String>,
    /// Calls are read by the names that their tools have.
    renamed: Vec<Renamed>,
}

impl Turns {
    /// Forgets what lies behind the last item that may come again, which is told.
    pub(super) fn seal(&mut self) -> Option<Mark> {
        let last = *self.marks.last()?;
        self.told.truncate(last.told);
        Some(last)
    }

    /// Roughly what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let last = self.marks.last().map_or(0, |mark| mark.bytes);
        let texts = self.warnings.iter().chain(&self.referenced);
        let texts: usize = texts.map(|text| text.len() + TEXT_BYTES).sum();
        let marks = self.marks.capacity() * size_of::<Mark>();
        let told = self.told.capacity() * size_of::<Told>();
        let renamed = self.renamed.iter().map(|(namespace, told_name, name)| {
            let texts = namespace.as_ref().map_or(0, String::len) + told_name.len() + name.len();
            texts + 2 * size_of::<Renamed>()
        });
        last + weight(&self.system) + texts + marks + told + renamed.sum::<usize>()
    }
}

/// A list of tools as a Responses body has it.
#[derive(Debug)]
pub(super) struct Offered {
    tools: Arc<Vec<Tool>>,
    /// As they are repeated.
    pub(super) echoed: Arc<Vec<Value>>,
    warnings: Vec<String>,
    told: Vec<Told>,
    /// Roughly what it takes in memory.
    pub(super) bytes: usize,
}

impl Offered {
    /// Puts the tools into a request that has none, with all that is to be said of them.
    pub(super) fn apply(&self, request: &mut Request) {
        request.conversation.tools = Arc::clone(&self.tools);
        self.say(request);
    }

    fn say(&self, request: &mut Request) {
        for warning in &self.warnings {
            push_warning(&mut request.warnings, warning.clone());
        }
        for told in &self.told {
            request.tell_times(told.what, told.count);
        }
    }

    /// Reads tools by `add`, apart from what a request had to say before.
    pub(super) fn read(
        request: &mut Request,
        add: impl FnOnce(&mut Request) -> Result<Arc<Vec<Value>>, ApiError>,
    ) -> Result<Offered, ApiError> {
        let warnings = mem::take(&mut request.warnings);
        let told = mem::take(&mut request.told);
        let echoed = add(request)?;
        let tools = Arc::clone(&request.conversation.tools);
        let of_echoed: usize = echoed.iter().map(value_bytes).sum();
        let bytes = of_echoed + tools.iter().map(Tool::bytes).sum::<usize>();
        let warnings = mem::replace(&mut request.warnings, warnings);
        let told = mem::replace(&mut request.told, told);
        let of_warnings = warnings.iter().map(|text| text.len() + TEXT_BYTES).sum::<usize>();
        let bytes = bytes + of_warnings + told.capacity() * size_of::<Told>();
        let offered = Offered { tools, echoed, warnings, told, bytes };
        offered.say(request);
        Ok(offered)
    }
}

/// What reading a body leaves to be remembered.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) turns: Turns,
    /// What `system` was read into, if nothing else came of it.
    pub(super) prompt: Option<Arc<Vec<Block>>>,
    /// What `tools` were read into, where they are not read apart.
    pub(super) offered: Option<Arc<Offered>>,
    /// The known body does not go with the rest of this one.
    pub(super) unfit: bool,
}

/// What a request had when its history began: items note what they add.
struct Before {
    warnings: Vec<String>,
    told: Vec<Told>,
    referenced: Vec<String>,
    system: usize,
    tools: Arc<Vec<Tool>>,
}

/// Reads the items of a history, which is `node` in a body that was read whole.
pub(super) fn read(
    body: &Split<'_>,
    node: &Node<'_>,
    request: &mut Request,
    notes: &mut Notes,
    add: impl Fn(&Node<'_>, &mut Request) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let Some(items) = &body.items else {
        for item in node.items(MESSAGES_MAX)? {
            add(&item, request)?;
        }
        return Ok(());
    };
    let before = Before {
        warnings: mem::take(&mut request.warnings),
        told: mem::take(&mut request.told),
        referenced: mem::take(&mut request.referenced_tools),
        system: request.conversation.system.len(),
        tools: Arc::clone(&request.conversation.tools),
    };
    notes.turns.renamed = renamed(&before.tools);
    resume(items, request, notes)?;
    let mut open = true;
    for ((at, value), end) in items.values.iter().enumerate().zip(&items.ends) {
        let path = Path::ROOT.member(items.name).item(items.shared + at);
        add(&Node { value, path }, request)?;
        notes.turns.told.append(&mut request.told);
        // Later items are read by the tools that this one brought. Which of its tools it adds depends on those that were
        // there before, also where it adds none.
        open = open
            && value.get("type").and_then(Value::as_str) != Some("additional_tools")
            && Arc::ptr_eq(&request.conversation.tools, &before.tools);
        if open {
            note(*end, request, &before, &mut notes.turns);
        }
    }
    keep(items, request, &before, &mut notes.turns);
    restore(before, request, notes)
}

/// How much a request has to say beside its conversation; `None` if it may be more than there is room for.
pub(super) fn said(request: &Request) -> Option<(usize, u64, usize)> {
    let told = request.told.iter().map(|told| u64::from(told.count)).sum();
    let room = request.warnings.len() < WARNINGS_MAX && request.referenced_tools.len() < TOOLS_MAX;
    room.then_some((request.warnings.len(), told, request.referenced_tools.len()))
}

fn renamed(tools: &[Tool]) -> Vec<Renamed> {
    let two = tools.iter().filter_map(|tool| {
        Some((tool.namespace.clone(), tool.client_name.clone()?, tool.name.clone()))
    });
    two.collect()
}

/// Puts the request where it was after the items that are known.
fn resume(items: &Items<'_>, request: &mut Request, notes: &mut Notes) -> Result<(), ApiError> {
    let Some(known) = items.known else { return Ok(()) };
    let turns = known.turns();
    let mark = items.shared.checked_sub(1).and_then(|last| turns.marks.get(last));
    let fits = turns.renamed == notes.turns.renamed && request.conversation.messages.is_empty();
    let Some(mark) = mark.filter(|_| fits) else {
        notes.unfit = true;
        return Err(out_of_step());
    };
    let conversation = &mut request.conversation;
    conversation.messages = up_to(mark, &turns.messages);
    conversation.system.extend(turns.system.iter().take(mark.system).cloned());
    request.warnings = turns.warnings.iter().take(mark.warnings).cloned().collect();
    request.referenced_tools = turns.referenced.iter().take(mark.referenced).cloned().collect();
    notes.turns.told = turns.told.iter().take(mark.told).copied().collect();
    notes.turns.marks = Vec::with_capacity(items.len());
    notes.turns.marks.extend(turns.marks.iter().take(items.shared));
    Ok(())
}

/// The messages up to a mark, without what later items joined to the last of them.
fn up_to(mark: &Mark, messages: &[Arc<Message>]) -> Vec<Arc<Message>> {
    let mut messages: Vec<_> = messages.iter().take(mark.messages).cloned().collect();
    if let Some(last) = messages.last_mut()
        && last.blocks.len() > mark.blocks
    {
        let blocks = last.blocks.iter().take(mark.blocks).cloned().collect();
        *last = Arc::new(Message { role: last.role, blocks });
    }
    messages
}

/// Whoever reads the body whole has the words for what is wrong; these are never seen.
fn out_of_step() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the body has to be read whole")
}

fn note(end: usize, request: &Request, before: &Before, turns: &mut Turns) {
    let messages = &request.conversation.messages;
    let last = turns.marks.last().copied().unwrap_or_default();
    let mut bytes = last.bytes;
    if let Some(joined) = last.messages.checked_sub(1).and_then(|at| messages.get(at)) {
        bytes += weight(joined.blocks.get(last.blocks..).unwrap_or_default());
    }
    for message in messages.iter().skip(last.messages) {
        bytes += MESSAGE_BYTES + weight(&message.blocks);
    }
    turns.marks.push(Mark {
        end,
        messages: messages.len(),
        blocks: messages.last().map_or(0, |message| message.blocks.len()),
        system: request.conversation.system.len() - before.system,
        warnings: request.warnings.len(),
        told: turns.told.len(),
        referenced: request.referenced_tools.len(),
        bytes,
    });
}

/// Takes over what the marks refer to.
fn keep(items: &Items<'_>, request: &Request, before: &Before, turns: &mut Turns) {
    let Some(last) = turns.marks.last() else { return };
    let conversation = &request.conversation;
    // What is not cut off would be held without being counted.
    turns.messages = up_to(last, &conversation.messages);
    turns.warnings = request.warnings.iter().take(last.warnings).cloned().collect();
    turns.referenced = request.referenced_tools.iter().take(last.referenced).cloned().collect();
    let own = conversation.system.get(before.system..).unwrap_or_default();
    // All of what the known body has comes from items that both have, or it is made anew.
    let same = items.known.map(|known| &known.turns().system);
    let resumed = items.shared.checked_sub(1).and_then(|at| turns.marks.get(at));
    turns.system = match same.filter(|system| {
        system.len() == last.system && resumed.is_some_and(|mark| mark.system == last.system)
    }) {
        Some(same) => Arc::clone(same),
        None => Arc::new(own.iter().take(last.system).cloned().collect()),
    };
}

/// Joins what the items had to say to what was said before them.
fn restore(before: Before, request: &mut Request, notes: &Notes) -> Result<(), ApiError> {
    let referenced = mem::replace(&mut request.referenced_tools, before.referenced);
    if referenced.len() >= TOOLS_MAX {
        // There may be others that this body alone had room for.
        return Err(out_of_step());
    }
    for name in referenced {
        request.refer_to(&name);
    }
    let warnings = mem::replace(&mut request.warnings, before.warnings);
    for warning in warnings {
        push_warning(&mut request.warnings, warning);
    }
    request.told = before.told;
    for told in &notes.turns.told {
        request.tell_times(told.what, told.count);
    }
    Ok(())
}
