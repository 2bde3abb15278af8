//! Intact bytes that break a rule, each refused for that rule and at its place.

mod common;

use common::{Map, bare, cbor, full, full_set, plain_set, seal, u8s, u16s, u64s};
use guestclock_core::checkpoint::codec::{
    MAX_DEPTH, MAX_KEYS, PayloadKind, WireError, decode, decode_set, encode, encode_set,
};
use guestclock_core::checkpoint::{Checkpoint, CtlColumn, MAX_GROUPS};

/// The reason for refusing these bytes as malformed.
#[track_caller]
fn flaw(bytes: &[u8]) -> &'static str {
    let error = match decode(bytes) {
        Err(WireError::WrongKind { found: PayloadKind::Set, .. }) => decode_set(bytes).err(),
        other => other.err(),
    };
    match error {
        Some(WireError::Malformed { offset, what }) => {
            assert!(offset <= bytes.len(), "{what} at {offset} of {}", bytes.len());
            what
        }
        other => panic!("not malformed: {other:?}"),
    }
}

#[track_caller]
fn refused(bytes: &[u8], what: &str) {
    let found = flaw(bytes);
    assert!(found.contains(what), "refused for {found:?}, not for {what:?}");
}

fn payload() -> Map {
    Map::payload_of(&bare())
}

fn with_host(key: &str, value: Vec<u8>) -> Vec<u8> {
    let host = payload().inner("host").with(key, value);
    payload().with("host", host.bytes()).seal()
}

fn with_vtimer(ctl: Vec<u8>, cval: Vec<u8>) -> Vec<u8> {
    let timers = payload().inner("timers");
    let vtimer = Map::default().with("ctl", ctl).with("cval", cval);
    payload().with("timers", timers.with("vtimer", vtimer.bytes()).bytes()).seal()
}

/// A head of this major type that promises this many bytes or items.
fn head(major: u8, promised: u64) -> Vec<u8> {
    [&[major << 5 | 0x1b][..], &promised.to_be_bytes()].concat()
}

#[test]
fn the_pieces_put_together_again_are_the_checkpoint() {
    assert_eq!(payload().seal(), encode(&bare()));
    assert_eq!(with_host("leap", b"\x67unknown".to_vec()), encode(&bare()));
    assert_eq!(with_vtimer(u8s(&[1]), u64s(&[1000])), encode(&bare()));
}

#[test]
fn each_key_must_be_there() {
    let optional = ["debt", "sync", "cntvoff", "rate_ppb", "stopped_at", "later"];
    let whole = Map::payload_of(&full(2));
    for (key, _) in &whole.0 {
        let bytes = whole.clone().without(key).seal();
        if optional.contains(&key.as_str()) {
            decode(&bytes).unwrap();
        } else {
            refused(&bytes, &format!("{key} is missing"));
        }
    }
    let optional = ["boot_id", "machine_id", "max_error_ns", "synchronized", "tai_offset_s"];
    let host = whole.inner("host");
    for (key, _) in &host.0 {
        let bytes = whole.clone().with("host", host.clone().without(key).bytes()).seal();
        if optional.contains(&key.as_str()) {
            decode(&bytes).unwrap();
        } else {
            refused(&bytes, &format!("host.{key} is missing"));
        }
    }
    let timers = whole.inner("timers");
    for (key, _) in &timers.0 {
        let bytes = whole.clone().with("timers", timers.clone().without(key).bytes()).seal();
        if key == "vtimer" { refused(&bytes, "without vtimer") } else { drop(decode(&bytes).unwrap()) }
    }
    for map in ["debt", "sync"] {
        let parts = whole.inner(map);
        for (key, _) in &parts.0 {
            let bytes = whole.clone().with(map, parts.clone().without(key).bytes()).seal();
            // TAI - UTC is the one part that may be left out.
            if key == "tai_offset_s" {
                drop(decode(&bytes).unwrap());
            } else {
                refused(&bytes, &format!("{map} isn't a map"));
            }
        }
    }
    let vtimer = timers.inner("vtimer");
    for key in ["ctl", "cval"] {
        let timers = timers.clone().with("vtimer", vtimer.clone().without(key).bytes());
        refused(&whole.clone().with("timers", timers.bytes()).seal(), "a timer isn't a map of ctl and cval");
    }
}

