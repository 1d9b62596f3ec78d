//! Images: what is written is read back; what is damaged, cut, forged or too big is refused without a panic.

use mainstay_types::{Command, JoinRole, LogIndex, PinId, PinRequest};
use proptest::prelude::*;

use super::*;
use crate::testing::{
    Log, fence, frame, join, join_token, log, order, pin, prefix, put_key, put_tenant, register,
    report, response, small_limits, stored, tokens,
};

/// A machine with something of everything.
fn sample() -> Machine {
    let mut log = Log::new(small_limits());
    log.apply(Command::Bootstrap { hash_key: [3; 16] });
    log.apply(register("a", 1));
    log.apply(register("b", 2));
    log.apply(frame(1, 1, 1, vec![stored(prefix(0, 5))]));
    log.apply(frame(2, 1, 1, vec![stored(prefix(0, 3)), stored(prefix(1, 4))]));
    log.apply(Command::PutPin(pin(1, prefix(0, 3))));
    log.apply(Command::PutPin(pin(2, prefix(0, 5))));
    log.apply(Command::PutPin(pin(3, prefix(1, 5))));
    log.apply(report(1, 1, 2, 5));
    let kept = PinRequest { tokens: Some(tokens(3)), owner: None, ..pin(4, prefix(2, 3)) };
    log.apply(Command::PutPin(kept));
    log.apply(order(4, 2, 1));
    log.apply(report(2, 1, 4, 2));
    log.apply(put_tenant("acme", Some(20)));
    log.apply(put_key("acme", "laptop", 1));
    log.apply(join_token("t", 2, JoinRole::Worker, Some("w1")));
    log.apply(join(2, JoinRole::Worker, "w1", 3));
    log.apply(Command::PutResponse(response(1, None, 20)));
    log.apply(Command::PutResponse(response(2, Some(1), 30)));
    log.machine
}

/// Replaces the checksum, as somebody who forges an image would.
fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    body.truncate(body.len().saturating_sub(CHECKSUM_BYTES));
    let sum = checksum(&body);
    body.u128(sum);
    body
}

#[test]
fn an_image_holds_everything() {
    let machine = sample();
    let copy = Machine::decode(&machine.encode(), small_limits()).expect("its own image");
    assert_eq!(copy.digest(), machine.digest());
    assert_eq!(copy.applied(), machine.applied());
    assert_eq!(copy.time(), machine.time());
    assert_eq!(copy.hash_key(), machine.hash_key());
    assert!(copy.workers().eq(machine.workers()));
    assert!(copy.pins().eq(machine.pins()));
    assert!(copy.tenants().eq(machine.tenants()) && copy.tenants().len() == 1);
    assert!(copy.join_tokens().eq(machine.join_tokens()) && copy.join_tokens().len() == 1);
    assert!(copy.responses().eq(machine.responses()) && copy.responses().len() == 2);
    assert_eq!(copy.index().snapshot(), machine.index().snapshot());
    assert_eq!(copy.pins().filter(|p| !p.is_live()).count(), 1);
}

#[test]
fn an_image_without_tokens_says_what_they_amount_to_and_shows_none() {
    let machine = sample();
    let packed = tokens(3).packed().expect("not withheld").to_vec();
    let shows = |image: &[u8]| image.windows(packed.len()).any(|bytes| bytes == packed);
    let copy = |image: &[u8]| Machine::decode(image, small_limits()).expect("its own image");
    let full = machine.encode();
    let kept = |machine: &Machine| machine.pin(PinId(4)).expect("a pin").request.tokens.clone();
    assert!(shows(&full) && kept(&copy(&full)).is_some_and(|t| t.tokens() == tokens(3).tokens()));
    for bare in [machine.encode_without_tokens(), machine.encode_without_blocks()] {
        assert!(!shows(&bare));
        let copy = copy(&bare);
        assert!(kept(&copy).is_some_and(|t| t == tokens(3) && t.packed().is_none()));
        assert!(copy.pins().eq(machine.pins()));
    }
    assert_eq!(copy(&machine.encode_without_tokens()).digest(), machine.digest());
    // Other tokens than those that the pin names are refused.
    let mut other = packed.clone();
    other[0] ^= 1;
    assert_eq!(forge(&full, &packed, &other), Err(ImageError::Invalid("tokens of a pin")));
}

