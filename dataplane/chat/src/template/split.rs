//! A chat template cut into parts: a few statements each, and loops over messages of which the body is a part.
//!
//! The engine renders a template as one. To render only what is new of a conversation, parts have to run alone, so
//! the source is cut here between the statements that stand in no other statement. Where a cut takes a tag away, one
//! that does nothing stands in its place with the same marks, so that whitespace around it is treated the same.
//! What is not plainly understood is refused, and such a template is always rendered as a whole.

mod tags;

use std::collections::{BTreeMap, BTreeSet};

use tags::{Kind, Name, Tag, parameters, tags};

/// Most parts of a template.
const PARTS_MAX: usize = 256;
/// Most names that a template may mention.
const NAMES_MAX: usize = 1024;
/// How many times as long as the template its parts may be together; each repeats the macros that it may call.
const GROWTH_MAX: usize = 4;
/// As long as this they may always be.
const SOURCES_BYTES_USUAL: usize = 64 << 10;

/// Statements that are not cut, nor is a template that has them: they change how or from where it is read.
const REFUSED: &[&str] =
    &["include", "extends", "import", "from", "block", "raw", "autoescape", "self", "debug"];

/// A template in parts.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) parts: Vec<Source>,
    /// All that parts may look up, sorted.
    pub(super) names: Vec<String>,
    /// Which of them are macros; every part that may call one defines it itself.
    pub(super) macros: BTreeSet<String>,
}

/// One part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Rendered once.
    Once(String),
    /// The body of a loop, rendered for each item of a list.
    Each {
        /// The name of the list.
        list: String,
        /// What the body calls an item.
        item: String,
        /// The body.
        body: String,
    },
}

/// The filter that a slice without its first items becomes.
pub(super) const REST: &str = "mainstay_rest";

/// Cuts `source`; nothing if it must be rendered as a whole.
pub(super) fn plan(source: &str) -> Option<Plan> {
    if source.contains("mainstay_") {
        return None;
    }
    let source = &sliced(source)?;
    let tags = tags(source)?;
    let names = names(&tags)?;
    let statements = statements(&tags)?;
    let macros = macros(source, &tags, &statements)?;
    let mut cutter = Cutter { source, tags: &tags, macros, parts: Vec::new(), bytes: 0, lists: 0 };
    let mut open = Open { prefix: String::new(), start: 0, heavy: false, first_tag: 0 };
    for statement in &statements {
        open = cutter.statement(open, statement)?;
    }
    if open.start < source.len() {
        let last = cutter.once(&open, source.len(), tags.len(), String::new());
        cutter.push(last)?;
    }
    let Cutter { parts, macros, .. } = cutter;
    let looped = parts.iter().any(|part| matches!(part, Source::Each { .. }));
    let macros = macros.into_keys().map(str::to_owned).collect();
    looped.then_some(Plan { parts, names, macros })
}

/// A statement that stands in no other: the places of its first and last tag.
#[derive(Debug, Clone, Copy)]
struct Statement {
    first: usize,
    last: usize,
}

/// What has been read and is in no part yet.
struct Open {
    /// What stands before it in its part.
    prefix: String,
    /// Where in the source it begins.
    start: usize,
    first_tag: usize,
    /// Whether it holds a statement with a body.
    heavy: bool,
}

struct Cutter<'s> {
    source: &'s str,
    tags: &'s [Tag<'s>],
    macros: Macros<'s>,
    parts: Vec<Source>,
    /// How long they are together.
    bytes: usize,
    /// How many lists were given a name.
    lists: usize,
}

