//! Tests of the requests in flight.

use mainstay_engine_abi::sdk::Logprob;

use super::*;

fn output(id: u64, tokens: &[u32]) -> Output {
    Output { id, tokens: tokens.to_vec(), ..Output::default() }
}

fn deliver(flights: &Flights, outputs: Vec<Output>) -> Vec<u64> {
    flights.deliver(outputs, Instant::now(), &Meter::default())
}

#[tokio::test]
async fn outputs_that_wait_become_one_event_in_order() {
    let flights = Flights::new();
    let flight = flights.admit(1, 10, 4).expect("room");
    let logprob = |position| Logprob { token: 7, logprob: -0.5, position, rank: 0 };
    let first = Output {
        first: true,
        cached_tokens: 3,
        prefill_us: 70,
        logprobs: vec![logprob(1)],
        ..output(flight.id, &[1, 2])
    };
    let second = Output { logprobs: vec![logprob(0)], ..output(flight.id, &[3]) };
    let last = Output { finish: Some(Finish::Stop), cached_tokens: 4, ..output(flight.id, &[4]) };
    deliver(&flights, vec![first, second]);
    deliver(&flights, vec![last]);
    let event = flight.next().await.expect("an event");
    assert_eq!(event.tokens, [1, 2, 3, 4]);
    assert!(event.first);
    assert_eq!((event.prefill_us, event.cached_tokens), (70, 4));
    assert_eq!(event.finish(), v1::Finish::Stop);
    let positions: Vec<u32> = event.logprobs.iter().map(|l| l.position).collect();
    assert_eq!(positions, [1, 2], "positions are within the merged tokens");
    assert!(flight.next().await.is_none());
    assert_eq!(*flights.count().borrow(), 0);
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_cut_off_and_the_engine_told() {
    let flights = Flights::new();
    let flight = flights.admit(1, 1, 4).expect("room");
    let chunk = vec![1; TOKENS_WAITING_MAX / 2 + 1];
    assert!(deliver(&flights, vec![output(flight.id, &chunk)]).is_empty());
    assert_eq!(deliver(&flights, vec![output(flight.id, &chunk)]), [flight.id]);
    let event = flight.next().await.expect("what was there, with the end");
    assert_eq!(event.finish(), v1::Finish::Error);
    assert_eq!(event.error_code, ErrorCode::ResourceExhausted.grpc());
    assert_eq!(*flights.count().borrow(), 1, "in flight until the engine ends it");
    let end = Output { finish: Some(Finish::Cancelled), ..output(flight.id, &[]) };
    deliver(&flights, vec![end]);
    assert_eq!(*flights.count().borrow(), 0);
    assert!(flight.next().await.is_none());
}

#[tokio::test]
async fn a_detached_request_counts_until_the_engine_has_ended_it() {
    let flights = Flights::new();
    let flight = flights.admit(1, 1, 4).expect("room");
    assert!(flight.detach(), "to be cancelled");
    deliver(&flights, vec![output(flight.id, &[1])]);
    assert!(flight.slot.lock().waiting.is_none(), "nobody will read it");
    assert_eq!(*flights.count().borrow(), 1);
    let end = Output { finish: Some(Finish::Cancelled), ..output(flight.id, &[]) };
    deliver(&flights, vec![end]);
    assert_eq!(*flights.count().borrow(), 0);
    assert!(!flight.detach(), "nothing to cancel any more");
}

#[tokio::test]
async fn an_engines_end_fails_its_own_requests_only_and_keeps_their_tokens() {
    let flights = Flights::new();
    let old = flights.admit(1, 1, 4).expect("room");
    let new = flights.admit(2, 1, 4).expect("room");
    deliver(&flights, vec![output(old.id, &[5])]);
    assert_eq!(flights.fail_all(1, &Failure::unavailable("gone")), [old.id]);
    let event = old.next().await.expect("an event");
    assert_eq!(event.tokens, [5]);
    assert!(event.retryable);
    assert_eq!(event.error_code, ErrorCode::Unavailable.grpc());
    assert_eq!(*flights.count().borrow(), 1);
    deliver(&flights, vec![output(new.id, &[6])]);
    assert_eq!(new.next().await.expect("an event").tokens, [6]);
}

#[test]
fn the_table_is_bounded_in_requests_and_in_prompt_tokens() {
    let flights = Flights::new();
    let first = flights.admit(1, 1, 1).expect("room");
    assert_eq!(flights.admit(1, 1, 1).err(), Some(Full::Requests));
    flights.remove(first.id);
    flights.remove(first.id);
    let large = PROMPT_TOKENS_MAX as u32;
    let whole = flights.admit(1, large, 8).expect("room");
    assert_eq!(flights.admit(1, 1, 8).err(), Some(Full::PromptTokens));
    flights.remove(whole.id);
    assert!(flights.admit(1, 1, 8).is_ok());
}

#[tokio::test]
async fn an_engines_error_keeps_its_code_and_says_whether_to_go_elsewhere() {
    for (rc, code, elsewhere) in [
        (-14, ErrorCode::Unavailable, true),
        (-8, ErrorCode::ResourceExhausted, true),
        (-13, ErrorCode::Internal, false),
        (-3, ErrorCode::InvalidArgument, false),
        (-77, ErrorCode::Internal, false),
    ] {
        let flights = Flights::new();
        let flight = flights.admit(1, 1, 1).expect("room");
        let finish = Some(Finish::Error { rc, message: "why".into() });
        deliver(&flights, vec![Output { finish, ..output(flight.id, &[]) }]);
        let event = flight.next().await.expect("an event");
        assert_eq!((event.error_code, event.retryable), (code.grpc(), elsewhere), "rc {rc}");
        assert_eq!(event.error, "why");
    }
}

#[test]
fn the_pace_is_measured_from_outputs() {
    let flights = Flights::new();
    let meter = Meter::default();
    let flight = flights.admit(1, 116, 1).expect("room");
    let began = Instant::now();
    let first =
        Output { first: true, cached_tokens: 16, prefill_us: 2_000, ..output(flight.id, &[1]) };
    flights.deliver(vec![first], began, &meter);
    assert_eq!(meter.pace().prefill_us_per_token, 20.0);
    let later = began + std::time::Duration::from_millis(30);
    // Three steps in one batch took 30 ms together.
    flights.deliver((0..3).map(|_| output(flight.id, &[1])).collect(), later, &meter);
    assert!((meter.pace().decode_us_per_step - 10_000.0).abs() < 1.0);
}
