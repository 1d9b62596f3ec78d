//! Prompts of conversations that go on, fork and change, with the memory and without it.

use mainstay_types::HashKey;

use super::super::tokenizer::tests::demo;
use super::*;

const BLOCK_TOKENS: u32 = 16;
const ROOM: usize = 1 << 20;

fn key() -> BlockHashKey {
    BlockHashKey::new(HashKey([7; 16]))
}

fn naming(key: &BlockHashKey, namespace: u128) -> Naming<'_> {
    Naming { key, namespace: NamespaceId(namespace), block_tokens: BLOCK_TOKENS }
}

/// What comes out where nothing is remembered of pieces.
fn expected(
    tokenizer: &Tokenizer,
    whole: &str,
    offsets: &[usize],
    naming: &Naming<'_>,
) -> Prepared {
    let Encoded { tokens, packed, tokens_before } =
        tokenizer.encode("whole", whole, offsets).unwrap();
    let blocks = naming.key.hash_prompt(naming.namespace, BLOCK_TOKENS, &tokens).into();
    Prepared { tokens: tokens.len(), packed: packed.into(), blocks, tokens_before }
}

/// Numbers by a fixed rule.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        let state = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = state.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn piece(&mut self) -> Arc<str> {
        let starts = ["<|user|>", "<|assistant|>", "<|end|>", "", " ", "goes on "];
        let start = starts[self.below(starts.len())];
        let words = self.below(30);
        let ends = ["<|end|>", "\n", ""];
        let end = ends[self.below(ends.len())];
        let words: String = (0..words).map(|n| format!("word{} ", n * words)).collect();
        format!("{start}{words}{end}").into()
    }
}

#[test]
fn prompts_come_out_the_same_whatever_was_prepared_before() {
    let (tokenizer, key) = (demo(), key());
    let naming = naming(&key, 3);
    let mut numbers = Numbers(1);
    let (mut found, mut shared) = (0, 0);
    for _ in 0..12 {
        let system: Arc<str> = "<|system|>You are a helpful agent.<|end|>".into();
        let last: Arc<str> = "<|assistant|>".into();
        let mut history = vec![system];
        for _ in 0..25 {
            // It goes on, and now and then its end was another.
            let lost = if numbers.below(4) == 0 { numbers.below(history.len()) } else { 0 };
            history.truncate((history.len() - lost).max(1));
            history.extend((0..=numbers.below(3)).map(|_| numbers.piece()));
            let mut pieces = history.clone();
            pieces.push(Arc::clone(&last));
            let whole = pieces.concat();
            let mut offsets: Vec<usize> =
                (0..numbers.below(4)).map(|_| numbers.below(whole.len() + 2)).collect();
            offsets.sort_unstable();
            if let Some((known, agreeing)) = tokenizer.prompts.find(naming.namespace, &pieces) {
                found += 1;
                shared += usize::from(tokenizer.common(&known, agreeing, &pieces).is_some());
            }
            let prepared = tokenizer.prepare("t", Text::from(pieces), &offsets, &naming).unwrap();
            assert_eq!(prepared, expected(&tokenizer, &whole, &offsets, &naming), "{whole:?}");
        }
    }
    assert!(found > 150 && shared > 150, "{found} {shared}");
}

#[test]
fn a_conversation_takes_one_place_and_nobody_elses_is_found() {
    let (tokenizer, key) = (demo(), key());
    let (ours, others) = (naming(&key, 1), naming(&key, 2));
    let mut pieces: Vec<Arc<str>> = vec!["<|system|>Be brief.<|end|>".into()];
    for n in 0..200 {
        pieces.push(format!("<|user|>question {n}<|end|>").into());
        let prepare = |naming: &Naming<'_>| {
            tokenizer.prepare("t", Text::from(pieces.clone()), &[], naming).unwrap()
        };
        let prepared = prepare(&ours);
        assert_eq!(prepared, expected(&tokenizer, &pieces.concat(), &[], &ours));
        let (known, agreeing) = tokenizer
            .prompts
            .find(ours.namespace, &pieces)
            .or_else(|| {
                assert!(n == 0, "its last piece is no anchor");
                None
            })
            .unzip();
        assert!(n < 2 || agreeing == Some(pieces.len()));
        let whole = known.as_ref().map_or(0, |known| known.bytes());
        drop(known);
        assert!(tokenizer.prompts.find(others.namespace, &pieces).is_none());
        let equal: Vec<Arc<str>> = pieces.iter().map(|piece| Arc::from(&**piece)).collect();
        assert!(tokenizer.prompts.find(ours.namespace, &equal).is_none(), "other allocations");
        let (bytes, held) = tokenizer.prompts.0.with(|known| (known.bytes(), known.values()));
        assert!(held <= 1 + ANCHORS, "{held}");
        let most = whole + ANCHORS * ANCHOR_BYTES;
        assert!(n == 0 || (whole..=most).contains(&bytes), "{bytes} of {whole}");
    }
}

