//! Logs on standard error: `warn` and above unless `[log]` or `MAINSTAY_LOG` says otherwise, as lines of text, or of
//! JSON for systems that collect them.
//!
//! A role that has a configuration file reads `[log]` anew at SIGHUP, so that a process can be looked into while it runs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::FileConfig;

/// The Raft library warns of elections and of messages that came late, and its heartbeats call their end an error; all
/// are normal.
const DEFAULT: &str = "warn,openraft=error,openraft::core::heartbeat=off";
/// Stands over the file, and counts for commands that are no role, too.
const VARIABLE: &str = "MAINSTAY_LOG";

type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;
type Lines = Box<dyn Layer<Filtered> + Send + Sync>;

static LOGS: OnceLock<Logs> = OnceLock::new();

/// What can be changed while the process runs.
struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    lines: reload::Handle<Lines, Filtered>,
}

/// `[log]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// What is logged, such as `info` or `warn,mainstay_gateway=debug`.
    filter: Option<String>,
    /// How.
    format: Format,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

impl Format {
    pub(crate) const NAMES: [&'static str; 2] = ["text", "json"];

    fn lines(self) -> Lines {
        let lines = fmt::layer().with_writer(std::io::stderr);
        match self {
            Self::Text => lines.boxed(),
            // Without spans: those that began while lines were text have no fields as JSON, which the library takes
            // for a bug and panics.
            Self::Json => {
                let lines = lines.json().flatten_event(true);
                lines.with_current_span(false).with_span_list(false).boxed()
            }
        }
    }
}

impl LogConfig {
    /// The variable's filter, else the file's, else the default.
    fn filter(&self, variable: Option<&str>) -> anyhow::Result<EnvFilter> {
        let (from, text) = match (variable, &self.filter) {
            (Some(text), _) => (VARIABLE, text),
            (None, Some(text)) => ("log.filter", text.as_str()),
            (None, None) => ("", DEFAULT),
        };
        EnvFilter::try_new(text).map_err(|error| {
            anyhow!("{from} is {text:?}: {error}; write one such as info or warn,openraft=error")
        })
    }

    /// Logs as it says from here on.
    fn apply(&self) -> anyhow::Result<()> {
        let filter = self.filter(variable().as_deref())?;
        let Some(logs) = LOGS.get() else { return Ok(()) };
        logs.lines.reload(self.format.lines()).context("the logs' format")?;
        logs.filter.reload(filter).context("the logs' filter")
    }
}

fn variable() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Starts logging. A variable that cannot be read is told, and the default takes its place.
pub(crate) fn start() {
    let unsaid = LogConfig::default();
    let filter = unsaid.filter(variable().as_deref()).unwrap_or_else(|error| {
        eprintln!("{error}; using {DEFAULT}");
        EnvFilter::new(DEFAULT)
    });
    let (filter, of_filter) = reload::Layer::new(filter);
    let (lines, of_lines) = reload::Layer::new(unsaid.format.lines());
    // It is started once.
    let _ = LOGS.set(Logs { filter: of_filter, lines: of_lines });
    tracing_subscriber::registry().with(filter).with(lines).init();
}

/// Logs as a role's configuration says, and as it will say at each SIGHUP where it has a file.
///
/// # Errors
/// If the filter can't be read.
pub(crate) fn follow(config: &LogConfig, file: Option<&Path>) -> anyhow::Result<()> {
    if variable().is_none_or(|variable| EnvFilter::try_new(variable).is_ok()) {
        config.apply()?;
    }
    let Some(file) = file.map(PathBuf::from) else { return Ok(()) };
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let read = FileConfig::read(Some(&file)).and_then(|config| config.log.apply());
            match read {
                Ok(()) => tracing::warn!("logs are as the configuration says now"),
                Err(error) => {
                    let error = crate::output::chain(&error);
                    tracing::error!(%error, "logs stay as they are: the configuration is wrong");
                }
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> LogConfig {
        toml::from_str(text).expect("right")
    }

    #[test]
    fn a_variable_stands_over_the_file_and_the_file_over_the_default() {
        let filter = |file: &str, variable| config(file).filter(variable).unwrap().to_string();
        assert_eq!(filter("", None), "openraft::core::heartbeat=off,openraft=error,warn");
        assert_eq!(filter("filter = 'info'", None), "info");
        assert_eq!(filter("filter = 'info'", Some("debug")), "debug");
    }

    #[test]
    fn a_span_that_began_in_the_other_format_harms_nobody() {
        for (before, after) in [(Format::Text, Format::Json), (Format::Json, Format::Text)] {
            let (filter, _of_filter) = reload::Layer::new(EnvFilter::new("debug"));
            let (lines, of_lines) = reload::Layer::new(before.lines());
            let subscriber = tracing_subscriber::registry().with(filter).with(lines);
            tracing::subscriber::with_default(subscriber, || {
                let span = tracing::info_span!("before", number = 7);
                let _inside = span.enter();
                of_lines.reload(after.lines()).unwrap();
                tracing::warn!("within a span of the former format");
            });
        }
    }

    #[test]
    fn what_cannot_be_read_says_where_it_is_from_and_what_can() {
        let wrong = config("filter = 'loud=very'");
        let told = wrong.filter(None).unwrap_err().to_string();
        assert!(told.starts_with("log.filter is") && told.contains("such as info"), "{told}");
        let told = wrong.filter(Some("a=b=c")).unwrap_err().to_string();
        assert!(told.starts_with("MAINSTAY_LOG is"), "{told}");
        assert!(toml::from_str::<LogConfig>("format = 'xml'").is_err());
        assert!(toml::from_str::<LogConfig>("level = 'info'").is_err());
        for name in Format::NAMES {
            config(&format!("format = '{name}'"));
        }
    }
}
