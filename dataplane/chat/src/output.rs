//! Generated text, cut into thinking, visible text and tool calls while it streams.
//!
//! Models write markup (`<think>…</think>`, `<tool_call>{…}</tool_call>` and what other
//! [families](crate::family) write) into one text; clients want typed pieces. The parser never
//! shows half a tag: a tail that could still become one is held back. How the text is split into deltas makes no difference to
//! the result. Tool calls come out whole, once their JSON is known to be complete and well
//! formed; anything malformed comes out as the text it is, so that nothing is lost and nothing
//! invented. Stop strings are looked for in visible text only, not in thinking or calls.
//!
//! Newlines right beside a tag belong to the markup, not to the answer, and are dropped, because
//! templates put them there and would double them on the next turn.

mod calls;
mod stop;

use std::collections::VecDeque;

use crate::family::{Family, Markup, Scan, Section, ToolTypes};
use crate::limits::{CHANNEL_HEADER_BYTES_MAX, HELD_NEWLINES_MAX, TOOL_CALLS_MAX};
use stop::StopMatcher;

/// A typed piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputEvent {
    /// More reasoning.
    Thinking(String),
    /// More visible text.
    Text {
        /// The text.
        delta: String,
        /// Log probabilities of the tokens that ended in it, if they were given.
        logprobs: Vec<TokenLogprob>,
    },
    /// A tool call begins.
    ToolCallStart {
        /// Counts the calls of this answer from 0.
        index: u32,
        /// The tool's name.
        name: String,
    },
    /// More of the call's arguments: JSON text, an object once joined.
    ToolCallArguments(String),
    /// The call is complete.
    ToolCallEnd,
}

impl OutputEvent {
    /// A text piece without log probabilities.
    pub fn text(delta: impl Into<String>) -> OutputEvent {
        OutputEvent::Text { delta: delta.into(), logprobs: Vec::new() }
    }
}

/// The log probability of one generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token's text.
    pub token: String,
    /// Its log probability.
    pub logprob: f64,
    /// The likeliest tokens at this place with theirs.
    pub top: Vec<(String, f64)>,
}

/// What the parser looks for. [`Request::output_options`](crate::Request::output_options) makes
/// it.
#[derive(Clone, Debug, Default)]
pub struct OutputOptions {
    /// How the model writes thoughts and calls.
    pub family: Family,
    /// Which parameters are texts, for families that do not say.
    pub types: ToolTypes,
    /// Take `<think>` as markup.
    pub parse_thinking: bool,
    /// The prompt ended in `<think>`: the text begins with thinking.
    pub thinking_open: bool,
    /// Take `<tool_call>` as markup.
    pub parse_tools: bool,
    /// Texts that end the answer.
    pub stop: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Text,
    Thinking,
    Call,
    /// Within the header of a message on a channel.
    Header,
    Stopped,
}

/// What a tag stands for.
#[derive(Clone, Copy, Debug)]
enum Tag {
    Think,
    ThinkEnd,
    Call(&'static Section),
    /// Around calls; says nothing by itself.
    Skipped,
    Header,
}

/// Cuts a growing text into [`OutputEvent`]s.
#[derive(Debug)]
pub struct OutputParser {
    options: OutputOptions,
    markup: &'static Markup,
    /// What tags begin with, and the newline.
    starts: Vec<char>,
    mode: Mode,
    /// How the call that is being collected is written.
    section: &'static Section,
    /// Where it ends, if it is a value in brackets.
    scan: Scan,
    /// The tag that opened the current header.
    header_open: &'static str,
    /// The tool that the last header named.
    recipient: String,
    /// Text not yet decided on: a possible tag's beginning, or a call being collected.
    pending: String,
    /// Newlines seen but not shown, until it is known whether a tag follows them.
    held_newlines: usize,
    /// Right after a tag: newlines are dropped.
    after_tag: bool,
    /// No visible text since the start or the last tag: only here may thinking begin.
    fresh: bool,
    /// Where the search for the end of a call goes on.
    call_scanned: usize,
    /// End tags met inside the strings of the current call.
    call_ends: u32,
    calls: u32,
    stop: StopMatcher,
    /// Bytes pushed so far.
    pushed: usize,
    /// Bytes of them whose meaning is known.
    decided: usize,
    /// Tokens whose text is not shown yet, with the byte they end at.
    logprobs: VecDeque<(usize, TokenLogprob)>,
    events: Vec<OutputEvent>,
}

impl OutputParser {
    /// A parser at the start of an answer.
    pub fn new(options: OutputOptions) -> OutputParser {
        let mode = if options.thinking_open { Mode::Thinking } else { Mode::Text };
        let markup = options.family.markup();
        OutputParser {
            markup,
            starts: starts(markup, options.family),
            mode,
            section: &markup.sections[0],
            scan: Scan::default(),
            header_open: "",
            recipient: String::new(),
            pending: String::new(),
            held_newlines: 0,
            after_tag: options.thinking_open,
            fresh: true,
            call_scanned: 0,
            call_ends: 0,
            calls: 0,
            stop: StopMatcher::new(&options.stop),
            pushed: 0,
            decided: 0,
            logprobs: VecDeque::new(),
            events: Vec::new(),
            options,
        }
    }

