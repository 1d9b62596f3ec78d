//! Prompts as tokens: whole, in segments and in pieces, each as the library makes them.

use mainstay_proto::tokens::unpack;

use super::*;

pub(in crate::model) fn demo() -> Arc<Tokenizer> {
    let json = include_bytes!("../../../../../plugins/native/demo-model/tokenizer.json");
    Arc::new(Tokenizer::new(json, PromptMemory::default()).expect("the bundled tokenizer loads"))
}

const PROMPT: &str = "<|system|>You are a helpful agent.<|end|><|user|>What is the weather in Zürich, and in Oslo today?<|end|><|assistant|>";

#[test]
fn segments_tokenise_as_the_whole_does() {
    let tokenizer = demo();
    let whole = tokenizer.inner.encode(PROMPT, false).expect("encodes");
    for _ in 0..2 {
        let encoded = tokenizer.encode("t", PROMPT, &[]).expect("encodes");
        assert_eq!(encoded.tokens, whole.get_ids());
        assert_eq!(unpack(&encoded.packed), Ok(encoded.tokens));
    }
    assert!(tokenizer.encode("t", "", &[0]).expect("encodes").tokens.is_empty());
}

#[test]
fn offsets_count_the_tokens_that_lie_before_them() {
    let tokenizer = demo();
    let user = PROMPT.find("<|user|>").expect("there");
    let encoded = tokenizer.encode("t", PROMPT, &[0, user, PROMPT.len()]).expect("encodes");
    let system = tokenizer.encode("t", &PROMPT[..user], &[]).expect("encodes");
    assert_eq!(encoded.tokens_before, vec![0, system.tokens.len(), encoded.tokens.len()]);
}

#[test]
fn offsets_inside_a_segment_are_told_whether_it_is_new_or_not() {
    let tokenizer = demo();
    let middle = PROMPT.find("helpful").expect("there");
    let upto = tokenizer.inner.encode(&PROMPT[..middle], false).expect("encodes");
    for _ in 0..2 {
        let encoded = tokenizer.encode("t", PROMPT, &[middle, middle + 7]).expect("encodes");
        assert_eq!(encoded.tokens_before.len(), 2);
        let before = encoded.tokens_before[0];
        // The space before the word belongs to its token.
        assert_eq!(encoded.tokens[..before], upto.get_ids()[..before]);
        assert!(before >= upto.get_ids().len() - 1, "{before}");
        assert!(encoded.tokens_before[1] > before);
    }
}

#[test]
fn pieces_tokenise_as_the_whole_does_wherever_they_are_cut() {
    let tokenizer = demo();
    assert!(tokenizer.apart);
    let offsets = [0, 1, 10, 11, 40, 41, 54, 55, PROMPT.len() - 13, PROMPT.len()];
    let whole = tokenizer.encode("t", PROMPT, &offsets).expect("encodes");
    let places: Vec<usize> = (0..=PROMPT.len()).filter(|at| PROMPT.is_char_boundary(*at)).collect();
    for (n, &first) in places.iter().enumerate() {
        let second = places[(n * 7 + 3) % places.len()];
        let (first, second) = (first.min(second), first.max(second));
        let cuts = [&PROMPT[..first], &PROMPT[first..second], &PROMPT[second..]];
        let pieces: Vec<Arc<str>> = cuts.map(Arc::from).into();
        let others = pieces.clone();
        // Somebody else holds the pieces, so the second time they are known.
        for _ in 0..2 {
            let mut ends = Vec::new();
            let encoded = tokenizer.encode_groups("t", &pieces, &offsets, &mut ends);
            let encoded = encoded.expect("encodes");
            assert_eq!(encoded, whole, "cut at {first} and {second}");
            assert!(ends.iter().all(|end| end.pieces > 0));
        }
        drop(others);
    }
}

#[test]
fn pieces_that_go_on_are_tokenised_once_with_what_they_follow() {
    let tokenizer = demo();
    let cuts = ["<|user|>a word ", "and another ", "one<|end|>", "<|user|>alone<|end|>"];
    let pieces: Vec<Arc<str>> = cuts.map(Arc::from).into();
    let _others = pieces.clone();
    let whole = tokenizer.encode("t", &cuts.concat(), &[]).expect("encodes");
    let mut ends = Vec::new();
    let encoded = tokenizer.encode_groups("t", &pieces, &[], &mut ends).expect("encodes");
    assert_eq!(encoded, whole);
    let last = Ends::of([4, cuts.concat().len(), whole.tokens.len(), whole.packed.len()]);
    assert_eq!((ends.len(), ends[0].pieces, ends.last().copied()), (2, 3, last));
    let kept: Vec<bool> = tokenizer.pieces.find(&pieces).iter().map(Option::is_some).collect();
    assert_eq!(kept, [false, false, false, true]);
    assert!(tokenizer.starts(&pieces[0]) && !tokenizer.starts(&pieces[2]));
}

#[test]
fn special_tokens_that_reach_into_each_other_are_noticed() {
    let of = |texts: &[&str]| {
        let specials: Vec<(String, u32)> = texts.iter().map(|t| ((*t).to_owned(), 0)).collect();
        starts_apart(&specials)
    };
    assert!(of(&["<|a|>", "<|ab|>", "[INST]", "[/INST]"]));
    assert!(!of(&["<a>", "x<a>"]), "the end of one is the other");
    assert!(!of(&["<a>", "x<"]), "one ends with the start of another");
    assert!(!of(&["<<"]), "with its own");
    assert!(!of(&[]));
}

#[test]
fn a_broken_file_is_a_typed_error() {
    assert!(Tokenizer::new(b"{}", PromptMemory::default()).is_err());
    assert!(Tokenizer::new(b"\xff", PromptMemory::default()).is_err());
}
