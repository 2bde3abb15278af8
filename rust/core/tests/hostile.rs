//! Intact bytes that break a rule of docs/checkpoint-format.md, each refused for that rule, its key and its place.

mod common;

use common::{Contents, Doc, UNNAMED, Vm, bare, cbor, full, full_host, plain_host, seal, u8s, u64s};
use guestclock_core::arch::arm64::{Encoding, Role, Timer, View, one_reg_id};
use guestclock_core::checkpoint::codec::{MAX_DEPTH, MAX_KEYS, WireError, decode, encode};
use guestclock_core::checkpoint::{MAX_GROUPS, MAX_VCPUS};

/// The place, the key and the fault for which these bytes are refused as malformed.
#[track_caller]
fn flaw(bytes: &[u8]) -> (usize, &'static str, &'static str) {
    match decode(bytes) {
        Err(WireError::Malformed { offset, key, what }) => {
            assert!(offset <= bytes.len(), "{key} {what} at {offset} of {}", bytes.len());
            (offset, key, what)
        }
        other => panic!("not malformed: {other:?}"),
    }
}

/// Refused for this fault, wherever it lies.
#[track_caller]
fn refused(bytes: &[u8], fault: &str) {
    let (_, key, what) = flaw(bytes);
    let found = format!("{key} {what}");
    assert!(found.contains(fault), "refused for {found:?}, not for {fault:?}");
}

/// Refused for this fault of this key, at the value that this path leads to.
#[track_caller]
fn at(payload: &Doc, path: &str, key: &str, what: &str) {
    let (file, payload_bytes) = (payload.seal(), payload.bytes().len());
    let (offset, found_key, found) = flaw(&file);
    let start = file.len() - 5 - payload_bytes;
    assert_eq!((found_key, offset), (key, start + payload.place(path)), "{found} {path}");
    assert!(found.contains(what), "refused for {found:?}, not for {what:?}");
}

/// Refused for this value.
#[track_caller]
fn value(payload: &Doc, path: &str, value: &[u8], key: &str, what: &str) {
    at(&payload.clone().with(path, value.to_vec()), path, key, what);
}

fn payload() -> Doc {
    Doc::payload_of(&bare().made())
}

/// Two groups of three VMs: the plain one is group 1, and everything is in group 0.
fn host() -> Doc {
    Doc::payload_of(&full_host(3).made())
}

/// A host of one group in which everything is known of all three VMs.
fn all_known() -> Doc {
    let vms = ["a", "b", "c"].map(|name| common::full_vm(name, 2)).to_vec();
    Doc::payload_of(&Contents { vms, ..full(1) }.made())
}

fn text(text: &str) -> Vec<u8> {
    cbor(|e| drop(e.str(text)))
}

fn number(number: u64) -> Vec<u8> {
    cbor(|e| drop(e.u64(number)))
}

/// A head of this major type that promises this many bytes or items.
fn head(major: u8, promised: u64) -> Vec<u8> {
    [&[major << 5 | 0x1b][..], &promised.to_be_bytes()].concat()
}

/// The path to a register of a group.
fn register(group: usize, role: Role) -> String {
    format!("groups/{group}/registers/{}", one_reg_id(role))
}

const VCTL: Role = Role::Ctl(Timer::Vtimer);
const VCVAL: Role = Role::Cval(Timer::Vtimer);

/// Values of no key but a few: an array, text, null, -1, a tag over no byte string, `true`.
const WRONG: [&[u8]; 6] = [b"\x80", b"\x61x", b"\xf6", b"\x20", b"\xd8\x47\x00", b"\xf5"];

/// Keys of the payload, the stamp, `sync` and each group that may be left out.
const OPTIONAL: [&str; 17] = [
    "sync",
    "boot_id",
    "rate_ppb",
    "machine_id",
    "max_error_ns",
    "synchronized",
    "tai_offset_s",
    "backlog",
    "reading",
    "vmclock",
    "interrupts",
    "stopped_at",
    "stolen_time",
    "virtual_width_ticks",
    "physical_width_ticks",
    "physical_displacement_ticks",
    "later",
];

#[test]
fn the_pieces_put_together_again_are_the_checkpoint() {
    for contents in [bare(), full(2), plain_host(3), full_host(3)] {
        let bytes = encode(&contents.made());
        assert_eq!(Doc::payload_in(&bytes).seal(), bytes);
    }
    let path = register(0, VCVAL);
    assert_eq!(payload().with("stamp/leap", text("unknown")).with(&path, u64s(&[1000])), payload());
    for path in ["stamp", "stamp/count", "groups/1/names", "groups/0/backlog/rows", &register(1, VCVAL)] {
        let (mut host, place) = (host(), host().place(path));
        let value = host.at(path).bytes();
        assert_eq!(host.bytes()[place..place + value.len()], value, "{path}");
    }
}