#[test]
fn each_key_must_hold_its_own_type() {
    let whole = Map::payload_of(&full(2));
    let wrong = [vec![0x80], vec![0x61, b'x'], vec![0xf6], vec![0x20], vec![0xd8, 0x47, 0x00]];
    for (key, _) in whole.0.iter().filter(|(key, _)| key != "later") {
        // -1 is a rate.
        for value in wrong.iter().filter(|value| key != "rate_ppb" || **value != [0x20]) {
            refused(&whole.clone().with(key, value.clone()).seal(), key);
        }
    }
    let host = whole.inner("host");
    for (key, _) in &host.0 {
        // -1 is a wall clock and a TAI offset, "x" is a source.
        for value in &wrong[..1] {
            refused(&whole.clone().with("host", host.clone().with(key, value.clone()).bytes()).seal(), key);
        }
    }
}

#[test]
fn what_is_owed_and_vouched_for_has_its_ranges() {
    let whole = Map::payload_of(&full(2));
    let with = |map: &str, key: &str, value: Vec<u8>| {
        whole.clone().with(map, whole.inner(map).with(key, value).bytes()).seal()
    };
    for key in ["owed_ticks", "step_ns", "interval_ns"] {
        refused(&with("debt", key, vec![0]), "debt has a 0");
        refused(&with("debt", key, vec![0x20]), "debt isn't a map");
    }
    for key in ["age_ns", "holdover_ppb", "max_error_ns"] {
        decode(&with("sync", key, vec![0])).unwrap();
        refused(&with("sync", key, vec![0x20]), &format!("sync.{key}"));
    }
    refused(&with("sync", "quality", b"\x64good".to_vec()), "sync.quality");
    refused(&with("sync", "tai_offset_s", cbor(|e| drop(e.i64(1 << 31)))), "sync.tai_offset_s");
    refused(&with("sync", "later", vec![0]), "sync isn't a map");
    refused(&with("debt", "later", vec![0]), "debt isn't a map");
}

#[test]
fn nested_maps_take_no_other_keys() {
    refused(&with_host("later", vec![0]), "host has a key that version 1 hasn't");
    let timers = payload().inner("timers");
    let vtimer = timers.inner("vtimer");
    refused(
        &payload().with("timers", timers.clone().with("xtimer", vtimer.bytes()).bytes()).seal(),
        "timers has a key that isn't vtimer, ptimer, hvtimer or hptimer",
    );
    let tval = vtimer.with("tval", u64s(&[1])).bytes();
    refused(
        &payload().with("timers", timers.with("vtimer", tval).bytes()).seal(),
        "a timer isn't a map of ctl and cval",
    );
}

#[test]
fn ranges_are_kept() {
    refused(&payload().with("cntfrq_hz", vec![0]).seal(), "cntfrq_hz is 0");
    refused(&payload().with("cntfrq_hz", head(0, 1 << 32)).seal(), "cntfrq_hz isn't an unsigned integer of 32 bits");
    refused(&with_host("frequency_hz", vec![0]), "host.frequency_hz");
    refused(&with_host("realtime_ns", head(0, 1 << 63)), "host.realtime_ns");
    refused(&with_host("realtime_ns", head(1, 1 << 63)), "host.realtime_ns");
    refused(&with_host("tai_offset_s", cbor(|e| drop(e.i64(1 << 31)))), "host.tai_offset_s");
    refused(&with_host("leap", b"\x64leap".to_vec()), "host.leap");
    for len in [0u8, 15, 17] {
        for key in ["machine_id", "boot_id"] {
            refused(&with_host(key, [vec![0x40 | len], vec![7; len.into()]].concat()), key);
        }
    }
    for source in ["", "\u{1b}[2J", "Manual", "a23456789_123456789_123456789_123", "é"] {
        refused(&with_host("source", cbor(|e| drop(e.str(source)))), "host.source");
    }
}

#[test]
fn every_column_is_as_long_as_there_are_vcpus() {
    for vcpus in [0, 2, 1 << 40] {
        refused(&payload().with("vcpus", cbor(|e| drop(e.u64(vcpus)))).seal(), "one value a vCPU");
    }
    refused(&payload().with("vcpus", head(0, u64::MAX)).seal(), "vCPU");
    refused(&with_vtimer(u8s(&[1]), u64s(&[])), "cval hasn't one value a vCPU");
    refused(&with_vtimer(u8s(&[1]), u64s(&[1, 2])), "cval hasn't one value a vCPU");
    refused(&with_vtimer(u8s(&[]), u64s(&[1])), "ctl hasn't one value a vCPU");
    refused(&payload().with("cntvoff", u64s(&[1, 2])).seal(), "cntvoff hasn't one value a vCPU");
    decode(&payload().with("cntvoff", u64s(&[1])).seal()).unwrap();
}

