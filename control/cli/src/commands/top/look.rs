//! One look at a cluster: what its gateway answers, as JSON.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{Target, client};
use crate::output::{Failure, chain};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was answered. What was not is null, and its problem is told.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// By a clock of this program's.
    pub(super) at_ms: u64,
    pub(super) status: Value,
    pub(super) overview: Value,
    pub(super) workers: Value,
    pub(super) pins: Value,
    pub(super) sessions: Value,
    pub(super) decisions: Value,
    pub(super) problems: Vec<String>,
}

/// Who looks.
pub(super) struct Looker {
    target: Target,
    client: reqwest::Client,
    server: String,
    began: Instant,
}

impl Looker {
    pub(super) fn new(target: Target) -> anyhow::Result<Self> {
        let server = target.base();
        Ok(Self { target, client: client(PATIENCE)?, server, began: Instant::now() })
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.target.get_by(&self.client, path).await
    }

    /// Asks for everything at once. It fails when nothing was answered.
    pub(super) async fn look(&self) -> anyhow::Result<Look> {
        let topic = async |name: &str| self.get(&format!("/api/v1/console/{name}")).await;
        let (status, overview, workers, pins, sessions, decisions) = tokio::join!(
            self.get("/api/v1/status"),
            topic("overview"),
            topic("workers"),
            topic("pins"),
            topic("sessions"),
            topic("decisions"),
        );
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut look = Look { at_ms, ..Look::default() };
        if overview.as_ref().is_err_and(is_missing) {
            let (pins, sessions) = tokio::join!(
                self.get("/v1/pins?consistency=local"),
                self.get("/v1/sessions?limit=200"),
            );
            let text = "the console is switched off there: no rates, tiers and decisions";
            look.problems.push(text.to_owned());
            return look.with([("status", status), ("pins", pins), ("sessions", sessions)]);
        }
        look.with([
            ("status", status),
            ("overview", overview),
            ("workers", workers),
            ("pins", pins),
            ("sessions", sessions),
            ("decisions", decisions),
        ])
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == 3)
}

impl Look {
    fn place(&mut self, name: &str) -> &mut Value {
        match name {
            "overview" => &mut self.overview,
            "workers" => &mut self.workers,
            "pins" => &mut self.pins,
            "sessions" => &mut self.sessions,
            "decisions" => &mut self.decisions,
            _ => &mut self.status,
        }
    }

    /// Takes answers in; without any the first problem is everybody's.
    fn with<const N: usize>(
        mut self,
        answers: [(&str, anyhow::Result<Value>); N],
    ) -> anyhow::Result<Self> {
        let mut first = None;
        let mut answered = false;
        for (name, answer) in answers {
            match answer {
                Ok(value) => {
                    answered = true;
                    *self.place(name) = value;
                }
                Err(error) => {
                    self.problems.push(format!("{name}: {}", chain(&error)));
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            Some(error) if !answered => Err(error),
            _ => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(exit: u8) -> anyhow::Error {
        Failure { message: "no".to_owned(), exit }.into()
    }

    #[test]
    fn a_part_that_is_missing_is_told_and_all_of_them_are_a_failure() {
        let look = Look::default()
            .with([("status", Err(refused(4))), ("pins", Ok(json!({"data": []})))])
            .expect("one answer");
        assert_eq!(look.problems, ["status: no"]);
        assert!(look.status.is_null() && look.pins.is_object());
        let error = Look::default().with([("status", Err(refused(6))), ("pins", Err(refused(1)))]);
        let error = error.expect_err("no answer");
        assert_eq!(crate::output::exit_code(&error), 6, "the first one's");
        assert!(is_missing(&refused(3)) && !is_missing(&refused(4)));
    }
}