#[test]
fn each_key_must_be_there() {
    let host = host();
    for map in ["", "stamp", "stamp/sync", "groups/0", "groups/1"] {
        for key in host.keys(map) {
            let without = host.clone().without(&format!("{map}/{key}"));
            if BOOT_TIME.contains(&&*key) {
                continue;
            }
            let required = (map, key.as_str()) == ("stamp/sync", "max_error_ns");
            if OPTIONAL.contains(&key.as_str()) && !required {
                decode(&without.seal()).unwrap();
            } else {
                at(&without, map, &key, "is missing");
            }
        }
    }
    let all_known = all_known();
    for fact in ["backlog", "reading", "vmclock", "interrupts", "stopped_at", "stolen_time"] {
        let map = format!("groups/0/{fact}");
        for key in all_known.keys(&map) {
            let without = all_known.clone().without(&format!("{map}/{key}"));
            if fact == "interrupts" {
                decode(&without.seal()).unwrap();
            } else {
                at(&without, &map, &key, "is missing");
            }
        }
    }
}

/// Keys of the stamp that are all there, or none.
const BOOT_TIME: [&str; 3] = ["slept_ns", "boottime_ns", "slept_width_ns"];

#[test]
fn the_time_since_the_boot_goes_with_the_hosts_sleeps() {
    let whole = host();
    let [slept, boottime, width] = BOOT_TIME.map(|key| format!("stamp/{key}"));
    decode(&whole.clone().without(&slept).without(&boottime).without(&width).seal()).unwrap();
    for key in BOOT_TIME {
        let two = whole.clone().without(&format!("stamp/{key}"));
        let (_, found, what) = flaw(&two.seal());
        assert!(BOOT_TIME.contains(&found), "{found}");
        assert_eq!(what, "goes with slept_ns, boottime_ns and slept_width_ns: all are there, or none");
        let others = BOOT_TIME.iter().filter(|other| **other != key);
        let one = others.fold(whole.clone(), |one, other| one.without(&format!("stamp/{other}")));
        let (_, found, what) = flaw(&one.seal());
        assert!(BOOT_TIME.contains(&found) && what.contains("all are there, or none"), "{found} {what}");
    }
}

#[test]
fn each_key_must_hold_its_own_type() {
    let host = host();
    for (key, fault) in [("arch", "isn't text"), ("stamp", "isn't a map"), ("groups", "isn't an array")] {
        for wrong in
            WRONG.iter().filter(|wrong| (key, **wrong) != ("arch", b"\x61x") && (key, **wrong) != ("groups", b"\x80"))
        {
            value(&host, key, wrong, key, fault);
        }
    }
    value(&host, "arch", b"\x40", "arch", "isn't text");
    value(&host, "groups/1", b"\x80", "a group", "isn't a map");
    value(&host, "groups/1/registers", b"\x80", "registers", "isn't a map");
    value(&host, "groups/1/names", b"\x40", "names", "isn't text");
    value(&host, "stamp/sync", b"\x80", "sync", "isn't a map");
    for fact in ["backlog", "reading", "vmclock", "interrupts", "stopped_at", "stolen_time"] {
        value(&host, &format!("groups/0/{fact}"), b"\x80", fact, "isn't a map");
    }
}

