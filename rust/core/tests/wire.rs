//! The laws of the format: what was written is read, what was damaged isn't, and nothing at all panics.

mod common;

use common::{Map, bare, checkpoint, full, reseal, seal};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::wire::{MAX_BYTES, VERSION, WireError, decode, encode};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;

/// Checkpoints whose every bit is flipped and every truncation tried.
fn samples() -> [Checkpoint; 3] {
    [
        Checkpoint { vcpus: 0, timers: vec![common::timer(guestclock_core::timer::Timer::Vtimer, &[], &[])], ..bare() },
        bare(),
        full(3),
    ]
}

#[test]
fn every_single_bit_flip_is_refused() {
    for checkpoint in samples() {
        let whole = encode(&checkpoint);
        let mut bytes = whole.clone();
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                bytes[byte] ^= 1 << bit;
                match decode(&bytes) {
                    Err(WireError::NotACheckpoint) => assert!(byte < 15, "byte {byte} isn't in the mark"),
                    Err(WireError::Corrupt { stored, computed }) => assert_ne!(stored, computed),
                    other => panic!("bit {bit} of byte {byte}: {other:?}"),
                }
                bytes[byte] ^= 1 << bit;
            }
        }
        assert_eq!(bytes, whole);
        assert_eq!(decode(&bytes), Ok(checkpoint));
    }
}

#[test]
fn every_truncation_is_refused() {
    for checkpoint in samples() {
        let bytes = encode(&checkpoint);
        for len in 0..bytes.len() {
            match decode(&bytes[..len]) {
                Err(WireError::NotACheckpoint) => assert!(len < 15, "{len} bytes have the mark"),
                Err(WireError::Corrupt { .. }) => {}
                other => panic!("{len} bytes: {other:?}"),
            }
            // Cut short by someone who mends the checksum: the lengths tell.
            let mended = reseal(bytes[..len].to_vec());
            match decode(&mended) {
                Err(WireError::Malformed { .. }) => {}
                // The new checksum stands where the mark or the version was.
                Err(WireError::NotACheckpoint | WireError::UnsupportedVersion { .. }) if len < 24 => {}
                other => panic!("{len} bytes, resealed: {other:?}"),
            }
        }
    }
}

#[test]
fn nothing_may_follow() {
    let bytes = encode(&bare());
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(decode(&longer), Err(WireError::Corrupt { .. })));
    let mut resealed = bytes.clone();
    resealed.extend([0; 4]);
    let offset = bytes.len();
    assert_eq!(
        decode(&reseal(resealed)),
        Err(WireError::Malformed { offset, what: "the file goes on after the checksum" })
    );
}

#[test]
fn what_isnt_a_checkpoint_says_so() {
    for bytes in [&b""[..], b"\xd9\xd9\xf7", b"PK\x03\x04 a zip file", b"\xd9\xd9\xf7\x84\x6aguestcloc"] {
        assert_eq!(decode(bytes), Err(WireError::NotACheckpoint));
    }
}

#[test]
fn the_size_is_looked_at_first() {
    let size = MAX_BYTES + 1;
    assert_eq!(decode(&vec![0; size]), Err(WireError::TooLarge { size, limit: MAX_BYTES }));
    assert_eq!(decode(&vec![0; MAX_BYTES]), Err(WireError::NotACheckpoint));
}

#[test]
fn another_version_is_named_before_anything_in_it_is_read() {
    let bytes = encode(&bare());
    for version in [0u8, 2, 23] {
        let mut other = bytes.clone();
        other[15] = version;
        assert!(matches!(decode(&other), Err(WireError::Corrupt { .. })), "a damaged version is damage");
        let found = u64::from(version);
        assert_eq!(decode(&reseal(other)), Err(WireError::UnsupportedVersion { found, supported: VERSION }));
    }
    let huge = [&bytes[..15], b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff", b"anything", &[0; 4]].concat();
    assert_eq!(decode(&reseal(huge)), Err(WireError::UnsupportedVersion { found: u64::MAX, supported: VERSION }));
}

#[test]
fn a_feature_that_must_be_known_is_named_before_anything_else_is_taken_for_what_it_was() {
    let crit = |names: &[&str]| {
        common::cbor(|e| {
            e.encode(names).unwrap();
        })
    };
    let payload = Map::payload_of(&bare()).with("crit", crit(&["host", "scaling"])).with("scaling", vec![1]);
    let refused = Err(WireError::UnsupportedFeature { feature: "scaling".into() });
    assert_eq!(decode(&payload.seal()), refused);
    // What a later version may do to a key that this one knows.
    assert_eq!(decode(&payload.with("host", vec![0]).seal()), refused);
}

#[test]
fn messages_say_both_sides_and_the_way_out() {
    let message = decode(&reseal([encode(&bare()), vec![0; 4]].concat())).unwrap_err().to_string();
    assert!(message.contains("byte 209") && message.contains("docs/checkpoint-format.md"), "{message}");
    let version = WireError::UnsupportedVersion { found: 7, supported: VERSION }.to_string();
    assert!(version.contains("version 7") && version.contains("version 1"), "{version}");
    let corrupt = WireError::Corrupt { stored: 0xab, computed: 0xcd }.to_string();
    assert!(corrupt.contains("000000ab") && corrupt.contains("000000cd"), "{corrupt}");
    // A name out of a file isn't printed raw.
    let feature = WireError::UnsupportedFeature { feature: "\u{1b}[2J".into() }.to_string();
    assert!(!feature.contains('\u{1b}'), "{feature}");
}

/// Whatever the bytes: refused, or the very bytes that the checkpoint in them is written as.
fn refused_or_the_same(bytes: &[u8]) {
    if let Ok(checkpoint) = decode(bytes) {
        assert_eq!(encode(&checkpoint), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::Off))]

    #[test]
    fn what_is_written_is_read(checkpoint in checkpoint()) {
        prop_assert_eq!(checkpoint.validate(), Ok(()));
        let bytes = encode(&checkpoint);
        let read = decode(&bytes);
        prop_assert_eq!(read.as_ref(), Ok(&checkpoint));
        prop_assert_eq!(encode(&read.unwrap()), bytes);
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&bytes).is_err());
        refused_or_the_same(&seal(&bytes));
        refused_or_the_same(&reseal([&encode(&bare())[..15], &bytes, &[0; 4]].concat()));
    }

    #[test]
    fn mutations_with_the_checksum_mended_are_refused_or_the_same(
        checkpoint in checkpoint(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..4), 1..6),
    ) {
        let mut bytes = encode(&checkpoint);
        for (place, value, kind) in changes {
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        refused_or_the_same(&reseal(bytes));
    }

    /// As above, in the payload alone, so that the envelope's lengths don't catch what changes its length.
    #[test]
    fn mutated_payloads_are_refused_or_the_same(
        checkpoint in checkpoint(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..4), 1..4),
    ) {
        let mut payload = Map::payload_of(&checkpoint).bytes();
        for (place, value, kind) in changes {
            let at = place.index(payload.len());
            match kind {
                0 => payload[at] = value,
                1 => payload[at] ^= 1 << (value % 8),
                2 => payload.insert(at, value),
                _ => drop(payload.remove(at)),
            }
        }
        refused_or_the_same(&seal(&payload));
    }
}