#[test]
fn columns_are_typed_arrays() {
    let untagged = cbor(|e| drop(e.bytes(&[0; 8])));
    refused(&with_vtimer(u8s(&[1]), untagged.clone()), "cval isn't a u64 array");
    refused(&with_vtimer(untagged, u64s(&[1])), "ctl is neither");
    refused(&with_vtimer(u8s(&[1]), u8s(&[0; 8])), "cval isn't a u64 array");
    // Big endian is tag 67: a reader that ignored the tag would take it for another value.
    refused(&with_vtimer(u8s(&[1]), [&[0xd8, 67, 0x48][..], &[0; 8]].concat()), "cval isn't a u64 array");
    refused(&with_vtimer(u8s(&[1]), [&[0xd8, 71, 0x47][..], &[0; 7]].concat()), "cval isn't a u64 array");
    refused(&with_vtimer([&[0xd8, 71, 0x47][..], &[0; 7]].concat(), u64s(&[1])), "ctl is neither");
}

#[test]
fn ctl_has_one_form() {
    let istatus_or_width = "ISTATUS set, or isn't in the narrowest column";
    refused(&with_vtimer(u8s(&[4]), u64s(&[1])), istatus_or_width);
    refused(&with_vtimer(u8s(&[255]), u64s(&[1])), istatus_or_width);
    refused(&with_vtimer(u64s(&[3]), u64s(&[1])), istatus_or_width);
    refused(&with_vtimer(u64s(&[4]), u64s(&[1])), istatus_or_width);
    refused(&with_vtimer(u64s(&[12]), u64s(&[1])), istatus_or_width);
    let Ok(Checkpoint { timers, .. }) = decode(&with_vtimer(u64s(&[8]), u64s(&[1]))) else { panic!() };
    assert_eq!(timers[0].ctl, CtlColumn::Wide(vec![8]));
    // No value is wide where there is no value.
    let empty = Map::default().with("ctl", u64s(&[])).with("cval", u64s(&[]));
    let timers = Map::default().with("vtimer", empty.bytes()).bytes();
    refused(&payload().with("vcpus", vec![0]).with("timers", timers).seal(), istatus_or_width);
}

#[test]
fn keys_are_in_order_and_there_once() {
    let mut swapped = payload();
    swapped.0.swap(1, 2);
    refused(&swapped.seal(), "isn't in bytewise order");
    let mut twice = payload();
    twice.0.insert(1, twice.0[1].clone());
    refused(&twice.seal(), "the key is there twice");
    let mut longer_first = payload();
    longer_first.0.insert(0, ("aaaaaaaa".into(), vec![0]));
    refused(&longer_first.seal(), "isn't in bytewise order");
    // The same in a value that nothing here knows.
    refused(&payload().with("later", b"\xa2\x61b\x00\x61a\x00".to_vec()).seal(), "isn't in bytewise order");
    refused(&payload().with("later", b"\xa2\x61a\x00\x61a\x00".to_vec()).seal(), "the key is there twice");
    refused(&seal(b"\xa1\x01\x02"), "a key of the payload isn't text");
}

#[test]
fn numbers_and_lengths_are_the_shortest() {
    let what = "the one encoding";
    for long in [&b"\x18\x17"[..], b"\x19\x00\xff", b"\x1a\x00\x00\xff\xff", b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff"] {
        refused(&payload().with("cntvct", long.to_vec()).seal(), what);
        refused(&payload().with("later", long.to_vec()).seal(), what);
    }
    for long in [&b"\x38\x00"[..], b"\x58\x01x", b"\x78\x01x", b"\x98\x01\x00", b"\xb8\x00", b"\xd8\x01\x00"] {
        refused(&payload().with("later", long.to_vec()).seal(), what);
    }
    // In the envelope: the version, the payload's tag and length, and the checksum's length.
    let bytes = encode(&bare());
    assert_eq!(bytes[15..20], [1, 0xd8, 24, 0x58, 184]);
    let crc = bytes.len() - 5;
    for (at, short, long) in
        [(15, 1, &[0x18, 1][..]), (16, 2, &[0xd9, 0, 24]), (18, 2, &[0x59, 0, 184]), (crc, 1, &[0x58, 4])]
    {
        let longer = [&bytes[..at], long, &bytes[at + short..]].concat();
        refused(&common::reseal(longer), what);
    }
}

