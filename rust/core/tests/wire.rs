//! The laws of the format: what was written is read, what was damaged isn't, and nothing at all panics.

mod common;

use common::{Map, bare, checkpoint, full, full_set, plain_set, reseal, seal, set};
use guestclock_core::checkpoint::codec::{
    MAX_BYTES, PayloadKind, VERSION, WireError, decode, decode_set, encode, encode_set, encoded_len,
};
use guestclock_core::checkpoint::{Checkpoint, CheckpointSet, UnknownKey};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;

/// Checkpoints and sets whose every bit is flipped and every truncation tried.
fn samples() -> Vec<Vec<u8>> {
    let none = Checkpoint {
        vcpus: 0,
        timers: vec![common::timer(guestclock_core::arch::arm64::Timer::Vtimer, &[], &[])],
        ..bare()
    };
    let sets = [CheckpointSet { groups: Vec::new(), ..plain_set(1) }, plain_set(2), full_set(3)];
    let checkpoints = [none, bare(), full(3)].map(|checkpoint| encode(&checkpoint));
    checkpoints.into_iter().chain(sets.map(|set| encode_set(&set).unwrap())).collect()
}

/// Reads it as what it is of.
fn read(bytes: &[u8]) -> Result<Result<Checkpoint, CheckpointSet>, WireError> {
    match decode(bytes) {
        Err(WireError::WrongKind { found: PayloadKind::Set, wanted: PayloadKind::Vm }) => decode_set(bytes).map(Err),
        other => other.map(Ok),
    }
}

/// Its bytes.
fn written(value: &Result<Checkpoint, CheckpointSet>) -> Vec<u8> {
    value.as_ref().map_or_else(|set| encode_set(set).unwrap(), encode)
}

#[test]
fn every_single_bit_flip_is_refused() {
    for whole in samples() {
        let mut bytes = whole.clone();
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                bytes[byte] ^= 1 << bit;
                match read(&bytes) {
                    Err(WireError::NotACheckpoint) => assert!(byte < 15, "byte {byte} isn't in the mark"),
                    Err(WireError::Corrupt { stored, computed }) => assert_ne!(stored, computed),
                    other => panic!("bit {bit} of byte {byte}: {other:?}"),
                }
                bytes[byte] ^= 1 << bit;
            }
        }
        assert_eq!(written(&read(&bytes).unwrap()), whole);
    }
}

#[test]
fn every_truncation_is_refused() {
    for bytes in samples() {
        for len in 0..bytes.len() {
            match read(&bytes[..len]) {
                Err(WireError::NotACheckpoint) => assert!(len < 15, "{len} bytes have the mark"),
                Err(WireError::Corrupt { .. }) => {}
                other => panic!("{len} bytes: {other:?}"),
            }
            // Cut short by someone who mends the checksum: the lengths tell.
            let mended = reseal(bytes[..len].to_vec());
            match read(&mended) {
                Err(WireError::Malformed { .. }) => {}
                // The new checksum stands where the mark or the version was.
                Err(WireError::NotACheckpoint | WireError::UnsupportedVersion { .. }) if len < 24 => {}
                other => panic!("{len} bytes, resealed: {other:?}"),
            }
        }
    }
}

#[test]
fn each_kind_is_read_as_what_it_is() {
    let (one, set) = (encode(&bare()), encode_set(&plain_set(2)).unwrap());
    let of_set = decode(&set).unwrap_err();
    assert_eq!(of_set, WireError::WrongKind { found: PayloadKind::Set, wanted: PayloadKind::Vm });
    assert!(of_set.to_string().contains("a set of VMs") && of_set.to_string().contains("as a CheckpointSet"));
    let of_one = decode_set(&one).unwrap_err();
    assert_eq!(of_one, WireError::WrongKind { found: PayloadKind::Vm, wanted: PayloadKind::Set });
    assert!(of_one.to_string().contains("one VM") && of_one.to_string().ends_with("as a Checkpoint"));
    // What isn't sound is that first, whichever is wanted.
    for read in [|bytes: &[u8]| decode(bytes).err(), |bytes: &[u8]| decode_set(bytes).err()] {
        assert!(matches!(read(&set[..set.len() - 1]), Some(WireError::Corrupt { .. })));
        let payload = Map::payload_of_set(&plain_set(2)).with("crit", b"\x81\x65later".to_vec());
        assert_eq!(read(&payload.seal()), Some(WireError::UnsupportedFeature { feature: "later".into() }));
    }
}

#[test]
fn a_set_that_couldnt_be_read_back_isnt_written() {
    let of = |blob: usize| {
        let value = common::cbor(|e| drop(e.bytes(&vec![0; blob])));
        CheckpointSet { unknown: vec![UnknownKey { key: "later".into(), value }], ..plain_set(1) }
    };
    // Lengths above 2^16 have heads of one size.
    let room = MAX_BYTES - encoded_len(&of(1 << 20)) + (1 << 20);
    let bytes = encode_set(&of(room)).unwrap();
    assert_eq!(bytes.len(), MAX_BYTES);
    assert!(decode_set(&bytes).is_ok_and(|set| set == of(room)));
    let size = MAX_BYTES + 1;
    assert_eq!(encode_set(&of(room + 1)), Err(WireError::TooLarge { size, limit: MAX_BYTES }));
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
    if let Ok(value) = read(bytes) {
        assert_eq!(written(&value), bytes);
    }
}

/// Bytes of either kind.
fn intact() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        checkpoint().prop_map(|checkpoint| encode(&checkpoint)),
        set().prop_map(|set| encode_set(&set).unwrap())
    ]
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
    fn a_set_that_is_written_is_read(set in set()) {
        prop_assert_eq!(set.validate(), Ok(()));
        let bytes = encode_set(&set).unwrap();
        prop_assert_eq!(encoded_len(&set), bytes.len());
        let read = decode_set(&bytes);
        prop_assert_eq!(read.as_ref(), Ok(&set));
        prop_assert_eq!(encode_set(&read.unwrap()), Ok(bytes));
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&bytes).is_err());
        refused_or_the_same(&seal(&bytes));
        refused_or_the_same(&reseal([&encode(&bare())[..15], &bytes, &[0; 4]].concat()));
    }

    #[test]
    fn mutations_with_the_checksum_mended_are_refused_or_the_same(
        bytes in intact(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..4), 1..6),
    ) {
        let mut bytes = bytes;
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
        bytes in intact(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..4), 1..4),
    ) {
        let mut payload = Map::payload_in(&bytes).bytes();
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
