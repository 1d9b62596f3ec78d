//! Pins that keep their tokens: who gets to see them, and how the leader orders what a pin lacks.

use mainstay_proto::convert::pin_from_wire;
use mainstay_types::{BlockHasher, Epoch, HashKey, KeptTokens, WorkerId};

use super::*;

/// A pin of two blocks of 16 tokens, as a gateway makes it.
fn kept_pin(key: &[u8], id: u128, tokens: &[u32]) -> v1::PutPin {
    let key = HashKey(key.try_into().unwrap());
    let blocks = BlockHasher::hash_prompt(key, NamespaceId(9), 16, tokens);
    pin_to_wire(&PinRequest {
        blocks,
        prefix_tokens: tokens.len() as u32,
        ttl_ms: 60_000,
        tokens: Some(KeptTokens::new("tiny", "1", tokens)),
        ..pin_from_wire(&pin(id, 60_000)).unwrap()
    })
}

fn ask(id: u128, of: &v1::RegisterReply) -> v1::PinTokensRequest {
    v1::PinTokensRequest { id: u128_to_wire(id), worker: of.worker, epoch: of.epoch }
}

async fn orders(c: &mut ControlClient<Channel>, id: u128) -> Vec<v1::PinOrder> {
    let request = v1::GetPinRequest { id: u128_to_wire(id), local: false };
    c.get_pin(request).await.unwrap().into_inner().pin.unwrap().orders
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_pin_is_ordered_and_only_whom_it_is_ordered_from_sees_its_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let handle = single(&dir, 60_000).await;
    let mut c = client(&handle);
    let tokens: Vec<u32> = (100..132).collect();
    let [first, second] = [
        register(&mut c, v1::RegisterWorker { model: model(), ..worker("a", 1) }).await,
        register(&mut c, v1::RegisterWorker { model: model(), ..worker("b", 1) }).await,
    ];
    let good = kept_pin(&first.hash_key, 1, &tokens);
    let mut other = good.clone();
    other.tokens = kept_pin(&first.hash_key, 1, &(0..32).collect::<Vec<u32>>()).tokens;
    let mut withheld = good.clone();
    mainstay_proto::convert::withhold_tokens(&mut withheld);
    for (wrong, word) in [(other, "not those"), (withheld, "withheld")] {
        let refused = c.create_pin(wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(word), "{refused}");
    }
    let made = c.create_pin(good.clone()).await.unwrap().into_inner().pin.unwrap();
    let shown = made.request.unwrap().tokens.unwrap();
    assert_eq!((shown.packed.len(), shown.count), (0, 32), "an answer shows tokens");
    let again = c.create_pin(good).await.unwrap().into_inner().pin.unwrap();
    assert_eq!(again.created_index, made.created_index, "a retry is the same pin");

    // The first worker has it, and goes.
    let report = v1::PinReport { id: u128_to_wire(1), blocks_held: 2 };
    let request = v1::PublishRequest { pins: vec![report], ..publish(&first, vec![]) };
    c.publish(request).await.unwrap();
    let refused = c.pin_tokens(ask(1, &second)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "it has no order");
    c.leave(v1::LeaveRequest { worker: first.worker, epoch: first.epoch }).await.unwrap();
    let order = eventually("an order", async || orders(&mut c, 1).await.pop()).await;
    assert_eq!((order.worker, order.name.as_str(), order.attempts), (second.worker, "b", 1));
    let got = c.pin_tokens(ask(1, &second)).await.unwrap().into_inner();
    assert_eq!(mainstay_types::kept::unpack(&got.packed), Some(tokens.clone()));
    assert_eq!(c.pin_tokens(ask(1, &first)).await.unwrap_err().code(), Code::NotFound);
    let late = v1::PinTokensRequest { epoch: 9, ..ask(1, &second) };
    assert_eq!(c.pin_tokens(late).await.unwrap_err().code(), Code::NotFound);

    // A watcher has the same state without the tokens.
    let mut replica = Replica::new();
    let at = handle.group().read(Machine::applied);
    replica.follow(&mut c, at, false).await;
    let kept = |m: &Machine| m.pin(PinId(1)).unwrap().request.tokens.clone().unwrap();
    assert_eq!(kept(&replica.machine).tokens(), None);
    assert_eq!(handle.group().read(kept).tokens(), Some(tokens));
    let order = replica.machine.pin(PinId(1)).unwrap().keeping.orders[&WorkerId(second.worker)];
    assert_eq!(order.epoch, Epoch(second.epoch));
    let more = kept_pin(&first.hash_key, 2, &(7..39).collect::<Vec<u32>>());
    c.create_pin(more).await.unwrap();
    let at = handle.group().read(Machine::applied);
    replica.follow(&mut c, at, false).await;
    let seen = replica.machine.pin(PinId(2)).unwrap().request.tokens.clone().unwrap();
    assert_eq!((seen.count(), seen.tokens()), (32, None), "an entry shows tokens");

    // Whole again, nothing is asked for any more.
    let report = v1::PinReport { id: u128_to_wire(1), blocks_held: 2 };
    let request = v1::PublishRequest { pins: vec![report], ..publish(&second, vec![]) };
    c.publish(request).await.unwrap();
    assert!(orders(&mut c, 1).await.is_empty());
    assert_eq!(c.pin_tokens(ask(1, &second)).await.unwrap_err().code(), Code::NotFound);
    handle.shutdown().await;
}

fn model() -> Option<v1::ModelSpec> {
    Some(v1::ModelSpec {
        name: "tiny".into(),
        revision: "1".into(),
        block_tokens: 16,
        context_tokens_max: 4096,
    })
}
