//! Images: what is written is read back; what is damaged, cut, forged or too big is refused without a panic.

use mainstay_types::{Command, LogIndex};
use proptest::prelude::*;

use super::*;
use crate::testing::{Log, frame, log, pin, prefix, register, report, small_limits, stored};

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
    assert_eq!(copy.index().blocks(), machine.index().blocks());
    assert_eq!(copy.pins().filter(|p| !p.is_live()).count(), 1);
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
    assert_eq!(decode(&[IMAGE_VERSION]), Err(ImageError::Truncated));
    assert_eq!(decode(&[9; 100]), Err(ImageError::Version(9)));
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whoever forges an image with a right checksum gets an error, or a state that is written just so.
    #[test]
    fn forged_images_are_refused_or_canonical(
        log in log(60),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut machine = Machine::new(small_limits());
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
            let with_blocks = bytes[1] == WITH_BLOCKS;
            prop_assert_eq!(encode(&forged, with_blocks), bytes);
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
            bytes[0] = IMAGE_VERSION;
            bytes[1] = WITH_BLOCKS;
            let _ = Machine::decode(&sealed(bytes), small_limits());
        }
    }
}