    /// Takes more generated text.
    pub fn push(&mut self, text: &str) -> Vec<OutputEvent> {
        if self.mode != Mode::Stopped {
            self.pushed += text.len();
            self.pending.push_str(text);
            self.advance();
        }
        std::mem::take(&mut self.events)
    }

    /// Takes the text of one token, with its log probability.
    pub fn push_token(&mut self, text: &str, logprob: TokenLogprob) -> Vec<OutputEvent> {
        if self.mode != Mode::Stopped {
            self.logprobs.push_back((self.pushed + text.len(), logprob));
        }
        self.push(text)
    }

    /// Ends the text: what was held back comes out.
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        let rest = std::mem::take(&mut self.pending);
        self.decided = self.pushed;
        match self.mode {
            Mode::Call => self.close_call_at_end(&rest),
            Mode::Header => self.header_is_text(&rest),
            Mode::Text | Mode::Thinking => {
                self.release_newlines();
                self.show(&rest);
            }
            Mode::Stopped => {}
        }
        self.flush_stop();
        std::mem::take(&mut self.events)
    }

    /// The stop string that ended the answer, if one did. Nothing comes out after it.
    pub fn stopped(&self) -> Option<&str> {
        self.stop.matched()
    }

    /// Whether the text so far ends inside a thought.
    pub fn is_thinking(&self) -> bool {
        self.mode == Mode::Thinking
    }

