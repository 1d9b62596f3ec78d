//! Pins over streams: many callers on one, refusals that end nothing else, a leader that goes, a member that stops.

use futures::future::join_all;
use mainstay_proto::client::ControlPlane;
use mainstay_proto::v1::pin_write::Change;

use super::cluster::Cluster;
use super::*;

fn plane(handle: &ControlHandle) -> ControlPlane {
    ControlPlane::new(&[handle.address().to_string()]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_caller_is_answered_for_its_own() {
    let dir = TempDir::new().unwrap();
    let handle = single(&dir, 60_000).await;
    let plane = plane(&handle);
    let made = join_all((1..=200).map(|id| {
        let plane = plane.clone();
        async move {
            // Every tenth has no time to live, which is refused.
            let ttl_ms = if id % 10 == 0 { 0 } else { 600_000 };
            (id, plane.write_pin(SOON, Change::Put(pin(id, ttl_ms))).await)
        }
    }))
    .await;
    for (id, answer) in made {
        if id % 10 == 0 {
            assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument, "{id}");
            continue;
        }
        let answered = answer.unwrap().pin.unwrap();
        let request = answered.request.unwrap();
        assert_eq!(request.id, u128_to_wire(id));
        assert!(request.blocks.is_empty(), "its owner has the blocks");
        assert_eq!((answered.blocks, answered.last_block), (2, u128_to_wire(id * 10 + 2)));
    }
    let id = u128_to_wire(7);
    let longer = Change::Extend(v1::ExtendPin { id: id.clone(), ttl_ms: 900_000 });
    let extended = plane.write_pin(SOON, longer).await.unwrap().pin.unwrap();
    assert!(extended.ttl_left_ms > 600_000, "{}", extended.ttl_left_ms);
    let released = Change::Release(v1::ReleasePin { id });
    let released = plane.write_pin(SOON, released).await.unwrap().pin.unwrap();
    assert_eq!(released.state, "released");
    let unknown = Change::Release(v1::ReleasePin { id: u128_to_wire(999) });
    assert_eq!(plane.write_pin(SOON, unknown).await.unwrap_err().code(), Code::NotFound);
    let kept = client(&handle).list_pins(v1::ListPinsRequest::default()).await.unwrap();
    assert_eq!(kept.get_ref().pins.len(), 179);
    // A stream that is open does not hold up the end.
    let begun = Instant::now();
    handle.shutdown().await;
    assert!(begun.elapsed() < SOON);
    let gone = plane.write_pin(Duration::from_millis(300), Change::Put(pin(500, 1_000))).await;
    assert_eq!(gone.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_outlives_the_leader() {
    let mut cluster = Cluster::three().await;
    let plane = cluster.plane();
    let mut lives = 1;
    for round in 0..3_u128 {
        let writes = join_all((1..=50).map(|n| {
            let (plane, id) = (plane.clone(), round * 100 + n);
            async move { plane.write_pin(SOON, Change::Put(pin(id, 600_000))).await.map(|_| id) }
        }));
        let writes = tokio::spawn(writes);
        let leader = cluster.leader().await;
        if round == 1 {
            cluster.running.remove(&leader).unwrap().shutdown().await;
        }
        for made in writes.await.unwrap() {
            let id = u128_to_wire(made.unwrap());
            let request = v1::GetPinRequest { id, local: false };
            plane.call(SOON, async |mut c| c.get_pin(request.clone()).await).await.unwrap();
            lives += 1;
        }
    }
    assert_eq!(lives, 151);
    cluster.agree().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_nothing_is_refused_and_the_stream_goes_on() {
    let dir = TempDir::new().unwrap();
    let handle = single(&dir, 60_000).await;
    let nothing = v1::PinWrite { call: 4, ..v1::PinWrite::default() };
    let put = v1::PinWrite {
        call: 5,
        change: Some(Change::Put(pin(1, 600_000))),
        // What cannot be read says nothing.
        traceparent: "00-not-a-trace".to_owned(),
    };
    let writes = tokio_stream::iter([nothing, put]);
    let mut answers = client(&handle).write_pins(writes).await.unwrap().into_inner();
    let mut by_call = std::collections::BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        by_call.insert(answer.call, answer.code);
    }
    assert_eq!(by_call, [(4, Code::InvalidArgument as i32), (5, 0)].into());
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_read_no_answers_hold_up_nobody() {
    let dir = TempDir::new().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut deaf = Vec::new();
    for _ in 0..6 {
        let writes = tokio_stream::iter((1..=6_000).map(|call| {
            let id = u128_to_wire(u128::from(call));
            let change = Some(Change::Extend(v1::ExtendPin { id, ttl_ms: 1_000 }));
            v1::PinWrite { call, change, ..v1::PinWrite::default() }
        }));
        deaf.push(client(&handle).write_pins(writes).await.unwrap());
    }
    // Long enough for all that they may have under way to be so.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for id in 1..=20 {
        let made = plane(&handle).write_pin(SOON, Change::Put(pin(id, 600_000))).await;
        assert!(made.is_ok(), "{made:?}");
    }
    drop(deaf);
    handle.shutdown().await;
}
