//! Tests of what a generation may ask for.

use bytes::Bytes;
use mainstay_engine_abi::sdk::Info;
use mainstay_proto::tokens::pack;
use mainstay_types::HashKey;
use tonic::Code;

use super::*;
use crate::tests::fake_engine::FakeEngine;

fn life(caps: u64) -> Life {
    let (engine, _receivers) = FakeEngine::open(caps);
    let info = Info { block_tokens: 4, vocab: 100, context_tokens_max: 16, ..Info::default() };
    let retire = tokio::sync::Notify::new();
    Life { number: 1, engine, info, caps, hash_key: HashKey([0; 16]), retire }
}

fn request() -> v1::GenerateRequest {
    v1::GenerateRequest {
        namespace: Bytes::from_static(&[1; 16]),
        tokens: pack(&[1, 2, 3]),
        priority: 7,
        sampling: Some(v1::Sampling {
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            tokens_max: 5,
            ..v1::Sampling::default()
        }),
        ranges: vec![v1::RetentionRange { end: 3, priority: 90, ..v1::RetentionRange::default() }],
        guided: Some(v1::Guided { kind: 1, spec: "{}".to_owned() }),
        ..v1::GenerateRequest::default()
    }
}

#[test]
fn a_sound_request_goes_through_as_it_is() {
    let all = caps::KNOWN;
    let taken = request_from_wire(request(), &life(all)).expect("sound");
    assert_eq!(taken.tokens, [1, 2, 3]);
    assert_eq!(taken.namespace, u128::from_le_bytes([1; 16]));
    assert_eq!((taken.priority, taken.ranges.len(), taken.sampling.tokens_max), (7, 1, 5));
    let form = Guided { kind: GuidedKind::JsonSchema, spec: "{}".to_owned() };
    assert_eq!(taken.guided, Some(form));
}

#[test]
fn hints_that_an_engine_does_not_know_are_left_out() {
    let taken = request_from_wire(request(), &life(caps::NAMESPACE)).expect("sound");
    assert_eq!((taken.priority, taken.ranges.len(), taken.guided), (0, 0, None));
}

#[test]
fn what_is_malformed_is_refused_and_never_guessed() {
    type Break = fn(&mut v1::GenerateRequest);
    let breaks: [(&str, Break); 20] = [
        ("a form of an unknown kind", |r| form(r).kind = 4),
        ("a form of nothing", |r| form(r).spec.clear()),
        ("a form without end", |r| form(r).spec = "x".repeat((1 << 20) + 1)),
        ("a short namespace", |r| r.namespace = Bytes::from_static(&[1; 15])),
        ("no tokens", |r| r.tokens.clear()),
        ("too many tokens", |r| r.tokens = pack(&[1; 17])),
        ("a token out of range", |r| r.tokens = pack(&[1, 2, 100])),
        ("half a token", |r| r.tokens = Bytes::from_static(&[1, 0x80])),
        ("too much sampled before", |r| r.sampled_before = 4),
        ("no sampling", |r| r.sampling = None),
        ("a temperature that is no number", |r| sampling(r).temperature = f32::NAN),
        ("a negative temperature", |r| sampling(r).temperature = -1.0),
        ("top_p of nothing", |r| sampling(r).top_p = 0.0),
        ("min_p above 1", |r| sampling(r).min_p = 1.5),
        ("no repetition penalty", |r| sampling(r).repetition_penalty = 0.0),
        ("an endless penalty", |r| sampling(r).presence_penalty = f32::INFINITY),
        ("no room for output", |r| sampling(r).tokens_max = 0),
        ("too many stop tokens", |r| sampling(r).stop_tokens = vec![1; STOP_TOKENS_MAX + 1]),
        ("a priority above 100", |r| r.ranges[0].priority = 101),
        ("a range that ends before it starts", |r| r.ranges[0].start = 3),
    ];
    for (what, broken) in breaks {
        let mut wire = request();
        broken(&mut wire);
        let refused = request_from_wire(wire, &life(caps::KNOWN)).err();
        assert_eq!(refused.map(|s| s.code()), Some(Code::InvalidArgument), "{what}");
    }
}

fn sampling(request: &mut v1::GenerateRequest) -> &mut v1::Sampling {
    request.sampling.as_mut().expect("set above")
}

fn form(request: &mut v1::GenerateRequest) -> &mut v1::Guided {
    request.guided.as_mut().expect("set above")
}

#[test]
fn logprobs_need_an_engine_that_gives_them() {
    let mut wire = request();
    sampling(&mut wire).logprobs = 1;
    assert!(request_from_wire(wire.clone(), &life(caps::NAMESPACE)).is_err());
    assert!(request_from_wire(wire, &life(caps::LOGPROBS)).is_ok());
}

#[test]
fn a_uuid_is_a_trace_id_and_nothing_else_is() {
    let uuid = "req-00000000-0000-0000-0000-0000000000ff";
    assert_eq!(trace(uuid), 0xff);
    assert_eq!(trace("000000000000000000000000000000aa"), 0xaa);
    for other in
        ["", "short", "ü0000000000000000000000000000000000", "+000000000000000000000000000000f"]
    {
        assert_eq!(trace(other), 0, "{other}");
    }
}

#[test]
fn a_refusal_says_when_to_come_again() {
    let status = refusal(&EngineError::exhausted("full", 250));
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.metadata().get(RETRY_METADATA).and_then(|v| v.to_str().ok()), Some("250"));
    let status = refusal(&EngineError::unavailable("gone"));
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.metadata().get(RETRY_METADATA).is_none());
}
