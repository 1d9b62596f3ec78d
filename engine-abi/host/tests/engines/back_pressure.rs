//! A consumer that does not read: the engine holds back, and nothing that may not be lost is lost.

use std::time::Duration;

use mainstay_engine_host::sdk::KvEvent;
use mainstay_engine_host::{Source, open};

use crate::echo::FLOOD;
use crate::support::{DEADLINE, child, read_until_finals, request, run, rust_echo};

#[test]
fn outputs_wait_in_the_engine_and_none_is_lost() {
    for source in [Source::Linked(rust_echo()), child(None)] {
        run(async {
            let (handle, mut receivers) = open(source, "{}").await.unwrap();
            handle.submit(request(1, &[888])).await.unwrap();
            let mut made = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let now = handle.stats().await.unwrap().decode_tokens;
                if now == made {
                    break;
                }
                made = now;
            }
            assert!(made > 0 && made < u64::from(FLOOD), "{made} were made with nobody reading");
            let outputs = read_until_finals(&mut receivers, 1).await;
            let tokens: Vec<u32> = outputs.into_iter().flat_map(|output| output.tokens).collect();
            assert_eq!(tokens, (0..FLOOD).collect::<Vec<u32>>());
        });
    }
}

#[test]
fn cache_events_overflow_into_a_reset_and_a_snapshot() {
    for source in [Source::Linked(rust_echo()), child(None)] {
        run(async {
            let (handle, mut receivers) = open(source, "{}").await.unwrap();
            handle.submit(request(1, &[555])).await.unwrap();
            read_until_finals(&mut receivers, 1).await;
            // Every batch goes on where the last one ended, or begins an epoch with a reset.
            let (mut epoch, mut next, mut removed) = (0, 0, 0);
            let stored = loop {
                let batch =
                    tokio::time::timeout(DEADLINE, receivers.kv.recv()).await.unwrap().unwrap();
                assert!(!batch.gap);
                if batch.reset {
                    assert!(batch.epoch > epoch && batch.first_seq == 0);
                    (epoch, next) = (batch.epoch, 1);
                } else {
                    assert_eq!((batch.epoch, batch.first_seq), (epoch, next));
                }
                next += batch.events.len() as u64;
                match batch.events.first() {
                    Some(KvEvent::Stored { .. }) => break batch.events,
                    _ => removed += batch.events.len(),
                }
            };
            assert!(epoch > 0 && removed < FLOOD as usize, "the lane did overflow");
            let blocks = vec![42];
            let snapshot =
                KvEvent::Stored { namespace: 1, parent: 1, blocks, tier: 0, snapshot: true };
            assert_eq!(stored, [snapshot]);
        });
    }
}