    /// How many tool calls came out so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    fn advance(&mut self) {
        let mut work = std::mem::take(&mut self.pending);
        let mut at = 0;
        while at < work.len() && self.mode != Mode::Stopped {
            let step = match self.mode {
                Mode::Call => self.step_call(&work[at..]),
                Mode::Header => self.step_header(&work[at..]),
                _ => self.step_markup(&work[at..]),
            };
            match step {
                Some(consumed) => at += consumed,
                None => break,
            }
        }
        if self.mode == Mode::Stopped {
            work.clear();
            self.logprobs.clear();
        } else {
            work.drain(..at);
        }
        self.pending = work;
    }

    /// Consumes plain text, a newline or a tag in text or thinking; `None` to wait for more.
    fn step_markup(&mut self, rest: &str) -> Option<usize> {
        let plain = rest.find(self.starts.as_slice()).unwrap_or(rest.len());
        if plain > 0 {
            self.decided += plain;
            self.release_newlines();
            self.show(&rest[..plain]);
            return Some(plain);
        }
        if rest.starts_with('\n') {
            self.decided += 1;
            if !self.after_tag {
                self.held_newlines += 1;
                if self.held_newlines > HELD_NEWLINES_MAX {
                    self.release_newlines();
                }
            }
            return Some(1);
        }
        if self.parts_calls(rest) {
            self.decided += 1;
            return Some(1);
        }
        let mut may_become = false;
        for (text, tag) in self.tags() {
            if rest.starts_with(text) {
                return Some(self.enter(text, tag));
            }
            may_become |= text.starts_with(rest);
        }
        if may_become {
            return None;
        }
        let first = rest.chars().next().map_or(0, char::len_utf8);
        self.decided += first;
        self.release_newlines();
        self.show(&rest[..first]);
        Some(first)
    }

    /// Llama puts `;` between calls.
    fn parts_calls(&self, rest: &str) -> bool {
        let between = self.after_tag && self.fresh && self.calls > 0;
        self.options.family == Family::Llama3Json && between && rest.starts_with([';', ' '])
    }

    /// The tags that count at this place.
    fn tags(&self) -> Vec<(&'static str, Tag)> {
        let markup = self.markup;
        let opens = markup.headers.iter().flat_map(|headers| headers.opens);
        let headers = opens.map(|open| (*open, Tag::Header));
        if self.mode == Mode::Thinking {
            return std::iter::once((markup.think_end, Tag::ThinkEnd)).chain(headers).collect();
        }
        let mut tags: Vec<_> = headers.collect();
        if self.options.parse_thinking && self.fresh && markup.headers.is_none() {
            tags.push((markup.think, Tag::Think));
        }
        if self.options.parse_tools && self.calls < TOOL_CALLS_MAX {
            let here =
                |section: &&Section| !section.open.is_empty() && (self.fresh || !section.bare);
            let sections = markup.sections.iter().filter(here);
            tags.extend(sections.map(|section| (section.open, Tag::Call(section))));
        }
        if self.options.parse_tools || markup.headers.is_some() {
            tags.extend(markup.skipped.iter().map(|skipped| (*skipped, Tag::Skipped)));
        }
        tags
    }

    /// Goes where a tag leads; answers with how much of it is consumed.
    fn enter(&mut self, text: &'static str, tag: Tag) -> usize {
        // Text before a tag is over: no stop string reaches across markup.
        self.flush_stop();
        let consumed =
            if matches!(tag, Tag::Call(section) if section.bare) { 0 } else { text.len() };
        self.decided += consumed;
        self.discard_logprobs();
        if !matches!(tag, Tag::Call(_)) {
            self.held_newlines = 0;
        }
        self.after_tag = true;
        self.fresh = true;
        self.mode = match tag {
            Tag::Think => Mode::Thinking,
            Tag::ThinkEnd | Tag::Skipped => Mode::Text,
            Tag::Call(section) => {
                self.begin_call(section);
                Mode::Call
            }
            Tag::Header => {
                self.header_open = text;
                Mode::Header
            }
        };
        consumed
    }

    /// Reads a header: the channel of the message that follows, and the tool it is for.
    fn step_header(&mut self, rest: &str) -> Option<usize> {
        let Some(end) = self.markup.headers.as_ref().map(|headers| headers.end) else {
            self.mode = Mode::Text;
            return Some(0);
        };
        let Some(at) = rest.find(end).filter(|at| *at <= CHANNEL_HEADER_BYTES_MAX) else {
            if rest.len() <= CHANNEL_HEADER_BYTES_MAX + end.len() {
                return None;
            }
            self.header_is_text("");
            return Some(0);
        };
        self.decided += at + end.len();
        self.discard_logprobs();
        let header = &rest[..at];
        let channel = header.rsplit("<|channel|>").next().unwrap_or_default().trim_start();
        let to = header.split_once("to=").map_or("", |(_, to)| to);
        let to = to.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or_default();
        self.mode = match to.strip_prefix("functions.") {
            Some(name) if self.options.parse_tools && self.calls < TOOL_CALLS_MAX => {
                self.recipient = name.to_owned();
                self.begin_call(&self.markup.sections[0]);
                Mode::Call
            }
            _ if channel.starts_with("analysis") && self.options.parse_thinking => Mode::Thinking,
            _ => Mode::Text,
        };
        Some(at + end.len())
    }

    /// What looked like a header is text after all.
    fn header_is_text(&mut self, header: &str) {
        self.mode = Mode::Text;
        self.show(self.header_open);
        self.show(header);
    }

    fn release_newlines(&mut self) {
        let newlines = "\n".repeat(std::mem::take(&mut self.held_newlines));
        self.show(&newlines);
    }

    fn show(&mut self, text: &str) {
        if text.is_empty() || self.mode == Mode::Stopped {
            return;
        }
        self.after_tag = false;
        if self.mode == Mode::Thinking {
            self.discard_logprobs();
            self.emit_thinking(text);
            return;
        }
        self.fresh = false;
        let shown = self.stop.push(text);
        if self.stop.matched().is_some() {
            self.mode = Mode::Stopped;
        }
        self.emit_text(shown);
    }

    fn flush_stop(&mut self) {
        let held = self.stop.flush();
        self.emit_text(held);
    }

    fn emit_text(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        let due = self.logprobs.iter().take_while(|(end, _)| *end <= self.decided).count();
        let tokens = self.logprobs.drain(..due).map(|(_, token)| token);
        if let Some(OutputEvent::Text { delta, logprobs }) = self.events.last_mut() {
            delta.push_str(&text);
            logprobs.extend(tokens);
        } else {
            let logprobs = tokens.collect();
            self.events.push(OutputEvent::Text { delta: text, logprobs });
        }
    }

    fn emit_thinking(&mut self, text: &str) {
        if let Some(OutputEvent::Thinking(delta)) = self.events.last_mut() {
            delta.push_str(text);
        } else {
            self.events.push(OutputEvent::Thinking(text.to_owned()));
        }
    }

    /// Forgets tokens that ended in markup, thinking or a call: only visible text reports them.
    fn discard_logprobs(&mut self) {
        let gone = self.logprobs.iter().take_while(|(end, _)| *end <= self.decided).count();
        self.logprobs.drain(..gone);
    }
}

/// What text has to be looked at: the first characters of all tags, and newlines.
fn starts(markup: &Markup, family: Family) -> Vec<char> {
    let headers = markup.headers.iter().flat_map(|headers| headers.opens);
    let sections = markup.sections.iter().map(|section| &section.open);
    let tags = [&markup.think, &markup.think_end].into_iter();
    let tags = tags.chain(sections).chain(markup.skipped).chain(headers);
    let mut starts: Vec<char> = tags.filter_map(|tag| tag.chars().next()).collect();
    starts.push('\n');
    if family == Family::Llama3Json {
        starts.extend([';', ' ']);
    }
    starts.sort_unstable();
    starts.dedup();
    starts
}

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod tests;