#[test]
fn each_number_of_the_stamp_has_its_range() {
    let host = host();
    let sync = ["age_ns", "holdover_ppb", "max_error_ns"].map(|key| format!("stamp/sync/{key}"));
    let unsigned = ["count", "width_ns", "max_error_ns", "slept_ns", "boottime_ns", "slept_width_ns"]
        .map(|key| format!("stamp/{key}"));
    for path in sync.iter().chain(&unsigned) {
        let key = path.rsplit_once('/').unwrap().1;
        decode(&host.clone().with(path, vec![0]).seal()).unwrap();
        decode(&host.clone().with(path, head(0, u64::MAX)).seal()).unwrap();
        for wrong in [&b"\x20"[..], b"\xf5", b"\x60", b"\x40"] {
            value(&host, path, wrong, key, "isn't an unsigned integer");
        }
        value(&host, path, b"\xf6", key, "is a value of another type");
    }
    value(&host, "stamp/frequency_hz", b"\x00", "frequency_hz", "isn't an unsigned integer above 0");
    value(&host, "stamp/frequency_hz", b"\x20", "frequency_hz", "isn't an unsigned integer above 0");
    for key in ["realtime_ns", "rate_ppb"] {
        let path = format!("stamp/{key}");
        for inside in [head(0, i64::MAX.cast_unsigned()), head(1, i64::MAX.cast_unsigned())] {
            decode(&host.clone().with(&path, inside).seal()).unwrap();
        }
        value(&host, &path, &head(0, 1 << 63), key, "isn't an integer of 64 bits");
        value(&host, &path, &head(1, 1 << 63), key, "is below -2^63");
        value(&host, &path, b"\x60", key, "isn't an integer of 64 bits");
    }
    for path in ["stamp/tai_offset_s", "stamp/sync/tai_offset_s"] {
        for outside in [1_i64 << 31, -(1 << 31) - 1] {
            value(&host, path, &cbor(|e| drop(e.i64(outside))), "tai_offset_s", "isn't an integer of 32 bits");
            let inside = outside - outside.signum();
            decode(&host.clone().with(path, cbor(|e| drop(e.i64(inside)))).seal()).unwrap();
        }
    }
    value(&host, "stamp/synchronized", b"\x01", "synchronized", "isn't true or false");
    value(&host, "stamp/synchronized", b"\xf6", "synchronized", "is a value of another type");
}

#[test]
fn each_text_of_the_stamp_is_one_of_its_own() {
    let host = host();
    for other in ["", "leap", "None", "none "] {
        value(&host, "stamp/leap", &text(other), "leap", "isn't none, insert, delete");
        value(&host, "stamp/sync/quality", &text(other), "quality", "isn't declared, chrony");
    }
    for source in ["", "\u{1b}[2J", "Manual", "a23456789_123456789_123456789_123", "é", "a b"] {
        value(&host, "stamp/source", &text(source), "source", "isn't 1 to 32 characters of a-z, 0-9 and _");
        value(&host, "arch", &text(source), "arch", "isn't 1 to 32 characters of a-z, 0-9 and _");
    }
    for len in [0u8, 15, 17] {
        for key in ["machine_id", "boot_id"] {
            let id = [vec![0x40 | len], vec![7; len.into()]].concat();
            value(&host, &format!("stamp/{key}"), &id, key, "isn't a byte string of 16 bytes");
        }
    }
    value(&host, "stamp/boot_id", &text("0123456789abcdef"), "boot_id", "isn't a byte string of 16 bytes");
}

#[test]
fn closed_maps_take_no_other_keys() {
    let (host, all_known) = (host(), all_known());
    let facts = ["backlog", "reading", "vmclock", "interrupts", "stopped_at", "stolen_time"];
    let facts: Vec<String> = facts.iter().map(|fact| format!("groups/0/{fact}")).collect();
    let maps = ["stamp", "stamp/sync", "groups/0", "groups/1"].into_iter().chain(facts.iter().map(String::as_str));
    for map in maps {
        // Before, among and after the keys of the map.
        for key in ["a", "crit", "later", "physical_displacement_tickz", "an unknown key longer than any known one"] {
            let whole = if map.contains("/0/") { &all_known } else { &host };
            let with = whole.clone().with(&format!("{map}/{key}"), vec![0]);
            at(&with, map, "the map", "has a key that version 1 hasn't");
        }
    }
    // A key of another map.
    at(&host.clone().with("stamp/names", text("")), "stamp", "the map", "has a key that version 1 hasn't");
    let mut number = host;
    *number.at("stamp") = number.at("stamp").clone().with_key(vec![0], vec![0]);
    refused(&number.seal(), "a key isn't text");
}

#[test]
fn columns_of_vms_have_their_ranges() {
    let host = host();
    let none: &[u64] = &[];
    for (key, outside, last) in [
        ("vcpus", &[0, 513][..], 512),
        ("opted_in", &[2], 1),
        ("frequency_hz", &[0, 1 << 32], u64::from(u32::MAX)),
        ("timeline", none, u64::MAX),
        ("virtual_width_ticks", none, u64::MAX),
        ("physical_width_ticks", none, u64::MAX),
        ("physical_displacement_ticks", none, u64::MAX),
    ] {
        let path = format!("groups/1/{key}");
        for outside in outside {
            value(&host, &path, &number(*outside), key, "is out of range");
            let column = [1, *outside, 1];
            let column =
                if *outside < 256 { u8s(&column.map(|value| u8::try_from(value).unwrap())) } else { u64s(&column) };
            value(&host, &path, &column, key, "is out of range");
        }
        if key != "vcpus" {
            decode(&host.clone().with(&path, number(last)).seal()).unwrap();
        }
        for wrong in WRONG {
            let (_, found, _) = flaw(&host.clone().with(&path, wrong.to_vec()).seal());
            assert_eq!(found, key);
        }
    }
    let most = plain_host(1).with(|vm| Vm { name: vm.name, ..Vm::plain("", 512, 1, 0) });
    assert_eq!(decode(&Doc::payload_of(&most.made()).seal()).unwrap().vcpus(), 512);
}