#[test]
fn forks_that_take_each_others_anchors_hold_no_more_than_there_is_room_for() {
    let prompts = Prompts::new(ROOM);
    let common: Vec<Arc<str>> = ["tools", "system"].map(Arc::from).into();
    let mut kept = Vec::new();
    for n in 0..60 {
        let own = [format!("task {n}"), "<|assistant|>".to_owned()].map(Arc::from);
        let pieces: Vec<Arc<str>> = common.iter().cloned().chain(own).collect();
        prompts.keep(Known { pieces: pieces.clone(), ..known(1) }, None);
        let (known, agreeing) = prompts.find(NamespaceId(1), &pieces).expect("the last one");
        assert_eq!(agreeing, pieces.len());
        kept.push(Arc::downgrade(&known));
        drop(known);
        let held: usize = kept.iter().filter_map(Weak::upgrade).map(|known| known.bytes()).sum();
        assert!(held <= ROOM, "{held}");
    }
    let held = kept.iter().filter(|known| known.strong_count() > 0).count();
    assert!((8..60).contains(&held), "{held}");
}

/// One that takes a twentieth of the room.
fn known(n: u128) -> Known {
    Known {
        namespace: NamespaceId(n),
        block_tokens: BLOCK_TOKENS,
        pieces: (0..4).map(|piece| format!("{n} {piece}").into()).collect(),
        ends: Vec::new(),
        packed: Bytes::new(),
        blocks: Arc::new([]),
        text_bytes: ROOM / 20,
    }
}

#[test]
fn what_is_held_is_bounded() {
    let prompts = Prompts::new(ROOM);
    for n in 0..50 {
        let known = known(n);
        let pieces = known.pieces.clone();
        prompts.keep(known, None);
        assert!(prompts.find(NamespaceId(n), &pieces).is_some());
        let (bytes, held) = prompts.0.with(|known| (known.bytes(), known.values()));
        assert!(bytes <= ROOM && held <= 2 * 10 * (1 + ANCHORS), "{bytes} of {held}");
    }
    let large = Known { text_bytes: ROOM, ..known(99) };
    let pieces = large.pieces.clone();
    prompts.keep(large, None);
    assert!(prompts.find(NamespaceId(99), &pieces).is_none(), "one pushes out nobody");
}

#[test]
fn other_sizes_of_blocks_and_texts_without_pieces_are_prepared_alike() {
    let (tokenizer, key) = (demo(), key());
    let pieces: Vec<Arc<str>> =
        ["<|system|>Be brief.<|end|>", "<|user|>one<|end|>", "<|user|>two<|end|>", "<|assistant|>"]
            .map(Arc::from)
            .into();
    let whole = pieces.concat();
    for block_tokens in [1, 3, 16, 0] {
        let naming = Naming { block_tokens, ..naming(&key, 5) };
        for text in [Text::from(pieces.clone()), Text::from(whole.clone())] {
            let prepared = tokenizer.prepare("t", text, &[9], &naming).unwrap();
            let encoded = tokenizer.encode("t", &whole, &[9]).unwrap();
            let blocks = key.hash_prompt(naming.namespace, block_tokens, &encoded.tokens);
            assert_eq!(*prepared.blocks, *blocks);
            assert_eq!(prepared.packed, encoded.packed);
            assert_eq!(prepared.tokens_before, encoded.tokens_before);
        }
    }
}