impl<'s> Cutter<'s> {
    fn statement(&mut self, open: Open, statement: &Statement) -> Option<Open> {
        let (first, last) = (&self.tags[statement.first], &self.tags[statement.last]);
        let heavy = statement.first != statement.last;
        let after = Open {
            prefix: format!("{{% if false %}}{{% endif {}%}}", last.right),
            start: last.at.end,
            first_tag: statement.last + 1,
            heavy: false,
        };
        if first.keyword() == "macro" {
            self.close(&open, statement.first)?;
            return Some(after);
        }
        let all = statement.first..=statement.last;
        if let Some((item, list)) = looped(&self.tags[all]).filter(|l| !self.encloses(l.0)) {
            self.close(&open, statement.first)?;
            let list = self.named(list)?;
            let inner = &self.source[first.at.end..last.at.start];
            let macros = self.used(statement.first + 1..statement.last);
            let body =
                format!("{macros}{{% with {}%}}{inner}{{%{} endwith %}}", first.right, last.left);
            self.push(Source::Each { list, item: item.to_owned(), body })?;
            return Some(after);
        }
        if !heavy && !open.heavy {
            return Some(open);
        }
        self.close(&open, statement.first)?;
        Some(Open {
            prefix: String::new(),
            start: first.at.start,
            first_tag: statement.first,
            heavy,
        })
    }

    /// Adds a part, if there may be as much.
    fn push(&mut self, part: Source) -> Option<()> {
        let (Source::Once(text) | Source::Each { body: text, .. }) = &part;
        self.bytes += text.len();
        self.parts.push(part);
        let most = (GROWTH_MAX * self.source.len()).max(SOURCES_BYTES_USUAL);
        (self.parts.len() <= PARTS_MAX && self.bytes <= most).then_some(())
    }

    /// Makes a part of what is open, up to the tag `next`.
    fn close(&mut self, open: &Open, next: usize) -> Option<()> {
        let next_tag = &self.tags[next];
        if open.start == next_tag.at.start {
            return Some(());
        }
        let end = format!("{{%{} if false %}}{{% endif %}}", next_tag.left);
        let part = self.once(open, next_tag.at.start, next, end);
        self.push(part)
    }

    fn once(&self, open: &Open, end: usize, end_tag: usize, suffix: String) -> Source {
        let macros = self.used(open.first_tag..end_tag);
        let text = &self.source[open.start..end];
        Source::Once(format!("{macros}{}{text}{suffix}", open.prefix))
    }

    /// Whether a macro reads a variable that a loop has and that is not its own: defined in the loop it would see the
    /// loop's.
    fn encloses(&self, item: &str) -> bool {
        self.macros.values().any(|found| found.loops || found.free.contains(item))
    }

    /// The name of a list, given to it in a part of its own if it has none.
    fn named(&mut self, list: &str) -> Option<String> {
        if is_word(list) {
            return Some(list.to_owned());
        }
        let name = list_name(self.lists);
        self.lists += 1;
        let slice = rest_of(list).unwrap_or_else(|| list.to_owned());
        self.push(Source::Once(format!("{{% set {name} = {slice} %}}")))?;
        Some(name)
    }

    /// The definitions of the macros that the tags of a part may call.
    fn used(&self, tags: std::ops::Range<usize>) -> String {
        let mut wanted: Vec<&str> = self.tags[tags].iter().flat_map(names_of).collect();
        let mut used = BTreeSet::new();
        while let Some(name) = wanted.pop() {
            if let Some(found) = self.macros.get(name)
                && used.insert(name)
            {
                wanted.extend(&found.free);
            }
        }
        // In the order of the source, so that what one definition encloses of another is there.
        let mut texts: Vec<&str> = used.iter().map(|name| self.macros[name].text).collect();
        texts.sort_by_key(|text| text.as_ptr());
        texts.concat()
    }
}

/// Lists without a name are called this, with their number.
fn list_name(number: usize) -> String {
    format!("mainstay_list_{number}")
}

fn names_of<'s>(tag: &Tag<'s>) -> impl Iterator<Item = &'s str> + use<'s> {
    tag.names().into_iter().map(|name| name.text)
}