/// Every form that a column of these values doesn't have.
#[test]
fn a_column_has_one_form() {
    let host = host();
    let form = "isn't in the one form that its values have";
    let rows = "hasn't one value a row";
    let kind = "is neither one number for all rows, nor a u8 column (tag 64), nor a u64 column (tag 71)";
    let big_endian = [&[0xd8, 67, 0x58, 24][..], &[0; 24]].concat();
    let part_of_a_row = [&[0xd8, 71, 0x57][..], &[9; 23]].concat();
    let untagged = cbor(|e| drop(e.bytes(&[0; 24])));
    let columns =
        [("timeline", 3), ("frequency_hz", 3), ("vcpus", 3)].map(|(key, rows)| (format!("groups/1/{key}"), key, rows));
    let registers = [(register(1, VCTL), "a register", 6), (register(0, Role::Cntvoff), "a register", 6)];
    for (path, key, all) in columns.iter().chain(&registers) {
        let (path, all) = (path.as_str(), *all);
        let ones = |rows: usize| (vec![1_u8; rows], vec![1_u64; rows]);
        let (bytes, words) = ones(all);
        value(&host, path, &u8s(&bytes), key, form);
        value(&host, path, &u64s(&words), key, form);
        value(&host, path, &u64s(&vec![256; all]), key, form);
        let differing: Vec<u64> = (0..all as u64).map(|row| 1 + row % 2).collect();
        value(&host, path, &u64s(&differing), key, form);
        for rows_there in [0, 1, all - 1, all + 1] {
            let (bytes, words) = ones(rows_there);
            value(&host, path, &u8s(&bytes), key, rows);
            value(&host, path, &u64s(&words), key, rows);
        }
        value(&host, path, &untagged, key, "isn't an unsigned integer");
        value(&host, path, &big_endian, key, kind);
        value(&host, path, b"\xc1\x00", key, kind);
        for wrong in [&part_of_a_row[..], b"\xd8\x40\x00", b"\xd8\x47\x60"] {
            let (_, found_key, found) = flaw(&host.clone().with(path, wrong.to_vec()).seal());
            assert_eq!((found_key, found), (*key, kind), "{path}");
        }
    }
    // A compare value has eight bytes a row, of one row too.
    let (one, three) = (register(0, VCVAL), register(1, VCVAL));
    value(&payload(), &one, &number(1000), "a register", form);
    value(&payload(), &one, &u8s(&[1]), "a register", form);
    value(&payload(), &one, &u64s(&[]), "a register", rows);
    value(&payload(), &one, &u64s(&[1, 2]), "a register", rows);
    value(&host, &three, &u8s(&[1, 2, 3, 4, 5, 6]), "a register", form);
    value(&host, &three, &number(5), "a register", form);
    for role in [Role::Cval(Timer::Hvtimer), Role::Cval(Timer::Hptimer), Role::Cval(Timer::Ptimer)] {
        value(&host, &register(0, role), &number(5), "a register", form);
    }
}

#[test]
fn columns_of_0_are_left_out() {
    let host = host();
    let left_out = "is 0 in every row, and left out then";
    for key in ["virtual_width_ticks", "physical_width_ticks", "physical_displacement_ticks"] {
        value(&host, &format!("groups/1/{key}"), b"\x00", key, left_out);
        value(&host, &format!("groups/0/{key}"), b"\x00", key, left_out);
        value(&host, &format!("groups/0/{key}"), &u8s(&[0; 3]), key, "isn't in the one form");
    }
    for key in ["ptimer", "vtimer", "hptimer", "hvtimer"] {
        value(&host, &format!("groups/0/interrupts/{key}"), b"\x00", key, left_out);
    }
    // Other columns of 0 aren't.
    for key in ["opted_in", "timeline"] {
        decode(&host.clone().with(&format!("groups/1/{key}"), vec![0]).seal()).unwrap();
    }
}

