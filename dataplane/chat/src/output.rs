//! Generated text, cut into thinking, visible text and tool calls while it streams.
//!
//! Models write markup (`<think>…</think>`, `<tool_call>{…}</tool_call>`, the Hermes and Qwen
//! form) into one text; clients want typed pieces. The parser never shows half a tag: a tail that
//! could still become one is held back. How the text is split into deltas makes no difference to
//! the result. Tool calls come out whole, once their JSON is known to be complete and well
//! formed; anything malformed comes out as the text it is, so that nothing is lost and nothing
//! invented. Stop strings are looked for in visible text only, not in thinking or calls.
//!
//! Newlines right beside a tag belong to the markup, not to the answer, and are dropped, because
//! templates put them there and would double them on the next turn.

mod call;
mod stop;

use std::collections::VecDeque;

use crate::limits::{HELD_NEWLINES_MAX, TOOL_CALL_BYTES_MAX, TOOL_CALLS_MAX};
use call::{Parsed, parse_call};
use stop::StopMatcher;

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
/// End tags within one call's strings before it counts as text: each costs a parse of the call.
const CALL_ENDS_MAX: u32 = 64;

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
    Stopped,
}

/// Cuts a growing text into [`OutputEvent`]s.
#[derive(Debug)]
pub struct OutputParser {
    options: OutputOptions,
    mode: Mode,
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
        OutputParser {
            mode,
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
        let plain = rest.find(['\n', '<']).unwrap_or(rest.len());
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
        let mut may_become = false;
        for tag in self.tags().into_iter().flatten() {
            if rest.starts_with(tag) {
                self.enter(tag);
                return Some(tag.len());
            }
            may_become |= tag.starts_with(rest);
        }
        if may_become {
            return None;
        }
        self.decided += 1;
        self.release_newlines();
        self.show("<");
        Some(1)
    }

    /// The tags that count at this place.
    fn tags(&self) -> [Option<&'static str>; 2] {
        if self.mode == Mode::Thinking {
            return [Some(THINK_END), None];
        }
        let think = self.options.parse_thinking && self.fresh;
        let call = self.options.parse_tools && self.calls < TOOL_CALLS_MAX;
        [think.then_some(THINK), call.then_some(CALL)]
    }

    fn enter(&mut self, tag: &str) {
        // Text before a tag is over: no stop string reaches across markup.
        self.flush_stop();
        self.decided += tag.len();
        self.discard_logprobs();
        if tag != CALL {
            self.held_newlines = 0;
        }
        self.after_tag = true;
        self.fresh = true;
        self.call_scanned = 0;
        self.call_ends = 0;
        self.mode = match tag {
            THINK => Mode::Thinking,
            CALL => Mode::Call,
            _ => Mode::Text,
        };
    }

    /// Looks for the end of a call in `body`, which starts right after the opening tag.
    fn step_call(&mut self, body: &str) -> Option<usize> {
        loop {
            let found = body[self.call_scanned..].find(CALL_END).map(|f| f + self.call_scanned);
            let searched = body.len().saturating_sub(CALL_END.len() - 1);
            let end = match found {
                Some(end) if end <= TOOL_CALL_BYTES_MAX && self.call_ends < CALL_ENDS_MAX => end,
                None if searched <= TOOL_CALL_BYTES_MAX => {
                    let mut from = searched.max(self.call_scanned);
                    while !body.is_char_boundary(from) {
                        from -= 1;
                    }
                    self.call_scanned = from;
                    return None;
                }
                _ => {
                    self.call_is_text("");
                    return Some(0);
                }
            };
            let consumed = end + CALL_END.len();
            match parse_call(&body[..end]) {
                Parsed::Call { name, arguments } => {
                    self.decided += consumed;
                    self.emit_call(name, arguments);
                }
                Parsed::Incomplete => {
                    // The end tag stands inside a string of the call: look for the next one.
                    self.call_scanned = consumed;
                    self.call_ends += 1;
                    continue;
                }
                Parsed::Malformed => {
                    self.decided += consumed;
                    self.call_is_text(&body[..consumed]);
                }
            }
            return Some(consumed);
        }
    }

    /// The text ended inside a call: models that stop on the end tag never write it.
    fn close_call_at_end(&mut self, body: &str) {
        match parse_call(body) {
            Parsed::Call { name, arguments } => self.emit_call(name, arguments),
            _ => self.call_is_text(body),
        }
    }

    fn emit_call(&mut self, name: String, arguments: String) {
        self.discard_logprobs();
        self.held_newlines = 0;
        self.events.push(OutputEvent::ToolCallStart { index: self.calls, name });
        self.events.push(OutputEvent::ToolCallArguments(arguments));
        self.events.push(OutputEvent::ToolCallEnd);
        self.calls += 1;
        self.mode = Mode::Text;
    }

    /// What looked like a call is text after all, with the newlines that stood before it.
    fn call_is_text(&mut self, body: &str) {
        self.mode = Mode::Text;
        self.release_newlines();
        self.show(CALL);
        self.show(body);
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

#[cfg(test)]
mod tests;
