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
fn what_it_displaced_comes_back_and_nothing_comes_back_to_a_cleared_cache() {
    let mut contexts = Contexts::default();
    // Two conversations, and a prompt that goes on with one and ends where the other one does.
    send(&mut contexts, 0, A, &prompt(1, 0, 50), 0);
    let known = contexts.find(&prompt(1, 0, 60), 50);
    contexts.sent(1, (B, LIFE, HERE), &prompt(1, 0, 60), 0, None);
    assert_eq!(contexts.len(), 2);
    let sent = contexts.sent(2, (B, LIFE, HERE), &prompt(1, 0, 60), 0, known.as_ref()).unwrap();
    assert_eq!(contexts.len(), 1);
    let before = contexts.clone();
    contexts.undo(&sent);
    assert_eq!(contexts.len(), 2);
    assert_eq!(contexts.find(&prompt(1, 0, 55), 50).map(|known| known.worker), Some(A));
    assert_eq!(contexts.find(&prompt(1, 0, 65), 60).map(|known| known.worker), Some(B));
    for (cleared, left) in [(A, B), (B, A)] {
        let (mut contexts, mut sent) = (before.clone(), sent.clone());
        sent.forget_worker(cleared);
        contexts.undo(&sent);
        let kept: Vec<_> = contexts.by_tail.values().map(|context| context.worker).collect();
        assert_eq!(kept, [left]);
    }
}

#[test]
fn namespaces_that_nobody_asks_for_any_more_make_room_for_others() {
    let mut contexts = Contexts::default();
    let space = |name: u128| NamespaceId(1_000 + name);
    for name in 0..CROWDS_MAX as u128 {
        contexts.sent(0, (A, LIFE, space(name)), &prompt(name, 0, 2), 0, None);
    }
    let late = (A, LIFE, space(5_000));
    contexts.sent(1, late, &prompt(5_000, 0, 2), 0, None);
    assert!(contexts.crowds.contains_key(&NamespaceId(u128::MAX)), "no room yet");
    // The only conversation of one goes on and on, beside a table that is full.
    for blocks in 3..20 {
        let next = prompt(7, 0, blocks);
        let known = contexts.find(&next, 1);
        contexts.sent(1, (A, LIFE, space(7)), &next, 0, known.as_ref());
    }
    assert_eq!(contexts.crowds[&space(7)].returned_lately, 1);
    contexts.expire(WARM_MS);
    assert_eq!((contexts.len(), contexts.crowds.len()), (2, CROWDS_MAX + 1));
    // The others are gone: their crowds go one by one as new ones come, those that were left first before.
    let now_ms = WARM_MS + 1;
    for name in 6_000..6_000 + CROWDS_MAX as u128 - 1 {
        contexts.sent(WARM_MS, (A, LIFE, space(name)), &prompt(name, 0, 2), 0, None);
        assert!(contexts.crowds.contains_key(&space(name)), "{name}");
    }
    assert!(contexts.crowds.len() <= CROWDS_MAX + 1 && contexts.crowds.contains_key(&space(7)));
    assert_eq!((contexts.empty.len(), contexts.crowds.len()), (0, CROWDS_MAX + 1));
    contexts.expire(now_ms + WARM_MS);
    assert_eq!(contexts.empty.len(), contexts.crowds.len());
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
