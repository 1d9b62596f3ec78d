//! One TOML file < environment < flags: what a role is started with, and where each value is from.
//!
//! The file's tables `[serve]`, `[control]`, `[gateway]` and `[worker]` hold that role's flags with `_` for `-`, as
//! `MAINSTAY__ROLE__KEY` does in the environment. What the command line does not say is put in front of clap as if it
//! had been typed, so a value meets the same checks wherever it comes from. The keys are read from clap's own
//! definition: a new flag is a new key without a line here.

#[cfg(test)]
mod deploy_tests;
mod keys;
mod layers;
mod schema;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

pub(crate) use keys::{Key, command, keys_of};
pub(crate) use layers::{Layers, Origin, nearest};
pub(crate) use schema::schema;

/// What can be started with a file.
pub(crate) const ROLES: [&str; 4] = ["serve", "control", "gateway", "worker"];

/// A command line with what the layers add to it.
pub(crate) struct Resolved {
    pub(crate) layers: Layers,
    /// The whole of it.
    pub(crate) args: Vec<OsString>,
    /// What was put in front: key and origin.
    added: Vec<(Key, Origin)>,
}

/// The role that a command line starts, if it starts one.
fn role_of(args: &[OsString]) -> Option<&'static str> {
    let word = args.get(1)?.to_str()?;
    ROLES.into_iter().find(|role| *role == word)
}

/// A command line that says what it can of a line that is wrong or not whole.
fn lenient() -> Command {
    command().ignore_errors(true)
}

/// Reads the layers below a command line of a role, and puts them in front. `None` where no role is started.
///
/// # Errors
/// If the file can't be read, has a key that does not exist, or a value that no flag could have.
pub(crate) fn resolve(
    args: &[OsString],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> anyhow::Result<Option<Resolved>> {
    let Some(role) = role_of(args) else { return Ok(None) };
    // Help, and what is wrong with the line itself, is for clap to tell.
    let Ok(seen) = lenient().try_get_matches_from(args) else { return Ok(None) };
    let Some((_, seen)) = seen.subcommand() else { return Ok(None) };
    if seen.subcommand().is_some() {
        return Ok(None);
    }
    let file = seen.get_one::<PathBuf>("config").cloned();
    let layers = Layers::read(file.as_deref(), environment)?;
    let mut resolved = Resolved { layers, args: args.to_vec(), added: Vec::new() };
    resolved.add(role, seen)?;
    Ok(Some(resolved))
}

impl Resolved {
    fn add(&mut self, role: &str, seen: &ArgMatches) -> anyhow::Result<()> {
        let (mut flags, mut positional) = (Vec::new(), None);
        for key in keys_of(role) {
            let Some((value, origin)) = self.layers.get(role, &key.name) else { continue };
            let typed = seen.value_source(&key.id);
            // A variable that clap itself knows is as near as any in the environment.
            let is_nearer = typed == Some(ValueSource::CommandLine)
                || typed == Some(ValueSource::EnvVariable) && matches!(origin, Origin::File(_));
            if is_nearer {
                continue;
            }
            let Some(text) =
                key.text_of(value).map_err(|why| origin.error(role, &key.name, &why))?
            else {
                continue;
            };
            let origin = origin.clone();
            match &key.long {
                Some(long) => flags.push(OsString::from(format!("--{long}={text}"))),
                None => positional = Some(OsString::from(text)),
            }
            self.added.push((key, origin));
        }
        self.args.splice(2..2, flags);
        if let Some(text) = positional {
            self.args.extend([OsString::from("--"), text]);
        }
        Ok(())
    }

    /// Where the value of a key is from, after clap has read the whole line.
    pub(crate) fn origin(&self, key: &Key, matches: &ArgMatches) -> Origin {
        match matches.value_source(&key.id) {
            Some(ValueSource::CommandLine) => {
                let added = self.added.iter().find(|(added, _)| added.id == key.id);
                added.map_or(Origin::Flag, |(_, origin)| origin.clone())
            }
            Some(ValueSource::EnvVariable) => {
                Origin::Environment(key.env.clone().unwrap_or_default())
            }
            _ => Origin::Default,
        }
    }

    /// Which of the values that clap complains about nobody has typed.
    pub(crate) fn notes(&self, error: &clap::Error) -> Vec<String> {
        let told = error.render().to_string();
        let typed = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        let about = |key: &Key| {
            let flag = key.long.as_ref().map(|long| format!("--{long}"));
            flag.is_some_and(|flag| {
                let mut words = told.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
                typed.starts_with(&flag) || words.any(|word| word == flag)
            })
        };
        let added = self.added.iter().filter(|(key, _)| about(key));
        added
            .map(|(key, origin)| {
                format!("note: --{} is {origin}", key.long.as_deref().unwrap_or_default())
            })
            .collect()
    }
}

/// Reads the process's command line with the layers below it; ends the process where clap would.
pub(crate) fn parse<T: clap::FromArgMatches>() -> anyhow::Result<T> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let resolved = resolve(&args, std::env::vars_os())?;
    let line = resolved.as_ref().map_or(&args, |resolved| &resolved.args);
    let parsed = command().try_get_matches_from(line).and_then(|m| T::from_arg_matches(&m));
    parsed.map_err(|error| {
        let notes = resolved.map(|resolved| resolved.notes(&error)).unwrap_or_default();
        if error.use_stderr() {
            notes.iter().for_each(|note| eprintln!("{note}"));
        }
        error.exit()
    })
}

/// Reads a role's command line as it would be started, but for what is still missing.
///
/// # Errors
/// If the layers or the line are wrong otherwise.
pub(crate) fn preview(
    role: &str,
    flags: &[OsString],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> anyhow::Result<(Resolved, ArgMatches)> {
    let mut args = vec![OsString::from("mainstay"), OsString::from(role)];
    args.extend_from_slice(flags);
    let resolved = resolve(&args, environment)?;
    let Some(resolved) = resolved else {
        // Clap knows why.
        let error = command().try_get_matches_from(&args).err();
        anyhow::bail!(error.map_or("nothing to start".to_owned(), |error| error.to_string()));
    };
    let read = |command: Command| command.try_get_matches_from(&resolved.args);
    let matches = match read(command()) {
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => read(lenient()),
        read => read,
    };
    let told = |error: clap::Error| {
        let mut lines = vec![error.to_string().trim_start_matches("error: ").trim().to_owned()];
        lines.extend(resolved.notes(&error));
        anyhow::anyhow!(lines.join("\n"))
    };
    let matches = matches.map_err(told)?;
    let (_, of_role) = matches.subcommand().unwrap_or((role, &matches));
    let of_role = of_role.clone();
    Ok((resolved, of_role))
}
