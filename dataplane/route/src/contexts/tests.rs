//! Conversations by hand: where they count, when they count, and when no more.

use super::*;

const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);
const LIFE: Epoch = Epoch(1);
const HERE: NamespaceId = NamespaceId(7);

fn prompt(name: u128, shared: u128, blocks: u128) -> Vec<SequenceHash> {
    (0..blocks).map(|at| SequenceHash(if at < shared { at } else { (name << 32) + at })).collect()
}

/// Sends a prompt as the router does: what it goes on with was found before.
fn send(
    contexts: &mut Contexts,
    now_ms: u64,
    worker: WorkerId,
    prompt: &[SequenceHash],
    overlap: u32,
) -> Option<Moved> {
    let known = contexts.find(prompt, overlap);
    contexts.sent(now_ms, (worker, LIFE, HERE), prompt, overlap, known.as_ref())
}

fn warm(contexts: &Contexts, worker: WorkerId, epoch: Epoch, known: Option<&Known>) -> u64 {
    let mut found = 0;
    contexts.each_warm(known, |id, life, blocks| {
        if (id, life) == (worker, epoch) {
            found = blocks;
        }
    });
    found
}

#[test]
fn a_conversation_counts_once_it_goes_on_and_where_it_went_last() {
    let mut contexts = Contexts::default();
    send(&mut contexts, 0, A, &prompt(1, 10, 50), 10);
    send(&mut contexts, 1, A, &prompt(2, 10, 30), 10);
    assert_eq!((contexts.len(), warm(&contexts, A, LIFE, None)), (2, 0), "nobody came back yet");
    assert_eq!(contexts.expected_blocks(HERE), 0);
    // The next turn: twenty more blocks, five of them the answer that is cached.
    let next = prompt(1, 10, 70);
    let known = contexts.find(&next, 55).unwrap();
    assert_eq!((known.worker, known.counted_blocks), (A, 0));
    send(&mut contexts, 2, A, &next, 55);
    assert_eq!((contexts.len(), warm(&contexts, A, LIFE, None)), (2, 60));
    // One came back, and four are taken to have not: a fifth of its sixty blocks.
    assert_eq!(contexts.expected_blocks(HERE), 12);
    assert_eq!(contexts.expected_blocks(NamespaceId(8)), 0, "others may do otherwise");
    send(&mut contexts, 3, B, &prompt(1, 10, 75), 10);
    let both = (warm(&contexts, A, LIFE, None), warm(&contexts, B, LIFE, None));
    assert_eq!(both, (0, 65));
    let known = contexts.find(&prompt(1, 10, 90), 75);
    assert_eq!(warm(&contexts, B, LIFE, known.as_ref()), 0, "not against itself");
    // The same prompt once more is the same conversation.
    send(&mut contexts, 4, B, &prompt(1, 10, 75), 75);
    assert_eq!((contexts.len(), warm(&contexts, B, LIFE, None)), (2, 65));
}

#[test]
fn first_prompts_count_by_how_many_come_back() {
    let mut contexts = Contexts::default();
    for name in 1..=96 {
        send(&mut contexts, 0, A, &prompt(name, 0, 100), 0);
        if name % 8 == 0 {
            send(&mut contexts, 1, A, &prompt(name, 0, 110), 100);
        }
    }
    // Nothing is known of the others yet; then they are given up.
    assert!(contexts.crowds[&HERE].returns() > 0.7);
    contexts.expire(WARM_MS + 10);
    send(&mut contexts, WARM_MS + 10, B, &prompt(200, 0, 100), 0);
    let counted = warm(&contexts, B, LIFE, None);
    assert!((40..50).contains(&counted), "{counted} of 100");
    // Thousands who ask once make it nothing again.
    for name in 1_000..12_000 {
        send(&mut contexts, WARM_MS + 20, A, &prompt(name, 0, 2), 0);
    }
    contexts.expire(2 * WARM_MS + 20);
    send(&mut contexts, 2 * WARM_MS + 20, B, &prompt(300, 0, 100), 0);
    assert!(warm(&contexts, B, LIFE, None) < 3);
}

#[test]
fn a_new_life_begins_with_an_empty_cache() {
    let mut contexts = Contexts::default();
    for blocks in [50, 60] {
        send(&mut contexts, 0, A, &prompt(1, 0, blocks), 0);
    }
    assert_eq!(warm(&contexts, A, LIFE, None), 60);
    assert_eq!(warm(&contexts, A, Epoch(2), None), 0);
    let known = contexts.find(&prompt(1, 0, 70), 60);
    contexts.sent(1, (A, Epoch(2), HERE), &prompt(1, 0, 70), 0, known.as_ref());
    let lives = (warm(&contexts, A, LIFE, None), warm(&contexts, A, Epoch(2), None));
    assert_eq!(lives, (0, 70));
}

#[test]
fn what_never_got_there_is_undone() {
    let mut contexts = Contexts::default();
    for blocks in [50, 60] {
        send(&mut contexts, 0, A, &prompt(1, 0, blocks), blocks as u32);
    }
    let before = warm(&contexts, A, LIFE, None);
    let moved = send(&mut contexts, 1, B, &prompt(1, 0, 70), 0).unwrap();
    assert_eq!(warm(&contexts, A, LIFE, None), 0);
    contexts.undo(&moved);
    let after = (warm(&contexts, A, LIFE, None), warm(&contexts, B, LIFE, None));
    assert_eq!((after, contexts.len()), ((before, 0), 1));
    assert!(contexts.find(&prompt(1, 0, 70), 60).is_some_and(|known| known.worker == A));
    // One that began leaves nothing; one that has gone on since is not touched.
    let begun = send(&mut contexts, 2, B, &prompt(2, 0, 20), 0).unwrap();
    contexts.undo(&begun);
    assert_eq!(contexts.len(), 1);
    let moved = send(&mut contexts, 3, B, &prompt(1, 0, 80), 0).unwrap();
    send(&mut contexts, 4, B, &prompt(1, 0, 90), 0);
    contexts.undo(&moved);
    assert_eq!((contexts.len(), warm(&contexts, A, LIFE, None)), (1, 0));
}

#[test]
fn who_does_not_come_back_is_forgotten() {
    let mut contexts = Contexts::default();
    send(&mut contexts, 0, A, &prompt(1, 0, 5), 0);
    send(&mut contexts, 1_000, B, &prompt(2, 0, 5), 0);
    contexts.expire(WARM_MS);
    assert_eq!(contexts.len(), 1);
    assert_eq!(contexts.find(&prompt(1, 0, 9), 5), None);
    contexts.forget_worker(B);
    assert_eq!((contexts.len(), contexts.expected_blocks(HERE)), (0, 0));
    send(&mut contexts, 0, A, &[], 3);
    assert_eq!(contexts.len(), 0);
}

#[test]
fn the_numbers_of_conversations_and_of_namespaces_are_bounded() {
    let mut contexts = Contexts::default();
    for name in 0..CONTEXTS_MAX as u128 + 10 {
        let hash = SequenceHash(name << 70 | name);
        contexts.sent(0, (A, LIFE, NamespaceId(name)), &[hash], 0, None);
    }
    assert_eq!(contexts.len(), CONTEXTS_MAX);
    assert!(contexts.crowds.len() <= CROWDS_MAX + 1, "{}", contexts.crowds.len());
    contexts.expire(WARM_MS);
    assert_eq!((contexts.len(), contexts.by_age.len(), contexts.by_worker.len()), (0, 0, 0));
    assert!(contexts.sieve.counts.iter().all(|count| *count == 0));
}