/// All names of a template, if it uses them in ways that parts can share.
fn names(tags: &[Tag<'_>]) -> Option<Vec<String>> {
    let mut all: BTreeSet<&str> = BTreeSet::new();
    let mut spaces: BTreeSet<&str> = BTreeSet::new();
    for tag in tags {
        if let Some(space) = namespace_made(tag) {
            spaces.insert(space);
        }
    }
    for tag in tags {
        let made = namespace_made(tag);
        for (place, name) in tag.names().into_iter().enumerate() {
            // A namespace that had two names could not be put back under both.
            let plain = match name.text {
                "namespace" => made.is_some() && place == 2,
                text if spaces.contains(text) => {
                    name.next == Some('.') || made.is_some() && place == 1
                }
                text => !REFUSED.contains(&text),
            };
            if !plain {
                return None;
            }
            all.insert(name.text);
        }
    }
    let loops = tags.iter().filter(|tag| tag.keyword() == "for").count();
    let lists = (0..loops).map(list_name);
    let mut names: Vec<String> = all.into_iter().map(str::to_owned).chain(lists).collect();
    names.sort();
    (names.len() <= NAMES_MAX).then_some(names)
}

/// The name in `set NAME = namespace(…)`.
fn namespace_made<'s>(tag: &Tag<'s>) -> Option<&'s str> {
    if tag.keyword() != "set" {
        return None;
    }
    match tag.names()[..] {
        [_, Name { text, next: Some('=') }, Name { text: "namespace", next: Some('(') }, ..] => {
            Some(text)
        }
        _ => None,
    }
}

/// The source with `list[1:]` in the hands of a filter where a variable is set to it, if the list is one that is looped
/// over: the engine's own slice asks how many there are.
fn sliced(source: &str) -> Option<String> {
    let tags = tags(source)?;
    let mut lists: BTreeSet<&str> = BTreeSet::from(["messages"]);
    for tag in tags.iter().filter(|tag| tag.keyword() == "for") {
        let list = tag.arguments().split_once(" in ").map(|(_, list)| list.trim());
        lists.extend(list.filter(|list| is_word(list)));
    }
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    for tag in tags.iter().filter(|tag| tag.keyword() == "set") {
        let Some((name, list)) = tag.arguments().split_once('=') else { continue };
        let (name, list) = (name.trim(), list.trim());
        let base = list.split_once('[').map_or(list, |(base, _)| base);
        if !is_word(name) || !lists.contains(base) {
            continue;
        }
        if let Some(rest) = rest_of(list) {
            out.push_str(&source[at..tag.at.start]);
            out.push_str(&format!("{{%{} set {name} = {rest} {}%}}", tag.left, tag.right));
            at = tag.at.end;
        }
    }
    out.push_str(&source[at..]);
    Some(out)
}

