//! A double's events: numbered, published and kept for replay, by the crate `zeromq`, which the engine does not use.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rmp::encode::{write_array_len, write_f64, write_map_len, write_nil, write_str, write_u64};
use tokio::sync::mpsc;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::cache::Change;
use super::{Kind, Setting};

/// Batches that are kept.
const KEPT: usize = 10_000;

struct Publish {
    payload: Vec<u8>,
    is_lost: bool,
}

type Kept = Arc<Mutex<VecDeque<(u64, Vec<u8>)>>>;

/// Takes batches; the rest happens elsewhere.
pub(crate) struct Publisher {
    sender: mpsc::UnboundedSender<Publish>,
}

fn message(frames: &[&[u8]]) -> ZmqMessage {
    let mut message = ZmqMessage::from(frames[0].to_vec());
    frames[1..].iter().for_each(|frame| message.push_back(frame.to_vec().into()));
    message
}

impl Publisher {
    /// Listens at these addresses; answers with those that it got.
    pub(crate) async fn start(
        events: SocketAddr,
        replay: SocketAddr,
    ) -> (Self, SocketAddr, SocketAddr) {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Publish>();
        let kept: Kept = Kept::default();
        let mut publisher = PubSocket::new();
        let events = publisher.bind(&format!("tcp://{events}")).await.expect("the events' port");
        let to_keep = Arc::clone(&kept);
        tokio::spawn(async move {
            let mut number = 0_u64;
            while let Some(publish) = receiver.recv().await {
                let bytes = number.to_be_bytes();
                {
                    let mut kept = to_keep.lock().expect("no holder panics");
                    kept.push_back((number, publish.payload.clone()));
                    if kept.len() > KEPT {
                        kept.pop_front();
                    }
                }
                number += 1;
                if !publish.is_lost {
                    // Nobody may be there.
                    let _ = publisher.send(message(&[b"", &bytes, &publish.payload])).await;
                }
            }
        });
        let mut router = RouterSocket::new();
        let replay = router.bind(&format!("tcp://{replay}")).await.expect("the replay's port");
        tokio::spawn(answer(router, Arc::clone(&kept)));
        let address = |endpoint: zeromq::Endpoint| {
            let text = endpoint.to_string();
            text.trim_start_matches("tcp://").parse().expect("an address")
        };
        (Self { sender }, address(events), address(replay))
    }

    pub(crate) fn publish(&self, setting: &Setting, changes: &[Change], is_lost: bool) {
        if !changes.is_empty() && setting.kind != Kind::LlamaCpp {
            let payload = encode(setting, changes);
            let _ = self.sender.send(Publish { payload, is_lost });
        }
    }
}

async fn answer(mut router: RouterSocket, kept: Kept) {
    while let Ok(asked) = router.recv().await {
        let asked = asked.into_vec();
        let [identity, _, start] = asked.as_slice() else { continue };
        let Ok(start) = <[u8; 8]>::try_from(&start[..]) else { continue };
        let start = u64::from_be_bytes(start);
        let batches: Vec<_> = {
            let kept = kept.lock().expect("no holder panics");
            kept.iter().filter(|(number, _)| *number >= start).cloned().collect()
        };
        for (number, payload) in batches {
            let frames = [&identity[..], b"", b"", &number.to_be_bytes(), &payload];
            let _ = router.send(message(&frames)).await;
        }
        let _ = router.send(message(&[&identity[..], b"", b"", &[0xff; 8], b""])).await;
    }
}

/// A batch in the words of the server that is played.
pub(crate) fn encode(setting: &Setting, changes: &[Change]) -> Vec<u8> {
    let mut out = Vec::new();
    write_array_len(&mut out, 3).expect("memory");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    write_f64(&mut out, now.expect("after 1970").as_secs_f64()).expect("memory");
    write_array_len(&mut out, changes.len() as u32).expect("memory");
    for change in changes {
        match setting.kind {
            Kind::VllmOld => encode_array(&mut out, setting, change),
            _ => encode_map(&mut out, setting, change),
        }
    }
    write_u64(&mut out, 0).expect("memory");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    write_str(out, text).expect("memory");
}

fn numbers(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = u64>) {
    write_array_len(out, values.len() as u32).expect("memory");
    for value in values {
        write_u64(out, value).expect("memory");
    }
}

fn parent_or_nil(out: &mut Vec<u8>, parent: Option<u64>) {
    match parent {
        Some(parent) => {
            write_u64(out, parent).expect("memory");
        }
        None => write_nil(out).expect("memory"),
    }
}

fn encode_map(out: &mut Vec<u8>, setting: &Setting, change: &Change) {
    match change {
        Change::Cleared => {
            write_map_len(out, 1).expect("memory");
            text(out, "type");
            text(out, "AllBlocksCleared");
        }
        Change::Removed(hashes) => {
            write_map_len(out, 3).expect("memory");
            text(out, "type");
            text(out, "BlockRemoved");
            text(out, "block_hashes");
            numbers(out, hashes.iter().copied());
            text(out, "medium");
            text(out, "GPU");
        }
        Change::Stored { hashes, parent, tokens, salt } => {
            write_map_len(out, 8).expect("memory");
            text(out, "type");
            text(out, "BlockStored");
            text(out, "block_hashes");
            numbers(out, hashes.iter().copied());
            text(out, "parent_block_hash");
            parent_or_nil(out, *parent);
            text(out, "token_ids");
            numbers(out, tokens.iter().map(|token| u64::from(*token)));
            text(out, "block_size");
            write_u64(out, setting.block_tokens as u64).expect("memory");
            text(out, "lora_id");
            write_nil(out).expect("memory");
            text(out, "medium");
            text(out, "GPU");
            if setting.kind == Kind::Sglang {
                text(out, "cache_salt");
                match salt {
                    Some(salt) => text(out, salt),
                    None => write_nil(out).expect("memory"),
                }
            } else {
                text(out, "extra_keys");
                write_array_len(out, hashes.len() as u32).expect("memory");
                for block in 0..hashes.len() {
                    match salt {
                        Some(salt) if block == 0 => {
                            write_array_len(out, 1).expect("memory");
                            text(out, salt);
                        }
                        _ => write_nil(out).expect("memory"),
                    }
                }
            }
        }
    }
}

fn encode_array(out: &mut Vec<u8>, setting: &Setting, change: &Change) {
    match change {
        Change::Cleared => {
            write_array_len(out, 1).expect("memory");
            text(out, "AllBlocksCleared");
        }
        Change::Removed(hashes) => {
            write_array_len(out, 2).expect("memory");
            text(out, "BlockRemoved");
            numbers(out, hashes.iter().copied());
        }
        Change::Stored { hashes, parent, tokens, .. } => {
            write_array_len(out, 6).expect("memory");
            text(out, "BlockStored");
            numbers(out, hashes.iter().copied());
            parent_or_nil(out, *parent);
            numbers(out, tokens.iter().map(|token| u64::from(*token)));
            write_u64(out, setting.block_tokens as u64).expect("memory");
            write_nil(out).expect("memory");
        }
    }
}
