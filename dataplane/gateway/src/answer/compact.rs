//! Compaction: the model is asked to sum a conversation up, and its answer becomes an item.

use mainstay_chat::compaction::{ask_for_summary, compact_body, kept_prompt, parse_compact};
use mainstay_chat::{ApiError, ErrorKind, Request, RequestKind};

use super::writer::unix_s;
use super::{Admitted, Incoming, compute_held};
use crate::http::App;
use crate::seal::parsing_of;

impl App {
    /// Answers `POST /v1/responses/compact`.
    pub(crate) async fn compact(
        &self,
        admitted: Admitted,
        incoming: Incoming<'_>,
    ) -> Result<String, ApiError> {
        // What only this body must not have, before anything costs time.
        let parsing = parsing_of(&admitted.tenant, &self.replica, &self.parsing);
        let sealer = parsing.sealer.clone();
        let body = incoming.body.clone();
        let read = move || parse_compact(&body, parsing).map(drop);
        let ((), admitted) = compute_held(admitted, incoming.body.len(), read).await?;
        let request_id = incoming.request_id.to_owned();
        let sum_up = |request: &mut Request| {
            ask_for_summary(request);
            request.session.kind = RequestKind::Compaction;
        };
        let (turn, permit) = self.turn(admitted, incoming, sum_up).await?;
        let prompt = kept_prompt(&turn.request);
        let (writer, generation) = self.begin(turn, |_| {}).await?;
        let (transcript, usage) = writer.transcribe(generation).await?;
        drop(permit);
        let summary = transcript.text();
        if summary.trim().is_empty() {
            let message = "the model gave no summary; try again, or with another model";
            return Err(ApiError::new(ErrorKind::Internal, message));
        }
        Ok(compact_body(&request_id, &prompt, summary.trim(), &usage, unix_s(), sealer.as_ref()))
    }
}
