//! Generations, from admission to every kind of end.

use mainstay_engine_abi::sdk::{EngineError, Finish, Output};
use mainstay_types::ErrorCode;
use tonic::Code;

use super::*;
use crate::error::WorkerError;

fn submitted(stage: &Stage) -> Vec<u64> {
    stage.engine().notes.lock().submitted.iter().map(|r| r.id).collect()
}

#[tokio::test]
async fn tokens_stream_back_as_they_come() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    let request = v1::GenerateRequest { epoch: stage.worker.epoch().0, ..Stage::request() };
    let mut events = client.generate(request).await.expect("taken").into_inner();
    let id = submitted(&stage)[0];
    assert_eq!(stage.engine().notes.lock().submitted[0].tokens, [1, 2, 3, 4, 5]);
    let first = Output { id, tokens: vec![7], first: true, cached_tokens: 4, ..Output::default() };
    stage.engine().output(first);
    let event = events.message().await.expect("an event").expect("an event");
    assert_eq!((event.tokens.as_slice(), event.first, event.cached_tokens), (&[7][..], true, 4));
    let finish = Some(Finish::Length);
    stage.engine().output(Output { id, tokens: vec![8, 9], finish, ..Output::default() });
    let event = events.message().await.expect("an event").expect("an event");
    assert_eq!(event.tokens, [8, 9]);
    assert_eq!(event.finish(), v1::Finish::Length);
    assert!(events.message().await.expect("the end").is_none());
    assert!(stage.engine().notes.lock().cancelled.is_empty(), "a request that ended is let be");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    let events = client.generate(Stage::request()).await.expect("taken").into_inner();
    let id = submitted(&stage)[0];
    drop(events);
    eventually("cancelled", || stage.engine().notes.lock().cancelled == [id]).await;
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_with_a_reason() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    let stale = v1::GenerateRequest { epoch: 77, ..Stage::request() };
    let refused = client.generate(stale).await.expect_err("stale");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let mut odd = Stage::request();
    odd.tokens.clear();
    assert_eq!(client.generate(odd).await.expect_err("odd").code(), Code::InvalidArgument);
    stage.engine().notes.lock().refuse = Some(EngineError::exhausted("no blocks left", 70));
    let refused = client.generate(Stage::request()).await.expect_err("refused");
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "no blocks left"));
    stage.engine().notes.lock().refuse = None;
    let _one = client.generate(Stage::request()).await.expect("taken");
    let _two = client.generate(Stage::request()).await.expect("taken");
    let refused = client.generate(Stage::request()).await.expect_err("full");
    assert_eq!(refused.code(), Code::ResourceExhausted, "a refused request left no trace");
}

#[tokio::test]
async fn a_long_prompt_fits_through_the_wire() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    let prompt = v1::GenerateRequest { tokens: pack(&vec![99; 1_000_000]), ..Stage::request() };
    let refused = client.generate(prompt).await.expect_err("longer than the context");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("1000000 tokens"), "{}", refused.message());
}

#[tokio::test]
async fn a_crash_sends_requests_elsewhere_and_the_next_engine_starts_empty_under_a_new_epoch() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    stage.engine().store(fake_engine::SPACE, &[1, 2, 3]);
    eventually("indexed", || stage.control.indexed(9) == [1, 2, 3]).await;
    let mut events = client.generate(Stage::request()).await.expect("taken").into_inner();
    let id = submitted(&stage)[0];
    stage.engine().output(Output { id, tokens: vec![7], first: true, ..Output::default() });
    assert_eq!(events.message().await.expect("an event").expect("an event").tokens, [7]);
    stage.engine().crash();
    let last = events.message().await.expect("an event").expect("an event");
    assert_eq!(last.finish(), v1::Finish::Error);
    assert_eq!((last.error_code, last.retryable), (ErrorCode::Unavailable.grpc(), true));
    eventually("a second engine", || stage.opener.opened() == 2).await;
    eventually("ready", || stage.worker.is_ready()).await;
    assert_eq!(stage.worker.epoch().0, 2);
    assert!(stage.control.indexed(9).is_empty(), "what the first engine held is gone");
    let mut events = client.generate(Stage::request()).await.expect("taken").into_inner();
    let id = submitted(&stage)[0];
    stage.engine().finish(id, &[8]);
    assert_eq!(events.message().await.expect("an event").expect("an event").tokens, [8]);
}

#[tokio::test]
async fn an_engine_that_cannot_live_is_given_up() {
    let stage = Stage::set().await;
    *stage.opener.failure.lock() = Some("no device".into());
    stage.engine().crash();
    let end = stage.worker.wait().await;
    assert_eq!(end, Err(WorkerError::EngineGone { restarts: 3, reason: "no device".into() }));
    assert!(!stage.worker.is_ready());
}