#[test]
fn names_are_printable_ascending_and_one_a_vm() {
    let host = host();
    let (order, control) = ("aren't in their order", "have a control character");
    let of = |names: &str, what: &str| value(&host, "groups/1/names", &text(names), "names", what);
    for names in ["b\na\nc", "a\na\nb", "bb\na\nc", "a\nb\nb", "a\n\nb", "a\nb\n"] {
        of(names, order);
    }
    for bad in [
        "\0", "\t", "\r", "\u{1b}", "\u{7f}", "\u{80}", "\u{9f}", "\u{2028}", "\u{2029}", "\u{202a}", "\u{202e}",
        "\u{2066}", "\u{2069}",
    ] {
        of(&format!("a\n{bad}b\nccc"), control);
    }
    of(&format!("a\nb\n{}", "c".repeat(65)), "have one of more than 64 bytes");
    of(&format!("a\nb\n{}", "ä".repeat(33)), "have one of more than 64 bytes");
    decode(&host.clone().with("groups/1/names", text(&format!("a\nb\n{}", "ä".repeat(32)))).seal()).unwrap();
    // Fewer or more names than rows.
    for names in ["", "a", "a\nb", "a\nb\nc\nd"] {
        refused(&host.clone().with("groups/1/names", text(names)).seal(), "timeline hasn't one value a row");
    }
    refused(&host.clone().with("groups/1/names", b"\x62\xff\xff".to_vec()).seal(), "a value isn't CBOR");
    // The other group's.
    let mut names = host.clone();
    let names = names.at("groups/0/names").bytes();
    at(&host.clone().with("groups/1/names", names), "", "groups", "has a name twice");
    let two = ["", "b"]
        .map(|name| if name.is_empty() { Vm::plain("", 1, 1, 0) } else { Vm::plain("b", 1, 1, 0).cntvoff(&[1]) });
    let two = Doc::payload_of(&Contents { vms: two.into(), ..bare() }.made());
    at(&two.with("groups/1/names", text("")), "", "groups", "has a name twice");
}

#[test]
fn groups_ascend_by_their_registers() {
    let order = "isn't in the order of the registers' ids, each list once";
    let mut swapped = host();
    let Doc::Array(groups) = swapped.at("groups") else { panic!() };
    groups.swap(0, 1);
    at(&swapped, "", "groups", order);
    let mut twice = Doc::payload_of(&plain_host(1).made());
    let Doc::Array(groups) = twice.at("groups") else { panic!() };
    groups.push(groups[0].clone());
    at(&twice.with("groups/1/names", text("other")), "", "groups", order);
    // A list that another begins with comes first.
    let longer = Vm::plain("b", 1, 1, 0).register(UNNAMED, &[1]);
    let mut longer_first = Doc::payload_of(&Contents { vms: vec![Vm::plain("a", 1, 1, 0), longer], ..bare() }.made());
    let Doc::Array(groups) = longer_first.at("groups") else { panic!() };
    groups.swap(0, 1);
    at(&longer_first, "", "groups", order);
}

#[test]
fn registers_are_those_of_a_guest() {
    let of =
        |group: usize, payload: &Doc, what: &str| at(payload, &format!("groups/{group}/registers"), "registers", what);
    let bare = payload();
    let id = |id: u64| format!("groups/0/registers/{id}");
    let no_timer = "have one that is no timer's, or that follows from the timeline";
    for other in [
        one_reg_id(Role::Count(View::Virtual)),
        one_reg_id(Role::Count(View::Physical)),
        0x6030_0000_0013_df00,
        one_reg_id(Role::Cntkctl),
        one_reg_id(Role::Cnthctl),
        0x6030_0000_0010_0000,
        0x6020_0000_0013_e730,
        Encoding(3, 3, 14, 8, 0).one_reg_id(),
        Encoding(2, 3, 14, 0, 1).one_reg_id(),
        0,
        u64::MAX,
    ] {
        of(0, &bare.clone().with(&id(other), vec![0]), no_timer);
    }
    let whole = "have a timer's CVAL without its CTL";
    for timer in Timer::ALL {
        for role in [Role::Ctl(timer), Role::Cval(timer)] {
            of(0, &host().without(&register(0, role)), whole);
        }
        let without = all_known().without(&register(0, Role::Ctl(timer))).without(&register(0, Role::Cval(timer)));
        if timer == Timer::Vtimer {
            of(0, &without, "are without those of the virtual timer");
        } else {
            decode(&without.seal()).unwrap();
        }
    }
    of(0, &bare.clone().with("groups/0/registers", vec![0xa0]), "are without those of the virtual timer");
    let others = (0..64_u8).map(|n| id(Encoding(3, n >> 3, 14, 4, n & 7).one_reg_id()));
    let most = others.fold(bare, |payload, path| payload.with(&path, vec![7]));
    decode(&most.seal()).unwrap();
    let many = "have more than 64 that this version doesn't know";
    of(0, &most.with(&id(UNNAMED), vec![7]), many);
    // One more than the known and the unknown may be together.
    of(0, &(0..72).fold(payload(), |payload, n| payload.with(&id(n), vec![0])), many);
    of(0, &(0..71).fold(payload(), |payload, n| payload.with(&id(n), vec![0])), no_timer);
    let mut keyed = payload();
    *keyed.at("groups/0/registers") = keyed.at("groups/0/registers").clone().with_key(text("vtimer"), vec![0]);
    refused(&keyed.seal(), "the id of a register isn't an unsigned integer");
}