#[test]
fn lengths_are_definite() {
    for open in [&b"\x5f\x41x\xff"[..], b"\x7f\x61x\xff", b"\x9f\x00\xff", b"\xbf\x00\x00\xff", b"\xff"] {
        refused(&payload().with("later", open.to_vec()).seal(), "lengths are definite");
        refused(&payload().with("cntvct", open.to_vec()).seal(), "lengths are definite");
    }
    let mut open = payload().bytes();
    open[0] = 0xbf;
    open.push(0xff);
    refused(&seal(&open), "lengths are definite");
}

#[test]
fn there_is_nothing_but_integers_strings_arrays_maps_tags_and_three_simple_values() {
    for float in [&b"\xf9\x3c\x00"[..], b"\xfa\x3f\x80\x00\x00", b"\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00"] {
        refused(&payload().with("later", float.to_vec()).seal(), "floating point");
    }
    for simple in [&b"\xf7"[..], b"\xe0", b"\xf8\x20", b"\xf8\x00", b"\xfc", b"\x1c"] {
        refused(&payload().with("later", simple.to_vec()).seal(), "simple values");
    }
    refused(&payload().with("later", b"\x62\xff\xff".to_vec()).seal(), "this isn't CBOR");
}

#[test]
fn promised_lengths_are_not_believed() {
    for major in [2, 3, 4, 5] {
        for promised in [1 << 32, 1 << 40, u64::MAX] {
            refused(&seal(&head(major, promised)), "this isn't CBOR");
            refused(&payload().with("width_ticks", head(major, promised)).seal(), "this isn't CBOR");
        }
    }
    refused(&with_vtimer(u8s(&[1]), [&[0xd8, 71][..], &head(2, u64::MAX)].concat()), "isn't CBOR");
    // The payload's own length.
    let bytes = encode(&bare());
    let longer = [&bytes[..18], &head(2, u64::MAX), &bytes[20..]].concat();
    refused(&common::reseal(longer), "the payload isn't a byte string that fits in the file");
}

#[test]
fn nesting_has_a_limit() {
    let nested = |open: &[u8], depth: usize| [open.repeat(depth), vec![0]].concat();
    // One level is the payload's map, one the innermost value.
    for open in [&b"\x81"[..], b"\xc1", b"\xa1\x00"] {
        decode(&payload().with("later", nested(open, MAX_DEPTH - 2)).seal()).unwrap();
        refused(&payload().with("later", nested(open, MAX_DEPTH - 1)).seal(), "nested too deep");
        refused(&payload().with("later", nested(open, 1_000_000)).seal(), "nested too deep");
        refused(&seal(&nested(open, 1_000_000)), "nested too deep");
    }
    // As a map's key.
    refused(&seal(&b"\xa1".repeat(1_000_000)), "nested too deep");
}

#[test]
fn keys_are_few_and_short() {
    let mut many = payload();
    let known = many.0.len();
    for n in 0..MAX_KEYS - known {
        many = many.with(&format!("later-{n:02}"), vec![0]);
    }
    decode(&many.seal()).unwrap();
    refused(&many.with("one more", vec![0]).seal(), "too many keys");
    decode(&payload().with(&"k".repeat(64), vec![0]).seal()).unwrap();
    refused(&payload().with(&"k".repeat(65), vec![0]).seal(), "too long");
}

#[test]
fn the_envelope_is_exact() {
    refused(&seal(b""), "this isn't CBOR");
    refused(&seal(b"\x00"), "the payload isn't a map");
    refused(&seal(&[payload().bytes(), vec![0]].concat()), "the payload goes on after its map");
    let bytes = encode(&bare());
    let untagged = [&bytes[..16], &bytes[18..]].concat();
    refused(&common::reseal(untagged), "the payload isn't tagged 24");
    let mut text = bytes.clone();
    text[18] = 0x78;
    refused(&common::reseal(text), "the payload isn't a byte string");
    let crc = bytes.len() - 5;
    let mut text = bytes.clone();
    text[crc] = 0x64;
    refused(&common::reseal(text), "the checksum isn't a byte string");
    let mut short = bytes.clone();
    short[crc] = 0x43;
    refused(&common::reseal(short), "the checksum isn't 4 bytes long");
    let mut version = bytes;
    version[15] = 0x20;
    refused(&common::reseal(version), "the version isn't an unsigned integer");
}