/// What stands for `list[skip:]`.
fn rest_of(list: &str) -> Option<String> {
    let (base, skip) = list.strip_suffix(":]")?.split_once('[')?;
    let digits = !skip.is_empty() && skip.len() < 6 && skip.chars().all(|c| c.is_ascii_digit());
    (is_word(base) && digits).then(|| format!("{base} | {REST}({skip})"))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// The statements that stand in no other.
fn statements(tags: &[Tag<'_>]) -> Option<Vec<Statement>> {
    let mut found = Vec::new();
    let mut open: Vec<(&str, usize)> = Vec::new();
    for (place, tag) in tags.iter().enumerate().filter(|(_, tag)| tag.kind == Kind::Statement) {
        let keyword = tag.keyword();
        match keyword {
            "for" | "if" | "macro" | "call" | "filter" | "with" => open.push((keyword, place)),
            "set" if !assigns(tag) => open.push((keyword, place)),
            "set" | "do" if open.is_empty() => {
                found.push(Statement { first: place, last: place });
            }
            "set" | "do" | "elif" | "else" | "break" | "continue" => {
                if open.is_empty() {
                    return None;
                }
            }
            _ => {
                let (opened, first) = open.pop()?;
                if keyword.strip_prefix("end") != Some(opened) {
                    return None;
                }
                if open.is_empty() {
                    found.push(Statement { first, last: place });
                } else if opened == "macro" {
                    return None;
                }
            }
        }
    }
    open.is_empty().then_some(found)
}

/// Whether a `set` has its value in itself, and not in a body.
fn assigns(tag: &Tag<'_>) -> bool {
    let text = tag.arguments();
    text.split_once('=').is_some_and(|(target, _)| !target.contains(['|', '"', '\'']))
}

type Macros<'s> = BTreeMap<&'s str, Macro<'s>>;

struct Macro<'s> {
    /// Its definition.
    text: &'s str,
    /// The names in it that are none of its parameters.
    free: BTreeSet<&'s str>,
    /// Whether it reads `loop` where it is in no loop of its own.
    loops: bool,
}

/// The macros of a template, if each is defined once and before it is used.
fn macros<'s>(source: &'s str, tags: &[Tag<'s>], statements: &[Statement]) -> Option<Macros<'s>> {
    let mut macros = Macros::new();
    for statement in statements {
        let (first, last) = (&tags[statement.first], &tags[statement.last]);
        if first.keyword() != "macro" {
            continue;
        }
        let name = names_of(first).nth(1)?;
        let text = &source[first.at.start..last.at.end];
        let own = parameters(first);
        let inner = &tags[statement.first + 1..statement.last];
        // Defaults are read where the macro runs.
        let all = names_of(first).skip(2).chain(inner.iter().flat_map(names_of));
        let free = all.filter(|name| !own.contains(name)).collect();
        let loops = !own.contains(&"loop") && reads_loop(first, inner);
        let early = tags[..statement.first].iter().flat_map(names_of).any(|used| used == name);
        if early || macros.insert(name, Macro { text, free, loops }).is_some() {
            return None;
        }
    }
    Some(macros)
}

/// Whether a macro reads `loop` outside of its own loops.
fn reads_loop(head: &Tag<'_>, inner: &[Tag<'_>]) -> bool {
    // For each statement that is open, whether it is a loop.
    let mut open = Vec::new();
    let mut reads = names_of(head).any(|name| name == "loop");
    for tag in inner {
        let keyword = tag.keyword();
        if keyword.starts_with("end") {
            open.pop();
        } else if keyword == "else" {
            // Where a loop has no items it is none.
            if let Some(last) = open.last_mut() {
                *last = false;
            }
        }
        reads |= !open.contains(&true) && names_of(tag).any(|name| name == "loop");
        match keyword {
            "for" => open.push(true),
            "if" | "call" | "filter" | "with" => open.push(false),
            "set" if !assigns(tag) => open.push(false),
            _ => {}
        }
    }
    reads
}

/// The names of item and list, if a statement is a loop that can be run item by item.
fn looped<'s>(tags: &[Tag<'s>]) -> Option<(&'s str, &'s str)> {
    let [first, body @ .., _] = tags else { return None };
    if first.keyword() != "for" {
        return None;
    }
    let (item, list) = first.arguments().split_once(" in ")?;
    let (item, list) = (item.trim(), list.trim());
    let base = list.split_once('[').map_or(list, |(base, _)| base);
    // Whatever walks backwards counts from the end, which is another one in each turn.
    let slice = list[base.len()..].chars().all(|c| c.is_ascii_digit() || "[]:".contains(c));
    if !is_word(item) || !is_word(base) || !slice || list.matches('[').count() > 1 || item == "loop"
    {
        return None;
    }
    let mut loops = 0usize;
    let mut depth = 0usize;
    for tag in body {
        match tag.keyword() {
            "for" => {
                loops += 1;
                depth += 1;
            }
            "endfor" => {
                loops = loops.checked_sub(1)?;
                depth = depth.checked_sub(1)?;
            }
            "if" | "filter" | "with" => depth += 1,
            "set" if !assigns(tag) => depth += 1,
            // What a call's body reads stays what it was in the item before, where this one sets nothing.
            "call" => return None,
            "else" if depth == 0 => return None,
            "break" | "continue" if loops == 0 => return None,
            "macro" => return None,
            keyword if keyword.starts_with("end") => depth = depth.checked_sub(1)?,
            _ => {}
        }
        // What else a loop can do needs the engine's own.
        let mut names = tag.names().into_iter();
        if names
            .any(|name| name.text == "loop" && name.next != Some('.') || name.text == "recursive")
        {
            return None;
        }
    }
    Some((item, list))
}

#[cfg(test)]
mod tests;
