//! Both forms of both servers, written by hand with another encoder; and bytes that mean harm.

use rmp::encode::{
    write_array_len, write_bin, write_f64, write_map_len, write_nil, write_sint, write_str,
    write_u64,
};

use super::*;
use mainstay_engine_proxy::event::Group;

fn head(out: &mut Vec<u8>, events: u32, items: u32) {
    write_array_len(out, items).unwrap();
    write_f64(out, 1.5).unwrap();
    write_array_len(out, events).unwrap();
}

fn numbers(out: &mut Vec<u8>, values: &[u64]) {
    write_array_len(out, values.len() as u32).unwrap();
    for value in values {
        write_u64(out, *value).unwrap();
    }
}

/// What a vLLM 0.32 sent on 2026-11-20 for 8 blocks of a salted prompt, with two of them.
fn as_map(out: &mut Vec<u8>) {
    write_map_len(out, 11).unwrap();
    for (key, value) in [("type", "BlockStored"), ("medium", "GPU")] {
        write_str(out, key).unwrap();
        write_str(out, value).unwrap();
    }
    write_str(out, "block_hashes").unwrap();
    numbers(out, &[15_864_543_279_507_392_333, 7]);
    write_str(out, "parent_block_hash").unwrap();
    write_nil(out).unwrap();
    write_str(out, "token_ids").unwrap();
    numbers(out, &[1, 2, 3, 4]);
    write_str(out, "block_size").unwrap();
    write_u64(out, 2).unwrap();
    write_str(out, "lora_id").unwrap();
    write_nil(out).unwrap();
    write_str(out, "extra_keys").unwrap();
    write_array_len(out, 2).unwrap();
    write_array_len(out, 1).unwrap();
    write_str(out, "tenantA").unwrap();
    write_nil(out).unwrap();
    write_str(out, "group_idx").unwrap();
    write_u64(out, 0).unwrap();
    write_str(out, "kv_cache_spec_kind").unwrap();
    write_str(out, "full_attention").unwrap();
    write_str(out, "of_a_later_version").unwrap();
    write_map_len(out, 1).unwrap();
    write_str(out, "a").unwrap();
    numbers(out, &[1]);
}

fn stored() -> Stored {
    Stored {
        blocks: vec![Native::Number(15_864_543_279_507_392_333), Native::Number(7)],
        tokens: vec![1, 2, 3, 4],
        block_tokens: 2,
        medium: Some(Medium::Device),
        salt: Salt::Text("tenantA".to_owned()),
        group: Group { index: Some(0), is_partial: false },
        ..Stored::default()
    }
}

#[test]
fn the_map_form_is_read() {
    let mut bytes = Vec::new();
    head(&mut bytes, 1, 2);
    as_map(&mut bytes);
    let batch = decode(&bytes).unwrap();
    assert_eq!(batch, Batch { events: vec![Event::Stored(stored())], rank: None, unknown: 0 });
}

#[test]
fn the_array_form_is_read_short_and_long() {
    let mut bytes = Vec::new();
    head(&mut bytes, 3, 3);
    for extra in [0_u32, 2] {
        write_array_len(&mut bytes, 6 + extra).unwrap();
        write_str(&mut bytes, "BlockStored").unwrap();
        write_array_len(&mut bytes, 1).unwrap();
        write_bin(&mut bytes, &[9; 32]).unwrap();
        write_sint(&mut bytes, -3).unwrap();
        numbers(&mut bytes, &[5, 6]);
        write_u64(&mut bytes, 2).unwrap();
        write_nil(&mut bytes).unwrap();
        if extra > 0 {
            write_str(&mut bytes, "CPU").unwrap();
            write_nil(&mut bytes).unwrap();
        }
    }
    write_array_len(&mut bytes, 1).unwrap();
    write_str(&mut bytes, "AllBlocksCleared").unwrap();
    write_u64(&mut bytes, 4).unwrap();
    let batch = decode(&bytes).unwrap();
    let short = Stored {
        blocks: vec![Native::Digest([9; 32])],
        parent: Some(Native::Number((-3_i64).cast_unsigned())),
        tokens: vec![5, 6],
        block_tokens: 2,
        ..Stored::default()
    };
    let long = Stored { medium: Some(Medium::Host), ..short.clone() };
    assert_eq!(batch.events, [Event::Stored(short), Event::Stored(long), Event::Cleared]);
    assert_eq!((batch.rank, batch.unknown), (Some(4), 0));
}

#[test]
fn what_is_not_tokens_is_foreign() {
    let mut bytes = Vec::new();
    head(&mut bytes, 2, 2);
    for (key, value) in [("lora_name", "an-adapter"), ("cache_salt", "s")] {
        write_map_len(&mut bytes, 3).unwrap();
        write_str(&mut bytes, "type").unwrap();
        write_str(&mut bytes, "BlockStored").unwrap();
        write_str(&mut bytes, "block_hashes").unwrap();
        numbers(&mut bytes, &[1]);
        write_str(&mut bytes, key).unwrap();
        write_str(&mut bytes, value).unwrap();
    }
    let salts: Vec<Salt> = decode(&bytes)
        .unwrap()
        .events
        .into_iter()
        .map(|event| match event {
            Event::Stored(stored) => stored.salt,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(salts, [Salt::Foreign, Salt::Text("s".to_owned())]);
}

#[test]
fn one_event_that_makes_no_sense_costs_itself_alone() {
    let mut bytes = Vec::new();
    head(&mut bytes, 4, 2);
    write_map_len(&mut bytes, 1).unwrap();
    write_str(&mut bytes, "type").unwrap();
    write_str(&mut bytes, "BlockTurnedIntoAFrog").unwrap();
    as_map(&mut bytes);
    // Tokens as text: TensorRT-LLM's form for content that is no text.
    write_map_len(&mut bytes, 3).unwrap();
    write_str(&mut bytes, "type").unwrap();
    write_str(&mut bytes, "BlockStored").unwrap();
    write_str(&mut bytes, "block_hashes").unwrap();
    numbers(&mut bytes, &[1]);
    write_str(&mut bytes, "token_ids").unwrap();
    write_array_len(&mut bytes, 1).unwrap();
    write_str(&mut bytes, "image").unwrap();
    write_nil(&mut bytes).unwrap();
    let batch = decode(&bytes).unwrap();
    assert_eq!((batch.events, batch.unknown), (vec![Event::Stored(stored())], 3));
}

#[test]
fn a_batch_that_is_cut_anywhere_is_an_error_and_not_a_panic() {
    let mut bytes = Vec::new();
    head(&mut bytes, 1, 3);
    as_map(&mut bytes);
    write_u64(&mut bytes, 0).unwrap();
    assert!(decode(&bytes).is_ok());
    for len in 0..bytes.len() - 1 {
        assert!(decode(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
}

proptest::proptest! {
    /// One byte that is wrong may change what is read, but breaks nothing.
    #[test]
    fn a_wrong_byte_breaks_nothing(at in 0_usize..200, byte in proptest::num::u8::ANY) {
        let mut bytes = Vec::new();
        head(&mut bytes, 1, 2);
        as_map(&mut bytes);
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(batch) = decode(&bytes) {
            proptest::prop_assert!(batch.events.len() as u64 + batch.unknown <= 16);
        }
    }

    #[test]
    fn random_bytes_break_nothing(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        let _ = decode(&bytes);
    }
}