#[test]
fn crit_names_what_version_1_lacks_or_isnt_there() {
    let what = "crit names no key beyond those of version 1";
    refused(&payload().with("crit", vec![0x80]).seal(), what);
    refused(&payload().with("crit", b"\x81\x64host".to_vec()).seal(), what);
    refused(&payload().with("crit", b"\x81\x64crit".to_vec()).seal(), what);
    refused(&payload().with("crit", vec![0xf6]).seal(), "crit isn't an array of text");
    refused(&payload().with("crit", vec![0x81, 0x00]).seal(), "crit isn't an array of text");
    let long = cbor(|e| drop(e.encode([&*"k".repeat(65)])));
    refused(&payload().with("crit", long).seal(), "too long");
}

/// A set of two groups; the first has everything.
fn sets() -> Map {
    Map::payload_of_set(&full_set(3))
}

/// The same with its first group changed.
fn with_group(change: impl FnOnce(Map) -> Map) -> Vec<u8> {
    let mut groups = sets().each("groups");
    groups[0] = change(groups[0].clone());
    sets().with("groups", Map::array(&groups)).seal()
}

#[test]
fn the_pieces_put_together_again_are_the_set() {
    assert_eq!(Ok(sets().seal()), encode_set(&full_set(3)));
    assert_eq!(Ok(with_group(|group| group)), encode_set(&full_set(3)));
}

#[test]
fn each_key_of_a_set_must_be_there() {
    for (key, _) in &sets().0 {
        let bytes = sets().without(key).seal();
        match key.as_str() {
            "sync" | "rate_ppb" | "stopped_at" | "later" => drop(decode_set(&bytes).unwrap()),
            // Without it, it is one of one VM, with hardly anything in it.
            "groups" => {
                let wrong = WireError::WrongKind { found: PayloadKind::Vm, wanted: PayloadKind::Set };
                assert_eq!(decode_set(&bytes), Err(wrong));
                refused(&bytes, "is missing");
            }
            _ => refused(&bytes, &format!("{key} is missing")),
        }
    }
    for (key, _) in &sets().each("groups")[0].0 {
        let bytes = with_group(|group| group.without(key));
        if ["debts", "cntpct", "cntvoff"].contains(&key.as_str()) {
            decode_set(&bytes).unwrap();
        } else {
            refused(&bytes, &format!("{key} is missing"));
        }
    }
}

#[test]
fn each_key_of_a_set_must_hold_its_own_type() {
    let wrong = [vec![0x60], vec![0x61, b'x'], vec![0xf6], vec![0x20], vec![0xd8, 0x47, 0x00], u8s(&[2; 8])];
    for (key, _) in sets().0.iter().filter(|(key, _)| key != "later") {
        for value in wrong.iter().filter(|value| key != "rate_ppb" || **value != [0x20]) {
            refused(&sets().with(key, value.clone()).seal(), key);
        }
    }
    for (key, _) in &sets().each("groups")[0].0 {
        for value in &wrong {
            refused(&with_group(|group| group.with(key, value.clone())), key);
        }
    }
    refused(&sets().with("groups", vec![0x81, 0x00]).seal(), "groups isn't an array of maps");
}

#[test]
fn the_kinds_arent_mixed() {
    for (key, value) in Map::payload_of(&full(2)).0.into_iter().filter(|(key, _)| sets().without(key).0 == sets().0) {
        refused(&sets().with(&key, value).seal(), "a key that only a checkpoint of one VM has");
    }
    let whole = payload().with("groups", vec![0x80]).seal();
    assert_eq!(decode(&whole), Err(WireError::WrongKind { found: PayloadKind::Set, wanted: PayloadKind::Vm }));
    refused(&with_group(|group| group.with("later", vec![0])), "a group has a key that version 1 hasn't");
    refused(&with_group(|group| group.with("crit", vec![0x80])), "a group has a key that version 1 hasn't");
}

