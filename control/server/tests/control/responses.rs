//! Stored responses through the service: put, read with their chain, cancelled, deleted, and withheld from watchers.

use mainstay_proto::convert::responses::record_to_wire;
use mainstay_types::{Payload, ResponseId, ResponseRecord, ResponseState};

use super::*;

fn record(id: &str, previous: &str, said: &str) -> v1::PutResponse {
    record_to_wire(&ResponseRecord {
        tenant: TenantId::new("acme").unwrap(),
        id: ResponseId::new(id).unwrap(),
        previous: ResponseId::new(previous),
        ttl_ms: 60_000,
        state: ResponseState::Ended,
        payload: Payload::new(said.as_bytes()).unwrap(),
    })
}

fn asked(tenant: &str, id: &str, chain: bool) -> v1::GetResponseRequest {
    v1::GetResponseRequest { tenant: tenant.into(), id: id.into(), chain }
}

fn end(id: &str, cancelled: bool) -> v1::EndResponse {
    v1::EndResponse { tenant: "acme".into(), id: id.into(), cancelled }
}

fn said(reply: &v1::ResponseReply) -> Vec<String> {
    let held = |stored: &v1::StoredResponse| {
        let payload = stored.record.as_ref().unwrap().payload.as_ref().unwrap();
        String::from_utf8(payload.held.to_vec()).unwrap()
    };
    reply.responses.iter().map(held).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_is_read_oldest_first_by_its_tenant_alone_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    c.put_response(record("resp_1", "", "one")).await.unwrap();
    let again = c.put_response(record("resp_1", "", "one")).await.unwrap().into_inner();
    assert_eq!(again.state, u32::from(ResponseState::Ended.number()));
    c.put_response(record("resp_2", "resp_1", "two")).await.unwrap();
    handle.shutdown().await;
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    let chain = c.get_response(asked("acme", "resp_2", true)).await.unwrap().into_inner();
    assert_eq!(said(&chain), ["one", "two"]);
    assert!(chain.responses[0].ttl_left_ms > 0);
    let alone = c.get_response(asked("acme", "resp_2", false)).await.unwrap().into_inner();
    assert_eq!(said(&alone), ["two"]);
    for other in [asked("zeta", "resp_2", true), asked("acme", "resp_3", true)] {
        assert_eq!(c.get_response(other).await.unwrap_err().code(), Code::NotFound);
    }
    c.end_response(end("resp_1", false)).await.unwrap();
    assert_eq!(c.end_response(end("resp_1", false)).await.unwrap_err().code(), Code::NotFound);
    let rest = c.get_response(asked("acme", "resp_2", true)).await.unwrap().into_inner();
    assert_eq!(said(&rest), ["two"]);
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_responses_are_refused_at_the_door_and_running_ones_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    let most = Limits::standard().response_payload_bytes_max as usize;
    let withheld = v1::Payload { bytes: 5, sum: u128_to_wire(7), ..v1::Payload::default() };
    for (odd, code) in [
        (record("resp_1", "", ""), Code::InvalidArgument),
        (record("resp_1", "", &"x".repeat(most + 1)), Code::InvalidArgument),
        (
            v1::PutResponse { payload: Some(withheld), ..record("resp_1", "", "x") },
            Code::InvalidArgument,
        ),
        (v1::PutResponse { state: 3, ..record("resp_1", "", "x") }, Code::InvalidArgument),
        (v1::PutResponse { ttl_ms: 0, ..record("resp_1", "", "x") }, Code::InvalidArgument),
        (record("resp_1", "resp_0", "x"), Code::NotFound),
    ] {
        assert_eq!(c.put_response(odd).await.unwrap_err().code(), code);
    }
    c.put_response(v1::PutResponse { state: 1, ..record("resp_1", "", "x") }).await.unwrap();
    let cancelled = c.end_response(end("resp_1", true)).await.unwrap().into_inner();
    assert_eq!(cancelled.state, u32::from(ResponseState::Cancelled.number()));
    let late = c.put_response(record("resp_1", "", "the end")).await;
    assert_eq!(late.unwrap_err().code(), Code::FailedPrecondition);
    let longest = record("resp_2", "", &"x".repeat(most));
    c.put_response(longest).await.unwrap();
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_learns_of_a_response_and_not_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    c.put_response(record("resp_1", "", "in the image")).await.unwrap();
    let version = u32::from(mainstay_state::VERSION_NEWEST);
    let asked = v1::WatchRequest { version, ..v1::WatchRequest::default() };
    let mut watch = c.watch(asked).await.unwrap().into_inner();
    let mut replica = None;
    c.put_response(record("resp_2", "resp_1", "in an entry")).await.unwrap();
    let tenant = TenantId::new("acme").unwrap();
    let second = ResponseId::new("resp_2").unwrap();
    let until = Instant::now() + SOON;
    let replica = loop {
        assert!(Instant::now() < until, "the entry does not come");
        match watch.message().await.unwrap().unwrap().event.unwrap() {
            Event::Image(image) => {
                replica = Some(Machine::decode(&image.state, Limits::standard()).unwrap());
            }
            Event::Entry(entry) => {
                let machine: &mut Machine = replica.as_mut().expect("the image comes first");
                let proposal = proposal_from_wire(&entry.proposal.unwrap()).unwrap();
                machine.apply(LogIndex(entry.log_index), &proposal);
            }
            _ => {}
        }
        if let Some(machine) = replica.take_if(|m| m.response(&tenant, &second).is_some()) {
            break machine;
        }
    };
    assert_eq!(replica.responses().len(), 2);
    assert!(replica.responses().all(|r| r.record.payload.held().is_none()));
    let digest = handle.group().read(|m| (m.applied() == replica.applied()).then(|| m.digest()));
    assert!(digest.is_none_or(|digest| digest == replica.digest()));
    handle.shutdown().await;
}
