//! WebSockets: what becomes of frames and errors, whom a connection lets in, and how it ends with its gateway.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use futures::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as ClientMessage;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::*;
use crate::testing::{self, Gate, SOON, places};

type Client = WebSocketStream<TcpStream>;

async fn served(app: &App) -> SocketAddr {
    let router = Router::new().route("/v1/responses", get(connect)).with_state(app.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(axum::serve(listener, router).into_future());
    address
}

async fn client(app: &App) -> Client {
    let address = served(app).await;
    let request = format!("ws://{address}/v1/responses").into_client_request();
    let mut request = request.expect("an address");
    request.headers_mut().extend(testing::headers());
    let stream = TcpStream::connect(address).await.expect("it listens");
    tokio_tungstenite::client_async(request, stream).await.expect("it takes connections").0
}

/// A request of about so many bytes.
fn asked(bytes: usize) -> ClientMessage {
    let body = json!({"type": "response.create", "model": "m", "input": "x".repeat(bytes)});
    ClientMessage::text(body.to_string())
}

/// Long enough to be read by a thread that a gate holds up.
fn asked_long() -> ClientMessage {
    asked(100 << 10)
}

async fn next(client: &mut Client) -> ClientMessage {
    let message = tokio::time::timeout(SOON, client.next()).await;
    message.expect("in time").expect("the connection is open").expect("sound")
}

/// The message of the next event, which is a failure.
async fn refusal(client: &mut Client) -> String {
    let message = next(client).await;
    let event: Value = serde_json::from_str(message.to_text().expect("text")).expect("JSON");
    assert_eq!(event["type"], "error", "{event}");
    event["error"]["message"].as_str().expect("a message").to_owned()
}

async fn expect_farewell(client: &mut Client) {
    let ClientMessage::Close(Some(frame)) = next(client).await else {
        panic!("a gateway that ends says so");
    };
    assert_eq!(frame.code, CloseCode::Away);
}

/// Whether nothing comes for a while.
async fn is_quiet(client: &mut Client) -> bool {
    tokio::time::timeout(Duration::from_millis(200), client.next()).await.is_err()
}

#[tokio::test]
async fn an_idle_connection_ends_with_its_gateway() {
    let (app, stop) = testing::app(8);
    let mut client = client(&app).await;
    assert!(is_quiet(&mut client).await);
    let drained = tokio::time::timeout(Duration::from_millis(50), app.drained()).await;
    assert!(drained.is_err(), "a connection is open");
    stop.send_replace(true);
    expect_farewell(&mut client).await;
    drop(client);
    tokio::time::timeout(SOON, app.drained()).await.expect("nobody is left");
}

#[test]
fn a_gateway_that_ends_answers_what_has_come() {
    testing::one_blocking_thread().block_on(async {
        let (app, stop) = testing::app(8);
        let mut client = client(&app).await;
        let gate = Gate::shut();
        client.send(asked_long()).await.expect("sent");
        client.send(asked(1)).await.expect("sent");
        places(&app, 6).await;
        stop.send_replace(true);
        assert!(is_quiet(&mut client).await, "it waits for the answer");
        client.send(asked(1)).await.expect("sent");
        assert!(is_quiet(&mut client).await);
        drop(gate);
        for _ in 0..2 {
            let told = refusal(&mut client).await;
            assert!(told.contains("no worker"), "{told}");
        }
        let told = refusal(&mut client).await;
        assert!(told.contains("this gateway ends"), "{told}");
        expect_farewell(&mut client).await;
        drop(client);
        tokio::time::timeout(SOON, app.drained()).await.expect("nobody is left");
    });
}

#[test]
fn what_finds_no_place_is_refused_in_its_turn() {
    testing::one_blocking_thread().block_on(async {
        let (app, _stop) = testing::app(1);
        let mut client = client(&app).await;
        let gate = Gate::shut();
        client.send(asked_long()).await.expect("sent");
        places(&app, 0).await;
        client.send(asked(1)).await.expect("sent");
        client.send(ClientMessage::Ping(Bytes::new())).await.expect("sent");
        let pong = next(&mut client).await;
        assert!(pong.is_pong(), "it has read all of it, and tells nothing out of turn: {pong}");
        drop(gate);
        let told = refusal(&mut client).await;
        assert!(told.contains("no worker"), "{told}");
        let told = refusal(&mut client).await;
        assert!(told.contains("no room"), "{told}");
        client.send(asked(1)).await.expect("sent");
        let told = refusal(&mut client).await;
        assert!(told.contains("no worker"), "its place is free again: {told}");
    });
}

#[test]
fn no_more_is_read_than_may_wait() {
    testing::one_blocking_thread().block_on(async {
        let (app, _stop) = testing::app(8);
        let (mut asks, _answers) = client(&app).await.split();
        let gate = Gate::shut();
        tokio::spawn(async move {
            asks.send(asked_long()).await.expect("sent");
            for _ in 0..3 {
                asks.send(asked(WAITING_BYTES_MAX * 2 / 3)).await.expect("sent");
            }
        });
        // One is answered, the second of those that wait is over the limit.
        places(&app, 5).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        places(&app, 5).await;
        drop(gate);
        places(&app, 8).await;
    });
}

#[test]
fn frames_become_messages_and_comments_none() {
    let frame = b"event: a\ndata: {\"x\":1}\n\nevent: b\ndata: {\"y\":\"\\n\"}\n\n: keepalive\n\n";
    assert_eq!(events(frame), ["{\"x\":1}", "{\"y\":\"\\n\"}"]);
}

#[test]
fn an_error_has_a_code_and_a_status() {
    let error = ApiError::invalid("input", "is odd");
    let event = error_event(&error, 400);
    assert_eq!((&event["type"], &event["status"]), (&json!("error"), &json!(400)));
    assert_eq!(event["error"]["code"], "invalid_request_error");
    assert_eq!(event["error"]["param"], "input");
    let event = error_event(&error.with_code("previous_response_not_found"), 404);
    assert_eq!(event["error"]["code"], "previous_response_not_found");
}

#[test]
fn pages_of_others_are_told_from_clients() {
    let headers = |pairs: &[(header::HeaderName, &str)]| -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("text"))).collect()
    };
    let host = (header::HOST, "127.0.0.1:8000");
    assert!(same_origin(&headers(std::slice::from_ref(&host))));
    assert!(same_origin(&headers(&[host.clone(), (header::ORIGIN, "http://127.0.0.1:8000")])));
    for other in ["http://evil.example", "null", "http://127.0.0.1:80001", "127.0.0.1:8000"] {
        assert!(!same_origin(&headers(&[host.clone(), (header::ORIGIN, other)])), "{other}");
    }
    assert!(!same_origin(&headers(&[(header::ORIGIN, "http://127.0.0.1:8000")])));
}

#[test]
fn a_continuation_takes_what_it_continues() {
    let last = LastTurn::default();
    last.put("resp_1".into(), Arc::default());
    assert!(last.take("resp_2").is_none());
    assert!(last.take("resp_1").is_some());
    assert!(last.take("resp_1").is_none(), "it was taken");
}