#[test]
fn a_set_has_one_form() {
    let is = |key: &'static str, value: Vec<u8>, what: &str| refused(&with_group(|group| group.with(key, value)), what);
    let column = |key| sets().each("groups")[0].0.iter().find(|(other, _)| other == key).unwrap().1.clone();
    is("owned", u8s(&[1; 3]), "of which some differ");
    is("owned", u8s(&[0, 1]), "one a VM");
    is("owned", u8s(&[0, 1, 2]), "a u8 array (tag 64) of 0 and 1");
    is("vcpus", u16s(&[3; 3]), "of which some differ");
    is("vcpus", u16s(&[2, 3, 3, 3]), "one a VM");
    is("vcpus", [&[0xd8, 69, 0x43][..], &[2, 0, 3]].concat(), "vcpus is neither");
    is("vcpus", vec![0], "1 to 512");
    is("vcpus", cbor(|e| drop(e.u16(513))), "1 to 512");
    is("vcpus", cbor(|e| drop(e.u32(1 << 16))), "vcpus is neither");
    is("vcpus", vec![2], "nor one a vCPU");
    is("cntvoff", u64s(&[7; 8]), "of which some differ");
    is("cntvoff", u64s(&[7, 8]), "nor one a vCPU");
    is("cntpct", column("cntvct"), "as cntvct for all");
    is("cntpct", u64s(&[1]), "one value a VM");
    is("cntvct", u64s(&[1]), "one value a VM");
    is("names", u64s(&[1, 2, 2]), "names aren't ascending");
    is("names", u64s(&[1, 3, 2]), "names aren't ascending");
    is("names", u64s(&[]), "a group has no VMs");
    is("cntfrq_hz", vec![0], "cntfrq_hz is 0");
    is("timers", vec![0xa0], "without vtimer");
    // The other group's.
    is("names", sets().each("groups")[1].0.iter().find(|(key, _)| key == "names").unwrap().1.clone(), "the same name");
    let mut groups = sets().each("groups");
    groups.swap(0, 1);
    refused(&sets().with("groups", Map::array(&groups)).seal(), "groups aren't in the order");
    refused(&sets().with("groups", Map::array(&[groups[0].clone(), groups[0].clone()])).seal(), "groups aren't in");
}

#[test]
fn debts_are_those_of_the_groups_vms() {
    let with = |key: &str, value: Vec<u8>| {
        with_group(|group| {
            let backlogs = group.inner("debts").with(key, value);
            group.with("debts", backlogs.bytes())
        })
    };
    let parts = "debts isn't a map of rows";
    for key in ["rows", "step_ns", "owed_ticks", "interval_ns"] {
        refused(&with(key, u64s(&[1])), parts);
        refused(&with(key, u64s(&[1, 2, 3])), parts);
        refused(&with(key, vec![0]), parts);
        refused(&with_group(|group| group.clone().with("debts", group.inner("debts").without(key).bytes())), parts);
        if key != "rows" {
            refused(&with(key, u64s(&[1, 0])), "debt has a 0");
        }
    }
    for rows in [[2, 1], [1, 1], [1, 3], [1, u64::MAX]] {
        refused(&with("rows", u64s(&rows)), "the rows of backlogs");
    }
    refused(&with("later", u64s(&[1, 2])), parts);
    let none = ["rows", "step_ns", "owed_ticks", "interval_ns"]
        .iter()
        .fold(Map::default(), |map, key| map.with(key, u64s(&[])));
    refused(&with_group(|group| group.with("debts", none.bytes())), parts);
}

#[test]
fn groups_are_few() {
    let group = Map::payload_of_set(&plain_set(1)).each("groups").remove(0);
    let of = |count: u32| {
        let groups: Vec<_> = (1..=count)
            .map(|n| group.clone().with("cntfrq_hz", cbor(|e| drop(e.u32(n)))).with("names", u64s(&[n.into()])))
            .collect();
        Map::payload_of_set(&plain_set(1)).with("groups", Map::array(&groups)).seal()
    };
    let most = u32::try_from(MAX_GROUPS).unwrap();
    assert_eq!(decode_set(&of(most)).unwrap().len(), MAX_GROUPS);
    refused(&of(most + 1), "groups isn't an array of at most 64 maps");
}