#[test]
fn istatus_is_in_no_ctl() {
    for timer in Timer::ALL {
        for ctl in [4, 5, 7, 12, 0xff, u64::MAX] {
            let path = register(0, Role::Ctl(timer));
            let with = host().with(&path, number(ctl));
            at(&with, "groups/0/registers", "registers", "have a CTL with ISTATUS set");
            decode(&host().with(&path, number(ctl & !4)).seal()).unwrap();
        }
        for column in [u8s(&[0, 1, 2, 3, 4, 5]), u64s(&[0, 1, 2, 3, 1 << 40, 1 << 40 | 4])] {
            let with = host().with(&register(0, Role::Ctl(timer)), column);
            at(&with, "groups/0/registers", "registers", "have a CTL with ISTATUS set");
        }
    }
    // Bit 2 of any other register is its own.
    decode(&host().with(&register(0, Role::Cntvoff), number(4)).seal()).unwrap();
}

/// A group has three VMs of 1, 2 and 3 vCPUs, and facts are known of the first and the last.
#[test]
fn rows_of_a_fact_are_some_of_its_rows() {
    let (host, all_known) = (host(), all_known());
    let places = "aren't places of some rows, ascending, each once";
    for (fact, all) in
        [("backlog", 3), ("reading", 3), ("vmclock", 3), ("interrupts", 3), ("stopped_at", 3), ("stolen_time", 6)]
    {
        let path = format!("groups/0/{fact}/rows");
        let beyond = [all, 1 << 32, 1 << 63, u64::MAX].map(|last| vec![0, last]);
        let every: Vec<u64> = (0..all).collect();
        for rows in [vec![], vec![1, 0], vec![1, 1], every.clone(), vec![all], vec![0; 7]].into_iter().chain(beyond) {
            value(&host, &path, &u64s(&rows), "rows", places);
        }
        value(&all_known, &path, &u64s(&every), "rows", places);
        for wrong in
            [&b"\x00"[..], &u8s(&[0, 2]), &cbor(|e| drop(e.bytes(&[0; 8]))), &[&[0xd8, 71, 0x47][..], &[0; 7]].concat()]
        {
            let (_, key, what) = flaw(&host.clone().with(&path, wrong.to_vec()).seal());
            assert_eq!((key, what), ("rows", "aren't a u64 column (tag 71)"), "{wrong:?}");
        }
        // Values of one row more than are named, where the values differ.
        let part = format!("groups/0/{fact}/{}", all_known.keys(&format!("groups/0/{fact}"))[0]);
        let one_row = all_known.clone().with(&path, u64s(&[0])).with(&part, u64s(&[1, 256]));
        refused(&one_row.seal(), "hasn't one value a row");
    }
}

#[test]
fn facts_have_their_ranges() {
    let host = host();
    for key in ["step_ns", "interval_ns", "remaining_ticks"] {
        let path = format!("groups/0/backlog/{key}");
        value(&host, &path, b"\x00", key, "is out of range");
        value(&host, &path, &u8s(&[1, 0]), key, "is out of range");
        value(&host, &path, b"\x20", key, "isn't an unsigned integer");
        decode(&host.clone().with(&path, vec![1]).seal()).unwrap();
    }
    for key in ["ptimer", "vtimer", "hptimer", "hvtimer"] {
        let path = format!("groups/0/interrupts/{key}");
        value(&host, &path, &number(1 << 32), key, "is out of range");
        value(&host, &path, &u64s(&[27, 1 << 32]), key, "is out of range");
        decode(&host.clone().with(&path, number(u32::MAX.into())).seal()).unwrap();
        decode(&host.clone().with(&path, u8s(&[27, 0])).seal()).unwrap();
    }
    let anything = ["reading/count", "reading/width_ns", "reading/realtime_ns", "vmclock/address", "stopped_at/count"];
    for path in anything.iter().chain(&["stolen_time/address"]) {
        let (_, key) = path.split_once('/').unwrap();
        let path = format!("groups/0/{path}");
        decode(&host.clone().with(&path, vec![0]).seal()).unwrap();
        decode(&host.clone().with(&path, head(0, u64::MAX)).seal()).unwrap();
        value(&host, &path, b"\x20", key, "isn't an unsigned integer");
    }
    // Interrupt ids that are all 0 are known all the same.
    let none = host.clone().with("groups/0/interrupts", cbor(|e| drop(e.map(0))));
    assert_eq!(decode(&none.seal()).unwrap().vm(1).unwrap().time().interrupts.map(|ids| ids.0), Some([0; 4]));
}

