//! The keys of roles, read from clap's definition.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command, CommandFactory};

use super::ROLES;

/// Arguments that say where settings are, or about what the program prints: no settings themselves.
const NO_KEYS: [&str; 3] = ["config", "help", "version"];

/// What a key's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Boolean,
    Integer,
    Number,
    Text,
}

/// A setting of a role.
#[derive(Clone)]
pub(crate) struct Key {
    /// As in the file.
    pub(crate) name: String,
    /// Clap's.
    pub(crate) id: String,
    /// The flag; a positional argument has none.
    pub(crate) long: Option<String>,
    /// A variable of its own beside `MAINSTAY__ROLE__KEY`.
    pub(crate) env: Option<String>,
    pub(crate) help: String,
    pub(crate) kind: Kind,
    pub(crate) default: Option<String>,
    pub(crate) choices: Vec<String>,
    pub(crate) is_required: bool,
    pub(crate) is_secret: bool,
}

impl Key {
    fn of(arg: &Arg) -> Self {
        let long = arg.get_long().map(str::to_owned);
        let id = arg.get_id().as_str().to_owned();
        let name = long.as_deref().unwrap_or(&id).replace('-', "_");
        let parser = arg.get_value_parser().type_id();
        let is = |types: &[TypeId]| types.iter().any(|t| parser == *t);
        let integers = [
            TypeId::of::<u8>(),
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<i64>(),
        ];
        let kind = match () {
            () if is(&[TypeId::of::<bool>()]) => Kind::Boolean,
            () if is(&integers) => Kind::Integer,
            () if is(&[TypeId::of::<f64>()]) => Kind::Number,
            () => Kind::Text,
        };
        let choices = match kind {
            Kind::Boolean => Vec::new(),
            _ => arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect(),
        };
        let default = arg.get_default_values().first().map(|v| v.to_string_lossy().into_owned());
        Self {
            name,
            id,
            long,
            env: arg.get_env().map(|env| env.to_string_lossy().into_owned()),
            help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
            kind,
            default,
            choices,
            is_required: arg.is_required_set(),
            is_secret: arg.is_hide_env_values_set(),
        }
    }

    /// A value of the file or the environment as it would be typed; `None` for a switch that is off.
    ///
    /// # Errors
    /// If it has a form that no flag takes.
    pub(crate) fn text_of(&self, value: &toml::Value) -> Result<Option<String>, String> {
        if self.kind == Kind::Boolean {
            let on = match value {
                toml::Value::Boolean(on) => Some(*on),
                toml::Value::String(text) => boolean_of(text),
                _ => None,
            };
            let on = on.ok_or_else(|| format!("{value} is neither true nor false"))?;
            return Ok(on.then(|| "true".to_owned()));
        }
        let one = |value: &toml::Value| match value {
            toml::Value::String(text) => Ok(text.clone()),
            toml::Value::Integer(_) | toml::Value::Float(_) => Ok(value.to_string()),
            other => Err(format!("{other} is neither a text, a number nor a list of these")),
        };
        match value {
            toml::Value::Array(items) => {
                let items: Result<Vec<String>, String> = items.iter().map(one).collect();
                items.map(|items| Some(items.join(",")))
            }
            other => one(other).map(Some),
        }
    }
}

fn boolean_of(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// The program's command line, whose roles' switches take `=false`: a flag can say no to a file.
pub(crate) fn command() -> Command {
    ROLES.into_iter().fold(crate::Cli::command(), |command, role| {
        command.mut_subcommand(role, |role| role.mut_args(open))
    })
}

fn open(arg: Arg) -> Arg {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .hide_possible_values(true)
        .value_name("BOOL")
        .value_parser(BoolishValueParser::new())
}

/// The keys of a role.
pub(crate) fn keys_of(role: &str) -> Vec<Key> {
    // Clap's definition is the same for as long as the process runs, and takes a while to build.
    static KEYS: LazyLock<BTreeMap<&str, Vec<Key>>> = LazyLock::new(|| {
        let command = command();
        ROLES.into_iter().map(|role| (role, read_keys(&command, role))).collect()
    });
    KEYS.get(role).cloned().unwrap_or_default()
}

fn read_keys(command: &Command, role: &str) -> Vec<Key> {
    let Some(role) = command.find_subcommand(role) else { return Vec::new() };
    let is_key = |arg: &&Arg| !arg.is_hide_set() && !NO_KEYS.contains(&arg.get_id().as_str());
    role.get_arguments().filter(is_key).map(Key::of).collect()
}
