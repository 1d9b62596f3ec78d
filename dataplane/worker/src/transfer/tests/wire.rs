//! A bit that is flipped on the way between two workers: seen, counted, its source left alone for a while, and the
//! tokens computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mainstay_types::{BlockHasher, HashKey, NamespaceId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::tests::fake_control::HASH_KEY;

/// What a relay does, and did.
#[derive(Default)]
struct Wire {
    /// Answers in which it still is to flip a bit.
    to_flip: AtomicUsize,
    flipped: AtomicUsize,
    /// Answers with blocks that went through it.
    passed: AtomicUsize,
}

/// Passes everything on, and flips a bit in the bytes of a block of these names.
async fn relay(to: SocketAddr, names: Vec<[u8; 16]>, wire: Arc<Wire>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(to).await.expect("it listens");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            });
            let (wire, names) = (Arc::clone(&wire), names.clone());
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                    bend(&mut bytes[..length], &names, &wire);
                    if to_client.write_all(&bytes[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A block's bytes are its name, again and again.
fn bend(bytes: &mut [u8], names: &[[u8; 16]], wire: &Wire) {
    let is_named = |part: &[u8]| names.iter().any(|name| part == name);
    let Some(at) = bytes.windows(16).position(is_named) else { return };
    wire.passed.fetch_add(1, Ordering::AcqRel);
    let bends =
        wire.to_flip.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
    if bends.is_ok() {
        bytes[at + 5] ^= 0x08;
        wire.flipped.fetch_add(1, Ordering::AcqRel);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_flipped_on_the_wire_is_seen_counted_and_computed_and_its_source_rests() {
    let control = FakeControl::start().await;
    let slow = serde_json::json!({"prefill_us": 400_000});
    let one = worker(&control, "sends").await;
    // One for which a load is worth its while, also once it knows how fast it is.
    let other = worker_that(&control, "takes", slow).await;
    let prompts: Vec<Vec<u32>> = (0..3).map(|n| (n * 100..n * 100 + 41).collect()).collect();
    let namespace = NamespaceId(u128::from_le_bytes([1; 16]));
    let mut names = Vec::new();
    for prompt in &prompts {
        assert_eq!(cached_of(&one, &[], prompt).await, 0);
        let blocks = BlockHasher::hash_prompt(HashKey(HASH_KEY), namespace, BLOCK_TOKENS, prompt);
        names.push(blocks[6].0.to_le_bytes());
    }
    let wire = Arc::new(Wire { to_flip: AtomicUsize::new(1), ..Wire::default() });
    let through = relay(one.address(), names, Arc::clone(&wire)).await;
    let sources = [(through.to_string(), BLOCKS)];
    let seen = || (wire.flipped.load(Ordering::Acquire), wire.passed.load(Ordering::Acquire));

    let damaged = loads("damaged");
    // The answer is equal, as `cached_of` sees to, and nothing of the message was taken in.
    assert_eq!(cached_of(&other, &sources, &prompts[0]).await, 0);
    assert_eq!((seen(), loads("damaged")), ((1, 1), damaged + 1));

    // It rests: what else it has is computed, and nobody asks it.
    assert_eq!(cached_of(&other, &sources, &prompts[1]).await, 0);
    assert_eq!(seen(), (1, 1));

    // After its rest it is asked again, and gives what is whole.
    tokio::time::sleep(Duration::from_millis(5_100)).await;
    assert_eq!(cached_of(&other, &sources, &prompts[2]).await, WHOLE, "its rest is over");
    assert_eq!((seen(), loads("damaged")), ((1, 2), damaged + 1));
}
