//! How old an answer may be, stated in every answer: headers on all of them, and members of the JSON of pins and status.
//!
//! `mainstay-log-index` is the place in the log that the answer rests on, `mainstay-index-age-ms` how old that may be:
//! everything acknowledged longer ago is in it. The second is missing while nobody has told this gateway.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use mainstay_chat::error::ApiError;
use mainstay_proto::v1;
use mainstay_state::{Machine, Pin};
use mainstay_types::LogIndex;
use serde_json::Value;

use super::App;

const LOG_INDEX: HeaderName = HeaderName::from_static("mainstay-log-index");
const INDEX_AGE_MS: HeaderName = HeaderName::from_static("mainstay-index-age-ms");

/// Whose state an answer about pins is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consistency {
    /// The leader's, with everything acknowledged before the question.
    Linearizable,
    /// This gateway's replica: at once and also without the others, as old as it says.
    Local,
}

impl Consistency {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Local => "local",
        }
    }

    /// Reads `?consistency=`, with etcd's letters and word for the same choice.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("linearizable" | "l") => Ok(Self::Linearizable),
            Some("local" | "serializable" | "s") => Ok(Self::Local),
            Some(_) => {
                Err(ApiError::invalid("consistency", "expected `linearizable` (l) or `local` (s)"))
            }
        }
    }
}

/// What an answer rests on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Basis {
    pub(super) log_index: u64,
    pub(super) age_ms: Option<u64>,
}

impl Basis {
    /// This gateway's replica as it is now.
    pub(super) fn of_replica(app: &App) -> Self {
        // The age first: what comes in between makes the state younger only.
        let age_ms = app.replica.age_ms();
        let LogIndex(log_index) = app.replica.read(Machine::applied);
        Self { log_index, age_ms }
    }

    /// JSON with this basis in its headers, in place of the replica's.
    pub(super) fn answer(self, body: Value) -> Response {
        let mut response = Json(body).into_response();
        self.write(&mut response);
        response
    }

    fn write(self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(LOG_INDEX, HeaderValue::from(self.log_index));
        if let Some(age_ms) = self.age_ms {
            headers.insert(INDEX_AGE_MS, HeaderValue::from(age_ms));
        }
    }
}

/// Writes the replica's basis on every answer that has none of its own.
pub(super) async fn state(State(app): State<App>, mut response: Response) -> Response {
    if !response.headers().contains_key(LOG_INDEX) {
        Basis::of_replica(&app).write(&mut response);
    }
    response
}

/// A pin of the replica in the form in which members tell of pins. Its time went on since the replica's last entry.
pub(super) fn pin_on_wire(machine: &Machine, pin: &Pin, age_ms: u64) -> v1::Pin {
    let holders = pin.holders.iter().map(|(worker, blocks_held)| v1::PinHolder {
        worker: worker.0,
        name: machine.worker_name(*worker),
        blocks_held: *blocks_held,
    });
    let now_ms = machine.time().now_ms.saturating_add(age_ms);
    let orders = pin.keeping.orders.iter().map(|(worker, order)| v1::PinOrder {
        worker: worker.0,
        name: machine.worker_name(*worker),
        epoch: order.epoch.0,
        age_ms: now_ms.saturating_sub(order.since_ms),
        attempts: order.attempts,
    });
    v1::Pin {
        request: Some(mainstay_proto::convert::pin_to_wire(&pin.request)),
        state: pin.state.name().to_owned(),
        ttl_left_ms: if pin.is_live() { pin.expires_ms.saturating_sub(now_ms) } else { 0 },
        holders: holders.collect(),
        created_index: pin.created_index.0,
        reason: pin.reason.clone(),
        orders: orders.collect(),
        order_attempts: pin.keeping.attempts,
        blocks: u32::try_from(pin.request.blocks.len()).unwrap_or(u32::MAX),
        last_block: pin
            .request
            .blocks
            .last()
            .map(|b| mainstay_proto::convert::u128_to_wire(b.0))
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consistency_has_names_letters_and_a_default() {
        for text in [None, Some("l"), Some("linearizable")] {
            assert_eq!(Consistency::parse(text).ok(), Some(Consistency::Linearizable));
        }
        for text in ["s", "serializable", "local"] {
            assert_eq!(Consistency::parse(Some(text)).ok(), Some(Consistency::Local));
        }
        assert!(Consistency::parse(Some("eventual")).is_err());
        assert!(Consistency::parse(Some("")).is_err());
    }
}
