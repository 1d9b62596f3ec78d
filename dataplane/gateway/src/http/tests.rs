//! What requests say beside their conversation, and their places: each keeps its own while a thread works for it,
//! also when its caller has left.

use std::io::Write;

use futures::poll;

use super::*;
use crate::testing::{self, Gate, SOON, places};

const PLACES: usize = 4;

/// A body that is read away from the threads that serve streams.
fn long_body() -> Vec<u8> {
    let text = "x".repeat(100 << 10);
    let message = json!({"role": "user", "content": text});
    json!({"model": "m", "messages": [message], "input": text}).to_string().into_bytes()
}

fn request(body: Vec<u8>, encoding: Option<&'static str>) -> Request<Body> {
    let mut request = Request::new(Body::from(body));
    *request.headers_mut() = testing::headers();
    if let Some(encoding) = encoding {
        let value = HeaderValue::from_static(encoding);
        request.headers_mut().insert(header::CONTENT_ENCODING, value);
    }
    request
}

fn packed() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&long_body()).expect("into memory");
    encoder.finish().expect("into memory")
}

/// Lets a caller leave while its work waits for a thread.
async fn leaves(app: &App, work: impl Future) {
    let gate = Gate::shut();
    let mut work = Box::pin(work);
    assert!(poll!(&mut work).is_pending());
    assert_eq!(app.permits.available_permits(), PLACES - 1, "it was let in");
    drop(work);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(app.permits.available_permits(), PLACES - 1, "the work is still to be done");
    drop(gate);
    places(app, PLACES).await;
}

#[test]
fn a_place_is_kept_until_the_work_has_ended() {
    testing::one_blocking_thread().block_on(async {
        let (app, _stop) = testing::app(PLACES);
        let asked = |body, encoding| handle(app.clone(), Endpoint::Chat, request(body, encoding));
        leaves(&app, asked(long_body(), None)).await;
        leaves(&app, asked(packed(), Some("gzip"))).await;
        leaves(&app, stored::compact(State(app.clone()), request(long_body(), None))).await;
        leaves(&app, pin_create::create_pin(State(app.clone()), request(long_body(), None))).await;
    });
}

#[tokio::test]
async fn a_gateway_waits_for_its_requests_when_it_ends() {
    let gateway = crate::start(testing::config(PLACES)).await.expect("it starts");
    let permit = gateway.app.room().expect("there is room");
    let ending = tokio::spawn(gateway.shutdown());
    // Longer than clients have to be told to leave.
    tokio::time::sleep(door::LEAVE + Duration::from_millis(500)).await;
    assert!(!ending.is_finished(), "a turn in the background goes on");
    drop(permit);
    tokio::time::timeout(SOON, ending).await.expect("in time").expect("no panic");
}

#[test]
fn durations_have_units_and_limits() {
    for (text, ms) in [("5m", 300_000), ("1h", 3_600_000), ("90s", 90_000), ("250ms", 250)] {
        assert_eq!(parse_ttl_ms(&json!(text)), Some(ms));
    }
    assert_eq!(parse_ttl_ms(&json!(1500)), Some(1_500_000));
    assert_eq!(ttl_ms(&json!({"ttl_ms": 1500})), Some(Some(1_500)));
    assert_eq!(ttl_ms(&json!({"ttl": "x", "ttl_ms": 1500})), Some(None));
    assert_eq!(ttl_ms(&json!({"ttl": null})), None);
    for bad in [
        json!("5"),
        json!("h"),
        json!("5y"),
        json!(-1),
        json!("99999999999999999999h"),
        json!(null),
    ] {
        assert_eq!(parse_ttl_ms(&bad), None, "{bad}");
    }
}

#[test]
fn request_ids_differ() {
    assert_ne!(new_request_id(), new_request_id());
}