#[test]
fn keys_are_in_order_and_there_once() {
    let map = |change: fn(&mut Vec<(Vec<u8>, Doc)>), path: &str| {
        let mut host = host();
        let Doc::Map(pairs) = host.at(path) else { panic!("{path}") };
        change(pairs);
        host.seal()
    };
    for path in ["", "stamp", "stamp/sync", "groups/0", "groups/0/registers", "groups/0/backlog"] {
        refused(&map(|pairs| pairs.swap(1, 2), path), "isn't in bytewise order");
        refused(&map(|pairs| pairs.insert(1, pairs[1].clone()), path), "a key is there twice");
    }
    refused(&map(|pairs| pairs.insert(0, (text("aaaaaaaa"), Doc::Bytes(vec![0]))), ""), "isn't in bytewise order");
    // The same in a value that nothing here knows.
    refused(&payload().with("later", b"\xa2\x61b\x00\x61a\x00".to_vec()).seal(), "isn't in bytewise order");
    refused(&payload().with("later", b"\xa2\x61a\x00\x61a\x00".to_vec()).seal(), "a key is there twice");
    refused(&seal(b"\xa1\x01\x02"), "a key of the payload isn't text");
}

#[test]
fn numbers_and_lengths_are_the_shortest() {
    let what = "the one encoding";
    for long in [&b"\x18\x17"[..], b"\x19\x00\xff", b"\x1a\x00\x00\xff\xff", b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff"] {
        for path in ["groups/0/timeline", "stamp/count", "later", &register(0, VCTL)] {
            refused(&payload().with(path, long.to_vec()).seal(), what);
        }
    }
    for long in [&b"\x38\x00"[..], b"\x58\x01x", b"\x78\x01x", b"\x98\x01\x00", b"\xb8\x00", b"\xd8\x01\x00"] {
        refused(&payload().with("later", long.to_vec()).seal(), what);
    }
    // In the envelope: the version, the payload's tag and length, and the checksum's length.
    let bytes = encode(&bare().made());
    assert_eq!(bytes[15..20], [1, 0xd8, 24, 0x58, 199]);
    let crc = bytes.len() - 5;
    for (at, short, long) in
        [(15, 1, &[0x18, 1][..]), (16, 2, &[0xd9, 0, 24]), (18, 2, &[0x59, 0, 199]), (crc, 1, &[0x58, 4])]
    {
        let longer = [&bytes[..at], long, &bytes[at + short..]].concat();
        refused(&common::reseal(longer), what);
    }
}

#[test]
fn lengths_are_definite() {
    for open in [&b"\x5f\x41x\xff"[..], b"\x7f\x61x\xff", b"\x9f\x00\xff", b"\xbf\x00\x00\xff", b"\xff"] {
        for path in ["later", "stamp/count", "groups", "groups/0/names"] {
            refused(&payload().with(path, open.to_vec()).seal(), "has no definite length");
        }
    }
    let mut open = payload().bytes();
    open[0] = 0xbf;
    open.push(0xff);
    refused(&seal(&open), "has no definite length");
}

#[test]
fn there_is_nothing_but_integers_strings_arrays_maps_tags_and_three_simple_values() {
    for float in [&b"\xf9\x3c\x00"[..], b"\xfa\x3f\x80\x00\x00", b"\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00"] {
        refused(&payload().with("later", float.to_vec()).seal(), "floating point");
        refused(&payload().with("groups/0/timeline", float.to_vec()).seal(), "floating point");
    }
    for simple in [&b"\xf7"[..], b"\xe0", b"\xf8\x20", b"\xf8\x00", b"\xfc", b"\x1c"] {
        refused(&payload().with("later", simple.to_vec()).seal(), "simple value");
    }
    refused(&payload().with("later", b"\x62\xff\xff".to_vec()).seal(), "a value isn't CBOR");
}