#[tokio::test]
async fn an_engine_that_does_not_open_fails_the_start() {
    let control = FakeControl::start().await;
    let opener = Arc::new(FakeOpener::default());
    *opener.failure.lock() = Some("no such file".into());
    let started = start_with(settings(&control), opener as _, FrameLimits::standard()).await;
    assert_eq!(started.err(), Some(WorkerError::Engine("no such file".into())));
}

#[tokio::test]
async fn without_a_control_plane_the_start_fails_with_what_to_check() {
    let control = FakeControl::start().await;
    control.go_away(true);
    let mut settings = settings(&control);
    settings.start_timeout_ms = 300;
    let opener = Arc::new(FakeOpener::default());
    let started = start_with(settings, opener as _, FrameLimits::standard()).await;
    let error = started.err().expect("no control plane").to_string();
    assert!(error.contains(&control.address) && error.contains("--control"), "{error}");
}

#[tokio::test]
async fn a_drain_lets_requests_end_admits_none_and_says_goodbye() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    let mut loads = client.watch_load(v1::WatchLoadRequest {}).await.expect("loads").into_inner();
    let load = loads.message().await.expect("at once").expect("a load");
    assert!(!load.draining);
    let mut events = client.generate(Stage::request()).await.expect("taken").into_inner();
    let draining = tokio::spawn({
        let worker = stage.worker.clone();
        async move { worker.drain().await }
    });
    loop {
        let load = loads.message().await.expect("a load").expect("a load");
        if load.draining {
            break;
        }
    }
    let refused = client.generate(Stage::request()).await.expect_err("draining");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(!draining.is_finished(), "one request is in flight");
    let id = submitted(&stage)[0];
    stage.engine().finish(id, &[7]);
    assert_eq!(events.message().await.expect("an event").expect("an event").tokens, [7]);
    assert_eq!(draining.await.expect("no panic"), Ok(()));
    assert_eq!(stage.control.leaves(), [1]);
    while let Ok(Some(_)) = loads.message().await {}
    let gone = client.describe(v1::DescribeRequest::default()).await;
    assert!(gone.is_err(), "the service is closed");
}

#[tokio::test]
async fn a_drain_that_takes_too_long_sends_the_rest_elsewhere() {
    let stage = Stage::set_with(|s| s.drain_timeout_ms = 100, FrameLimits::standard()).await;
    let mut client = stage.client();
    let mut events = client.generate(Stage::request()).await.expect("taken").into_inner();
    let id = submitted(&stage)[0];
    let (drained, last) = tokio::join!(stage.worker.drain(), events.message());
    assert_eq!(drained, Ok(()));
    let last = last.expect("an event").expect("an event");
    assert!(last.retryable);
    assert_eq!(last.error_code, ErrorCode::Unavailable.grpc());
    assert_eq!(stage.engine().notes.lock().cancelled, [id]);
}

#[tokio::test]
async fn a_description_has_the_files_when_asked_for() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    let brief = client.describe(v1::DescribeRequest { with_files: false }).await.expect("told");
    let brief = brief.into_inner();
    assert_eq!((brief.model.as_str(), brief.vocab, brief.files.len()), ("toy", 100, 0));
    assert_eq!((brief.epoch, brief.engine.as_str()), (1, "test fake 1"));
    let full = client.describe(v1::DescribeRequest { with_files: true }).await.expect("told");
    let files = full.into_inner().files;
    assert_eq!((files[0].name.as_str(), &files[0].content[..]), ("tokenizer.json", &b"{}"[..]));
}

#[tokio::test]
async fn loads_come_at_once_on_change_and_every_second() {
    let stage = Stage::set().await;
    let mut client = stage.client();
    let mut loads = client.watch_load(v1::WatchLoadRequest {}).await.expect("loads").into_inner();
    loads.message().await.expect("at once").expect("a load");
    let began = tokio::time::Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_millis(2_500) {
        let load = loads.message().await.expect("a load").expect("a load");
        assert_eq!((load.epoch, load.blocks_total), (1, 64));
        count += 1;
    }
    assert!((2..=8).contains(&count), "{count} loads of an idle worker in 2.5 s");
    // A busy machine may be late once; heartbeats alone would be late each time.
    let mut prompt = 0;
    for running in 1..=3 {
        let began = tokio::time::Instant::now();
        drop(client.generate(Stage::request()).await.expect("taken"));
        while loads.message().await.expect("a load").expect("a load").running != running {}
        prompt += u32::from(began.elapsed() < Duration::from_millis(400));
        eventually("cancelled", || stage.engine().notes.lock().cancelled.len() == running as usize)
            .await;
    }
    assert!(prompt > 0, "a change does not wait for the next second");
}
