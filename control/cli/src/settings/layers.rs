//! The file and the environment, one over the other, and the words that either may use.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use toml::{Table, Value};

use super::{ROLES, keys_of};

/// Variables that name a section and a key. Two underscores: systems that run containers make up names with one.
pub(crate) const PREFIX: &str = "MAINSTAY__";
/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Sections that are not a role's, with their keys; none listed: any key.
pub(crate) const SECTIONS: [(&str, &[&str]); 6] = [
    ("pins", &["recompute"]),
    ("models", &["aliases", "media"]),
    ("responses", &["websocket"]),
    ("console", &["enabled"]),
    ("log", &["filter", "format"]),
    ("engine", &[]),
];
/// `[[keys]]` and its members.
pub(crate) const API_KEYS: (&str, [&str; 2]) = ("keys", ["key", "tenant"]);
/// How like a word must be to be offered in place of another.
const LIKENESS: f64 = 0.7;

/// Where a value is from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    Default,
    /// And the line, where it was found.
    File(String),
    Environment(String),
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(place) => write!(f, "from {place}"),
            Self::Environment(name) => write!(f, "from {name}"),
            Self::Flag => f.write_str("a flag"),
        }
    }
}

impl Origin {
    /// A word for programs.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File(_) => "file",
            Self::Environment(_) => "environment",
            Self::Flag => "flag",
        }
    }

    /// The file's place or the variable.
    pub(crate) fn place(&self) -> Option<&str> {
        match self {
            Self::File(place) | Self::Environment(place) => Some(place),
            Self::Default | Self::Flag => None,
        }
    }

    pub(super) fn error(&self, section: &str, key: &str, why: &str) -> anyhow::Error {
        anyhow::anyhow!("{section}.{key} ({self}): {why}")
    }
}

/// What the file and the environment say together.
pub(crate) struct Layers {
    pub(crate) table: Table,
    origins: BTreeMap<(String, String), Origin>,
}

impl Layers {
    /// Reads the file, if there is one, and lays the environment over it.
    pub(crate) fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> anyhow::Result<Self> {
        let mut layers = Self { table: Table::new(), origins: BTreeMap::new() };
        if let Some(path) = file {
            layers.take_file(path)?;
        }
        let ours = environment.filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
            Some((name, value))
        });
        // The order of the environment means nothing.
        for (name, value) in ours.collect::<BTreeMap<String, OsString>>() {
            let value = value.into_string().ok().with_context(|| format!("{name} is not text"))?;
            layers.take_variable(&name, &value)?;
        }
        Ok(layers)
    }

    /// A key's value and where it is from.
    pub(crate) fn get(&self, section: &str, key: &str) -> Option<(&Value, &Origin)> {
        let value = self.table.get(section)?.get(key)?;
        let origin = self.origins.get(&(section.to_owned(), key.to_owned()))?;
        Some((value, origin))
    }

    fn take_file(&mut self, path: &Path) -> anyhow::Result<()> {
        let shown = path.display();
        let size = std::fs::metadata(path)
            .with_context(|| format!("reading the configuration {shown}"))?
            .len();
        if size > FILE_BYTES_MAX {
            bail!("{shown} has {size} bytes; a configuration has {FILE_BYTES_MAX} at most");
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the configuration {shown}"))?;
        let table: Table = toml::from_str(&text).with_context(|| format!("in {shown}"))?;
        check(&table, &|section, key| place_of(path, &text, section, key))?;
        for (section, value) in &table {
            let Some(keys) = value.as_table() else { continue };
            for key in keys.keys() {
                let place = place_of(path, &text, section, key);
                self.origins.insert((section.clone(), key.clone()), Origin::File(place));
            }
        }
        self.table = table;
        Ok(())
    }

    fn take_variable(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let parts: Vec<String> =
            name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let [section, key] = parts.as_slice() else {
            bail!(
                "{name} is not of the form {PREFIX}SECTION__KEY, such as MAINSTAY__GATEWAY__LISTEN"
            );
        };
        if section == API_KEYS.0 {
            bail!(
                "{name}: API keys stand in the file, or in the cluster (`mainstay tenant key add`)"
            );
        }
        if section == "models" && key == "aliases" {
            bail!("{name}: models.aliases stands in the file");
        }
        let mut keys = Table::new();
        keys.insert(key.clone(), value_of(section, text));
        let alone = Table::from_iter([(section.clone(), Value::Table(keys.clone()))]);
        check(&alone, &|_, _| name.to_owned())?;
        let here = self.table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        if let Some(here) = here.as_table_mut() {
            here.extend(keys);
        }
        let origin = Origin::Environment(name.to_owned());
        self.origins.insert((section.clone(), key.clone()), origin);
        Ok(())
    }
}