#[test]
fn promised_lengths_are_not_believed() {
    for major in [2, 3, 4, 5] {
        for promised in [1 << 32, 1 << 40, u64::MAX] {
            refused(&seal(&head(major, promised)), "a value isn't CBOR");
            for path in ["groups", "groups/0/names", "groups/0/timeline", "groups/0/registers", "stamp"] {
                refused(&payload().with(path, head(major, promised)).seal(), "");
            }
        }
    }
    for tag in [64, 71] {
        let promise = [&[0xd8, tag][..], &head(2, u64::MAX)].concat();
        refused(&payload().with(&register(0, VCVAL), promise).seal(), "a value isn't CBOR");
    }
    // The payload's own length.
    let bytes = encode(&bare().made());
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
        refused(&payload().with("groups", nested(open, 1_000_000)).seal(), "nested too deep");
        refused(&seal(&nested(open, 1_000_000)), "nested too deep");
    }
    // As a map's key.
    refused(&seal(&b"\xa1".repeat(1_000_000)), "nested too deep");
}

#[test]
fn keys_are_few_and_short() {
    let mut many = payload();
    let known = many.keys("").len();
    for n in 0..MAX_KEYS - known {
        many = many.with(&format!("later-{n:02}"), vec![0]);
    }
    decode(&many.seal()).unwrap();
    at(&many.with("one more", vec![0]), "", "the payload", "has too many keys");
    decode(&payload().with(&"k".repeat(64), vec![0]).seal()).unwrap();
    refused(&payload().with(&"k".repeat(65), vec![0]).seal(), "a key of the payload is too long");
}

#[test]
fn groups_and_vcpus_are_few() {
    let groups = |groups: u8| {
        let mut payload = payload();
        let group = payload.at("groups/0").clone();
        // Each has a register more than those before it, so they are in their order.
        let more = |n: u8| {
            let others = (0..n).map(|n| Encoding(3, 6, 14, 4 + (n >> 3 & 3), n & 7).one_reg_id());
            let more = others.fold(group.clone(), |group, id| group.with(&format!("registers/{id}"), vec![0]));
            more.with("names", text(&format!("{n:02}")))
        };
        *payload.at("groups") = Doc::Array((0..groups).map(more).collect());
        payload
    };
    let most: Vec<Vm> = (0..64_u8)
        .map(|n| Vm::plain(&n.to_string(), 1, 1, 0).register(Encoding(3, n >> 3, 14, 4, n & 7).one_reg_id(), &[0]))
        .collect();
    let most = Doc::payload_of(&Contents { vms: most, ..bare() }.made());
    assert_eq!(decode(&most.seal()).unwrap().groups().len(), MAX_GROUPS);
    let mut more = most;
    let Doc::Array(items) = more.at("groups") else { panic!() };
    items.push(items[63].clone());
    at(&more, "groups", "groups", "has more than 64 groups");
    decode(&groups(20).seal()).unwrap();

    // 512 VMs of 512 vCPUs, and one VM more.
    let many = |vms: usize, name: &str| {
        let vms = (0..vms).map(|vm| Vm::plain(&format!("{name}{vm:03}"), 512, 1, 0)).collect();
        Doc::payload_of(&Contents { vms, ..bare() }.made())
    };
    let mut most = many(512, "vm");
    assert_eq!(decode(&most.seal()).unwrap().vcpus(), MAX_VCPUS);
    let names: Vec<String> = (0..513).map(|vm| format!("vm{vm:03}")).collect();
    value(
        &most.clone().with("groups/0/names", text(&names.join("\n"))),
        "groups/0/vcpus",
        &number(512),
        "vcpus",
        "are more than 262 144",
    );
    let mut other = Doc::payload_of(&bare().with(|vm| vm.cntvoff(&[1])).made());
    let Doc::Array(groups) = most.at("groups") else { panic!() };
    groups.push(other.at("groups/0").clone());
    at(&most, "", "groups", "has more than 262 144 vCPUs");
}

#[test]
fn the_envelope_is_exact() {
    refused(&seal(b""), "a value isn't CBOR");
    refused(&seal(b"\x00"), "the payload isn't a map");
    refused(&seal(&[payload().bytes(), vec![0]].concat()), "the payload goes on after its map");
    let bytes = encode(&bare().made());
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
    let what = "names no key beyond those of version 1";
    for crit in [&b"\x80"[..], b"\x81\x64arch", b"\x81\x64crit", b"\x81\x65stamp", b"\x81\x66groups"] {
        value(&payload(), "crit", crit, "crit", what);
    }
    value(&payload(), "crit", &[0xf6], "crit", "isn't an array");
    refused(&payload().with("crit", vec![0x81, 0x00]).seal(), "crit isn't text");
    let long = cbor(|e| drop(e.encode([&*"k".repeat(65)])));
    refused(&payload().with("crit", long).seal(), "crit has a name that is too long for a key");
    // Before the architecture is looked at, even where that is missing.
    value(&payload().without("arch"), "crit", b"\x80", "crit", what);
}
