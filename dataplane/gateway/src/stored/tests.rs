//! Stored responses of a gateway that reaches no control plane: what it can still continue, and what it must not.

use mainstay_chat::{Block, Role};
use mainstay_types::Command;
use serde_json::json;

use super::*;

fn stored(replica: &Replica) -> Stored {
    // Nobody listens there.
    let control = ControlPlane::new(&["127.0.0.1:9".to_owned()]).expect("an address");
    Stored::new(control, replica.clone(), ParseOptions::default())
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a name")
}

fn said(text: &str) -> Arc<Conversation> {
    let mut conversation = Conversation::default();
    conversation.push(Role::User, vec![Block::text(text)]);
    Arc::new(conversation)
}

fn id(text: &str) -> ResponseId {
    ResponseId::new(text).expect("a name")
}

#[tokio::test]
async fn a_gateway_alone_continues_what_it_made_and_waits_for_nobody() {
    let stored = stored(&Replica::new());
    let turn = FinishedTurn {
        id: "resp_1".into(),
        previous: None,
        response: json!({"output": []}),
        input: Vec::new(),
        before: None,
        conversation: said("hi"),
    };
    let begun = std::time::Instant::now();
    stored.put(&tenant("acme"), turn).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let found = stored.history(&tenant("acme"), "resp_1", None, ()).await;
    assert_eq!(found.expect("it is in memory").0, said("hi"));
}

#[tokio::test]
async fn what_the_log_forgot_is_not_continued_from_memory() {
    let replica = Replica::new();
    let stored = stored(&replica);
    let record = ResponseRecord {
        tenant: tenant("acme"),
        id: id("resp_1"),
        previous: None,
        ttl_ms: 60_000,
        state: ResponseState::Ended,
        payload: Payload::new(b"x").expect("short"),
    };
    let second =
        ResponseRecord { id: id("resp_2"), previous: Some(id("resp_1")), ..record.clone() };
    replica.test_apply(Command::PutResponse(record));
    replica.test_apply(Command::PutResponse(second));
    let remembered = Remembered { conversation: said("hi"), logged: true };
    stored.memory.put(&tenant("acme"), &id("resp_2"), remembered);
    let found = stored.history(&tenant("acme"), "resp_2", None, ()).await;
    assert_eq!(found.expect("all of its chain is in the log").0, said("hi"));
    let (tenant, id) = (tenant("acme"), id("resp_1"));
    replica.test_apply(Command::EndResponse { tenant: tenant.clone(), id, cancelled: false });
    let error =
        stored.history(&tenant, "resp_2", None, ()).await.expect_err("its beginning is gone");
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_connection_has_its_last_response_once() {
    let stored = stored(&Replica::new());
    let last = LastTurn::default();
    last.put("resp_1".into(), said("hi"));
    let found = stored.history(&tenant("acme"), "resp_1", Some(&last), ()).await;
    assert_eq!(found.expect("the connection has it").0, said("hi"));
    assert!(last.take("resp_1").is_none());
    let odd = stored.history(&tenant("acme"), "", None, ()).await.expect_err("no id");
    assert_eq!(odd.code.as_deref(), Some("previous_response_not_found"));
}

#[test]
fn a_failed_turn_says_why() {
    let running = RunningTurn {
        tenant: tenant("acme"),
        id: "resp_1".into(),
        previous: None,
        response: json!({"status": "queued", "error": null}),
        input: Vec::new(),
    };
    let failed = failed(running, &ApiError::context_length(9, 8));
    assert_eq!(failed.response["status"], "failed");
    assert_eq!(failed.response["error"]["code"], "context_length_exceeded");
}
