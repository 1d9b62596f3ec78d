//! Answers made behind the client's back: told as queued once the log has them, made here, got by their ids.
//!
//! The log knows a response from its start, so any gateway can say how it stands. Whoever cancels or deletes it does
//! that in the log, too, and this gateway's replica sees it. A gateway that ends waits for its turns a while and then
//! puts their failure into the log; if it dies, readers are told that they failed once their time is over.

use std::time::Duration;

use mainstay_chat::{ApiError, Endpoint, ErrorKind, encode};
use mainstay_types::ResponseState;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{Turn, writer};
use crate::http::App;
use crate::stored::{BACKGROUND_MAX, RunningTurn, failed};
use crate::{SHUTDOWN_GRACE, SHUTDOWN_TELL};

/// How long turns go on once their gateway ends; the rest of its time is for the log.
const GO_ON_MAX: Duration = SHUTDOWN_GRACE.saturating_sub(SHUTDOWN_TELL);

impl App {
    /// Queues a turn; answers with its response object. The turn keeps its permit until it has ended.
    pub(super) async fn answer_later(
        &self,
        turn: Turn,
        permit: OwnedSemaphorePermit,
    ) -> Result<String, ApiError> {
        let queued = writer::queued(&turn).ok_or_else(|| {
            ApiError::new(ErrorKind::Internal, "the response could not be described")
        })?;
        let echo = turn.request.responses.as_deref();
        let running = RunningTurn {
            tenant: turn.tenant.clone(),
            id: encode::response_id(&turn.request_id),
            previous: echo.and_then(|echo| echo.previous_response_id.clone()),
            response: queued,
            input: echo.map(|echo| echo.input.clone()).unwrap_or_default(),
        };
        self.stored.begin(&running).await?;
        let told = running.response.to_string();
        let app = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let given_up = given_up(app.stopped.clone(), GO_ON_MAX);
            let work = Box::pin(app.work(turn));
            match end_of(work, app.called_off(&running), given_up).await {
                End::Answered => {}
                End::CalledOff => {
                    tracing::info!(response = running.id, "a background response was called off");
                }
                End::Failed(error) => {
                    tracing::info!(response = running.id, kind = ?error.kind, "a background response failed");
                    app.stored.end(failed(running, &error)).await;
                }
            }
        });
        Ok(told)
    }

    /// Makes the answer, which is stored at its end.
    async fn work(&self, turn: Turn) -> Result<String, ApiError> {
        let (writer, generation) = self.begin(turn, |_| {}).await?;
        writer.collect(generation).await
    }

    /// Resolves once the log says that nobody wants the answer any more.
    async fn called_off(&self, running: &RunningTurn) {
        let mut changes = self.replica.changes();
        let mut seen = false;
        loop {
            match self.stored.state(&running.tenant, &running.id) {
                Some(ResponseState::Running) => seen = true,
                // The replica may be a little behind the log.
                None if !seen => {}
                Some(ResponseState::Cancelled) | None => return,
                Some(ResponseState::Ended) => std::future::pending().await,
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// How a turn ended.
#[derive(Debug)]
enum End {
    Answered,
    CalledOff,
    Failed(ApiError),
}

/// Resolves when a gateway that ends has waited for its turns as long as it may.
async fn given_up(mut stopped: watch::Receiver<bool>, go_on_max: Duration) {
    // Whoever could say so is gone, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
    tokio::time::sleep(go_on_max).await;
}

/// Follows a turn to its end, or until nobody wants it or its gateway has to give it up.
async fn end_of(
    work: impl Future<Output = Result<String, ApiError>>,
    called_off: impl Future<Output = ()>,
    given_up: impl Future<Output = ()>,
) -> End {
    tokio::select! {
        outcome = tokio::time::timeout(BACKGROUND_MAX, work) => match outcome {
            Ok(Ok(_)) => End::Answered,
            Ok(Err(error)) => End::Failed(error),
            Err(_) => End::Failed(ApiError::new(ErrorKind::Internal, "it took too long")),
        },
        () = called_off => End::CalledOff,
        () = given_up => {
            let text = "the gateway that made it was stopped; send it again";
            End::Failed(ApiError::new(ErrorKind::Unavailable, text))
        }
    }
}

/// The error that a response object shows.
pub(crate) fn shown_error(error: &ApiError) -> Value {
    let body = error.body(Endpoint::Responses, "");
    let body = mainstay_chat::plain_json::from_str(&body).unwrap_or_default();
    let code = body["error"]["code"].as_str().unwrap_or("server_error");
    serde_json::json!({"code": code, "message": error.message})
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_turn_that_outlives_its_gateway_has_failed() {
        let (stop, stopped) = watch::channel(false);
        let give_up = given_up(stopped.clone(), Duration::from_millis(50));
        let running = tokio::spawn(end_of(pending(), pending(), give_up));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!running.is_finished(), "nobody has stopped the gateway");
        stop.send_replace(true);
        let ended = tokio::time::timeout(Duration::from_secs(5), running).await;
        let End::Failed(error) = ended.expect("in time").expect("no panic") else {
            panic!("it has neither an answer nor was it called off");
        };
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(GO_ON_MAX < SHUTDOWN_GRACE && GO_ON_MAX > Duration::ZERO);
    }

    #[tokio::test]
    async fn a_turn_that_ends_in_time_has_its_own_end() {
        let (_stop, stopped) = watch::channel(true);
        let late = || given_up(stopped.clone(), Duration::from_secs(60));
        let answered = end_of(ready(Ok(String::new())), pending(), late()).await;
        assert!(matches!(answered, End::Answered), "{answered:?}");
        let failed = ApiError::new(ErrorKind::Overloaded, "no room");
        let failed = end_of(ready(Err(failed)), pending(), late()).await;
        assert!(matches!(&failed, End::Failed(e) if e.kind == ErrorKind::Overloaded), "{failed:?}");
        let called_off = end_of(pending(), ready(()), late()).await;
        assert!(matches!(called_off, End::CalledOff), "{called_off:?}");
    }
}