#[test]
fn an_image_without_blocks_holds_the_rest() {
    let machine = sample();
    let bytes = machine.encode_without_blocks();
    let copy = Machine::decode(&bytes, small_limits()).expect("its own image");
    assert_eq!(copy.index().block_count(), 0);
    assert!(copy.workers().eq(machine.workers()));
    assert!(copy.pins().eq(machine.pins()));
    assert_eq!(copy.encode_without_blocks(), bytes);
    assert_ne!(copy.digest(), machine.digest());
}

#[test]
fn damage_is_named() {
    let bytes = sample().encode();
    let decode = |bytes: &[u8]| Machine::decode(bytes, small_limits()).map(|_| ());
    assert_eq!(decode(&[]), Err(ImageError::Truncated));
    assert_eq!(decode(&[VERSION_NEWEST]), Err(ImageError::Truncated));
    for other in [0, VERSION_OLDEST - 1, VERSION_NEWEST + 1] {
        assert_eq!(decode(&[other; 100]), Err(ImageError::Version(other)));
    }
    assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(ImageError::Checksum));
    let mut longer = bytes.clone();
    longer.extend([0; 5]);
    assert_eq!(decode(&sealed(longer)), Err(ImageError::Invalid("tail")));
    let fewer = Limits { workers_max: 1, ..small_limits() };
    let error = Machine::decode(&bytes, fewer).err();
    assert_eq!(error, Some(ImageError::TooMany { what: "workers", count: 2, limit: 1 }));
    let fewer = Limits { index_blocks_max: 6, ..small_limits() };
    let error = Machine::decode(&bytes, fewer).err();
    assert!(
        matches!(error, Some(ImageError::TooMany { what: "blocks", limit: 6, .. })),
        "{error:?}"
    );
    let fewer = Limits { pin_blocks_max: 4, ..small_limits() };
    let error = Machine::decode(&bytes, fewer).err();
    assert_eq!(error, Some(ImageError::TooMany { what: "blocks of a pin", count: 5, limit: 4 }));
}

#[test]
fn every_cut_and_every_changed_byte_is_found() {
    let bytes = sample().encode();
    for at in 0..bytes.len() {
        assert!(Machine::decode(&bytes[..at], small_limits()).is_err());
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(Machine::decode(&changed, small_limits()).is_err(), "byte {at}");
    }
}

#[test]
fn a_forged_count_reserves_nothing() {
    // The workers' count stands after version, kind, six numbers, the key and the last id.
    let bytes = sample().encode();
    let at = 2 + 6 * 8 + 1 + 16 + 4;
    for count in [u64::MAX, 1 << 40, 5] {
        let mut forged = bytes.clone();
        forged[at..at + 8].copy_from_slice(&count.to_le_bytes());
        let huge = Limits { workers_max: u32::MAX, ..small_limits() };
        let error = Machine::decode(&sealed(forged), huge).err();
        assert!(error.is_some(), "{count} workers");
    }
}

/// Replaces the only place in an image where `old` stands.
fn forge(image: &[u8], old: &[u8], new: &[u8]) -> Result<(), ImageError> {
    assert_eq!(old.len(), new.len());
    let places: Vec<usize> =
        (0..image.len() - old.len()).filter(|at| image[*at..].starts_with(old)).collect();
    assert_eq!(places.len(), 1, "not the only place");
    let mut forged = image.to_vec();
    forged[places[0]..places[0] + old.len()].copy_from_slice(new);
    Machine::decode(&sealed(forged), small_limits()).map(|_| ())
}

