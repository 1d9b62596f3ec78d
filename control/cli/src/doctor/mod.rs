//! What keeps a role from starting or a cluster from working, found before somebody has to ask why.
//!
//! A check has an id with a heading on `docs/operate/doctor.md`, and a finding says what is wrong and what to type next.
//! Facts are read in one place and judged in another, so that judgements are tested with numbers and readings with the
//! real system. Nothing here changes anything.

pub(crate) mod checks;
mod cluster;
mod identity;
mod machine;
mod model;
mod place;
mod setup;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use serde_json::{Value, json};

use checks::{CHECKS, Check};
pub(crate) use cluster::{look_at_cluster, look_at_gateway, reasons};
pub(crate) use setup::Setup;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// Looked at, and well.
    Ok,
    /// Could not be looked at.
    Skipped,
    /// It works, and will not do for long or for much.
    Warning,
    /// It does not work.
    Failure,
}

impl Level {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// What a check came to.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) check: &'static Check,
    pub(crate) level: Level,
    /// What is so.
    pub(crate) what: String,
    /// What to type.
    pub(crate) next: Option<String>,
}

impl Finding {
    fn ok(check: &'static Check, what: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, what: what.into(), next: None }
    }

    fn skipped(check: &'static Check, why: impl Into<String>) -> Self {
        Self { check, level: Level::Skipped, what: why.into(), next: None }
    }

    fn warning(check: &'static Check, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, what: what.into(), next: Some(next.into()) }
    }

    fn failure(check: &'static Check, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, level: Level::Failure, what: what.into(), next: Some(next.into()) }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "id": self.check.id, "group": self.check.group, "level": self.level.name(),
            "what": self.what, "next": self.next, "page": self.check.page(),
        })
    }
}

/// Looks at the machine and at what a role would be started with.
pub(crate) fn look_at_setup(setup: &Setup) -> Vec<Finding> {
    let machine = machine::Machine::read();
    let mut found = machine.judge(setup);
    found.extend(place::look(setup));
    found.extend(identity::look(setup));
    found.extend(model::look(setup, machine.memory_available));
    found
}

/// A configuration that could not be read, so that nothing else could be looked at.
pub(crate) fn bad_configuration(error: &anyhow::Error) -> Finding {
    let next =
        "mainstay config check FILE, once it is mended; mainstay config schema has every key";
    Finding::failure(&checks::CONFIG, crate::output::chain(error), next)
}

/// A configuration that is right.
pub(crate) fn good_configuration(role: &str) -> Finding {
    Finding::ok(
        &checks::CONFIG,
        format!("{role}: the flags, the environment and the file are right"),
    )
}

/// The page of checks.
pub(crate) fn page() -> String {
    let mut page = String::from(PAGE);
    for group in checks::GROUPS {
        let _ = write!(page, "\n## {group}\n");
        for check in CHECKS.iter().filter(|check| check.group == group) {
            let _ = write!(page, "\n### {}\n\n{}.\n\n{}\n", check.id, check.about, check.cure);
        }
    }
    page
}

const PAGE: &str = "# Doctor

Printed by `mainstay reference doctor`; a test compares it with the program.

`mainstay doctor [ROLE]` looks at this machine and at what ROLE (`serve` if left out) would be started with: its file, the environment, and the flags behind `--`. With `--control` it asks the members of a cluster, with `--addr` a gateway. It changes nothing and starts nothing.

```sh norun: asks clusters and files of yours
mainstay doctor
mainstay doctor worker -- --config mainstay.toml ./Qwen3-0.6B
mainstay doctor control --control 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400 --identity admin
mainstay doctor --addr http://127.0.0.1:8000 -o json
```

Each finding has the id of a check below, a level (`ok`, `skipped`, `warning`, `failure`), what is so, and what to type. The exit code is 1 if there is a failure and 0 otherwise; `--strict` takes warnings for failures. `--list` prints the checks, `--only ID,…` keeps some. With `-o json` it is a list of objects with `id`, `group`, `level`, `what`, `next` and `page`.
";
