//! Answers made behind the client's back: told as queued once the log has them, made here, got by their ids.
//!
//! The log knows a response from its start, so any gateway can say how it stands. Whoever cancels or deletes it does
//! that in the log, too, and this gateway's replica sees it. If this gateway dies, readers are told that it failed once
//! its time is over.

use mainstay_chat::{ApiError, Endpoint, ErrorKind, encode};
use mainstay_types::ResponseState;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::{Turn, writer};
use crate::http::App;
use crate::stored::{BACKGROUND_MAX, RunningTurn, failed};

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
            tokio::select! {
                outcome = tokio::time::timeout(BACKGROUND_MAX, app.work(turn)) => {
                    let error = match outcome {
                        Ok(Ok(_)) => return,
                        Ok(Err(error)) => error,
                        Err(_) => ApiError::new(ErrorKind::Internal, "it took too long"),
                    };
                    tracing::info!(response = running.id, kind = ?error.kind, "a background response failed");
                    app.stored.end(failed(running, &error)).await;
                }
                () = app.called_off(&running) => {
                    tracing::info!(response = running.id, "a background response was called off");
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

/// The error that a response object shows.
pub(crate) fn shown_error(error: &ApiError) -> Value {
    let body = error.body(Endpoint::Responses, "");
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let code = body["error"]["code"].as_str().unwrap_or("server_error");
    serde_json::json!({"code": code, "message": error.message})
}