#[test]
fn what_no_machine_writes_is_refused() {
    let mut log = Log::new(small_limits());
    for name in ["alpha", "bravo", "gone!"] {
        log.apply(register(name, 1));
    }
    log.apply(fence(3, 1));
    log.apply(Command::PutPin(pin(0xabcd, prefix(0, 5))));
    log.apply(report(1, 1, 0xabcd, 5));
    log.apply(report(2, 1, 0xabcd, 4));
    let image = log.machine.encode();
    let holders = |pairs: [(u32, u32); 2]| {
        let words = pairs.iter().flat_map(|(worker, held)| [*worker, *held]);
        words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    };
    let written = holders([(1, 5), (2, 4)]);
    for forged in [
        [(2, 4), (1, 5)],
        [(1, 5), (1, 4)],
        [(1, 5), (3, 4)],
        [(1, 5), (9, 4)],
        [(1, 5), (2, 0)],
        [(1, 5), (2, 6)],
    ] {
        let error = forge(&image, &written, &holders(forged));
        assert!(matches!(error, Err(ImageError::Invalid(_))), "{forged:?}: {error:?}");
    }
    // Nobody holds all of it, and yet it was active: that is a degraded pin.
    assert_eq!(forge(&image, &written, &holders([(1, 4), (2, 4)])), Ok(()));
    let made = log.machine.pin(PinId(0xabcd)).expect("it was just made");
    let over = forge(&image, &made.expires_ms.to_le_bytes(), &made.created_ms.to_le_bytes());
    assert_eq!(over, Err(ImageError::Invalid("live pin")), "its time is over");
    assert_eq!(
        forge(&image, b"bravo", b"alpha"),
        Err(ImageError::Invalid("table of workers")),
        "one name for two"
    );
    assert_eq!(forge(&image, b"bravo", b"br\nvo"), Err(ImageError::Invalid("worker name")));
    assert_eq!(forge(&image, b"bravo", b"br\xffvo"), Err(ImageError::Invalid("worker name")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whoever forges an image with a right checksum gets an error, or a state that is written just so.
    #[test]
    fn forged_images_are_refused_or_canonical(
        log in log(60),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        old in any::<bool>(),
    ) {
        let mut machine = if old { Machine::new } else { crate::testing::machine }(small_limits());
        for (at, proposal) in log.iter().enumerate() {
            machine.apply(LogIndex(at as u64 + 1), proposal);
        }
        let mut bytes = machine.encode();
        for (at, byte) in changes {
            let at = at.index(bytes.len() - CHECKSUM_BYTES);
            bytes[at] = byte;
        }
        let bytes = sealed(bytes);
        if let Ok(mut forged) = Machine::decode(&bytes, small_limits()) {
            let (blocks, tokens) = (bytes[1] & WITH_BLOCKS != 0, bytes[1] & WITH_TOKENS != 0);
            prop_assert_eq!(encode(&forged, bytes[0], Parts { blocks, tokens }), bytes);
            // It works on as any other would.
            for proposal in &log {
                let index = LogIndex(forged.applied().0.saturating_add(1));
                forged.apply(index, proposal);
            }
            prop_assert_eq!(forged.digest(), forged.clone().digest());
        }
    }

    #[test]
    fn any_bytes_are_safe(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Machine::decode(&bytes, small_limits());
        if bytes.len() > CHECKSUM_BYTES + 2 {
            for (version, kind) in [(VERSION_NEWEST, WITH_BLOCKS | WITH_TOKENS), (VERSION_OLDEST, WITH_BLOCKS)] {
                (bytes[0], bytes[1]) = (version, kind);
                let _ = Machine::decode(&sealed(bytes.clone()), small_limits());
            }
        }
    }
}

#[test]
fn the_size_of_an_image_is_known_beforehand_about() {
    let machine = sample();
    let (said, is) = (machine.image_bytes(), machine.encode().len() as u64);
    assert!(said >= is && said <= is * 4, "{said} said, {is} made");
}