/// A variable's value: as TOML has it where that means something, else as text. Flags are text.
fn value_of(section: &str, text: &str) -> Value {
    if ROLES.contains(&section) {
        return Value::String(text.to_owned());
    }
    let read: Option<Table> = toml::from_str(&format!("value = {text}")).ok();
    let value = read.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The file, and the line on which a key stands where it can be found.
fn place_of(path: &Path, text: &str, section: &str, key: &str) -> String {
    let mut here = section.is_empty();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            here = header.trim_start_matches('[').trim_end_matches(']').trim() == section;
            if here && key.is_empty() {
                return format!("{}:{}", path.display(), number + 1);
            }
        } else if here && line.split('=').next().is_some_and(|name| name.trim() == key) {
            return format!("{}:{}", path.display(), number + 1);
        }
    }
    PathBuf::from(path).display().to_string()
}

/// The word of `known` that was meant.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let like = |k: &&'a str| (strsim::jaro_winkler(&word.replace('-', "_"), k), *k);
    let best = known.iter().map(like).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= LIKENESS).then_some(best.1)
}

fn unknown(what: &str, word: &str, known: &[&str], place: &str) -> anyhow::Error {
    let hint = match nearest(word, known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("there is {}", known.join(", ")),
    };
    anyhow::anyhow!("{place}: unknown {what} {word:?}; {hint}")
}

/// Refuses words that nobody reads.
fn check(table: &Table, place: &dyn Fn(&str, &str) -> String) -> anyhow::Result<()> {
    let mut sections: Vec<&str> = ROLES.to_vec();
    sections.extend(SECTIONS.iter().map(|(name, _)| *name));
    sections.push(API_KEYS.0);
    for (section, value) in table {
        if section == API_KEYS.0 {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            for word in items.iter().filter_map(Value::as_table).flat_map(Table::keys) {
                if !API_KEYS.1.contains(&word.as_str()) {
                    return Err(unknown(
                        "key of [[keys]]",
                        word,
                        &API_KEYS.1,
                        &place("keys", word),
                    ));
                }
            }
            continue;
        }
        let of_role: Vec<String> = keys_of(section).into_iter().map(|key| key.name).collect();
        let is_role = ROLES.contains(&section.as_str());
        let known: Vec<&str> = match SECTIONS.iter().find(|(name, _)| name == section) {
            Some((_, keys)) => keys.to_vec(),
            None if is_role => of_role.iter().map(String::as_str).collect(),
            None => {
                let what = if value.is_table() { "section" } else { "key" };
                let at = if value.is_table() { place(section, "") } else { place("", section) };
                return Err(unknown(what, section, &sections, &at));
            }
        };
        let Some(keys) = value.as_table() else {
            bail!("{}: {section} is a section: write [{section}]", place("", section));
        };
        for word in keys.keys() {
            if !known.is_empty() && !known.contains(&word.as_str()) {
                let what = format!("key of [{section}]");
                return Err(unknown(&what, word, &known, &place(section, word)));
            }
        }
    }
    Ok(())
}
